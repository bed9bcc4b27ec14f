"""The run folder: whole files or none, fingerprints, resume, other versions."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from gags.errors import GagsError
from gags.settings import Neutral
from gags.store import (
    RunFolder,
    fingerprint,
    fingerprint_files,
    read_arrays,
    read_json,
    read_tensors,
    write_arrays,
    write_atomically,
    write_json,
    write_tensors,
)


@dataclass(frozen=True)
class Settings:
    steps: int = 3
    rate: float = 0.5
    save_every: Neutral[int] = 10


def test_tensors_round_trip_with_their_metadata(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 4).T, "a": torch.arange(5)}
    write_tensors(tmp_path / "x.safetensors", tensors, {"step": 7, "settings": Settings()})
    again, metadata = read_tensors(tmp_path / "x.safetensors")
    assert metadata == {"step": 7, "settings": {"steps": 3, "rate": 0.5, "save_every": 10}}
    for name, tensor in tensors.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=0)


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    write_tensors(tmp_path / "1", {"a": torch.ones(3), "b": torch.zeros(2)}, {"x": 1, "y": 2})
    write_tensors(tmp_path / "2", {"b": torch.zeros(2), "a": torch.ones(3)}, {"y": 2, "x": 1})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_arrays_round_trip(tmp_path: Path) -> None:
    arrays = {"bits": np.arange(7, dtype=np.uint8), "none": np.zeros((0, 3))}
    write_arrays(tmp_path / "x.npz", arrays)
    again = read_arrays(tmp_path / "x.npz")
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise ValueError("killed")

    with pytest.raises(ValueError, match="killed"):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_fingerprints_follow_values_and_contents(tmp_path: Path) -> None:
    assert fingerprint({"a": Settings(), "b": 1}) == fingerprint({"b": 1, "a": Settings()})
    assert fingerprint(Settings(steps=4)) != fingerprint(Settings())
    (tmp_path / "one").write_text("1")
    before = fingerprint_files(tmp_path)
    (tmp_path / "one").write_text("2")
    changed = fingerprint_files(tmp_path)
    (tmp_path / "one").rename(tmp_path / "two")
    assert len({before, changed, fingerprint_files(tmp_path)}) == 3


def test_a_stage_is_kept_while_its_ingredients_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunFolder.create(tmp_path / "run")
    stage = run.stage("masks", {"settings": Settings()})
    assert not stage.complete
    with stage.building():
        write_json(stage.path("result.json"), 1)
    assert stage.complete
    again = run.stage("masks", {"settings": Settings()})
    assert again.complete and read_json(again.path("result.json")) == 1
    with caplog.at_level("INFO", logger="gags"):
        other = run.stage("masks", {"settings": Settings(steps=4)})
    assert not other.complete and not other.path("result.json").exists()
    assert "settings.steps was 3 and is 4" in caplog.text


def test_an_interrupted_stage_keeps_its_finished_files_and_adds_up_its_time(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    stage = run.stage("masks", {})
    with pytest.raises(KeyboardInterrupt), stage.building():
        write_json(stage.path("first.json"), 1)
        raise KeyboardInterrupt
    stage = run.stage("masks", {})
    assert not stage.complete and stage.path("first.json").exists()
    with stage.building():
        pass
    record = read_json(stage.path("stage.json"))
    assert record["complete"] and record["seconds"] >= 0 and record["peak_memory_mb"] > 1


def test_a_finished_stage_is_demanded_by_name(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    with pytest.raises(GagsError, match="expected a finished stage 'field/gad', found none; run 'gags run'"):
        run.finished_stage("field/gad")


def test_a_run_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"format": 99, "gags": "9.9"}))
    for open_run in (RunFolder.open, RunFolder.create):
        with pytest.raises(
            GagsError, match=r"run\.json: expected run folder format 1, found 99; it was written by gags 9\.9"
        ):
            open_run(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GagsError, match=r"expected a run folder with a run\.json, found none"):
        RunFolder.open(tmp_path)
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(GagsError, match="expected an empty folder or an earlier run, found other files"):
        RunFolder.create(tmp_path)
    with pytest.raises(GagsError, match="expected a folder for the run, found a file"):
        RunFolder.create(tmp_path / "holiday.jpg")


READERS = {"JSON": read_json, "safetensors": read_tensors, r"arrays \(\.npz\)": read_arrays}


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    np.save(tmp_path / "single.npy", np.arange(3))
    for content in (b"", b"garbage", b"{", b"\xff\xfe", b"PK\x03\x04", (tmp_path / "single.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(
            GagsError, match=rf"x: expected {kind}, found .*; delete {path} and run the same 'gags run'"
        ):
            READERS[kind](path)
    with pytest.raises(GagsError, match=rf"y: expected {kind}, found no such file; run the same 'gags run' again"):
        READERS[kind](tmp_path / "y")
    # a complete stage is only made again when its record is gone too
    (tmp_path / "stage.json").write_text("{}")
    with pytest.raises(GagsError, match=rf"x: expected {kind}, found .*; delete {tmp_path} and run the same"):
        READERS[kind](path)


def test_a_file_of_arrays_damaged_anywhere_reads_as_it_was_or_is_named(tmp_path: Path) -> None:
    arrays = {"bits": np.arange(7, dtype=np.uint8), "rows": np.ones((3, 4))}
    write_arrays(tmp_path / "x.npz", arrays)
    whole = (tmp_path / "x.npz").read_bytes()
    rng = np.random.default_rng(0)
    n_named = 0
    for _ in range(200):
        damaged = bytearray(whole[: rng.integers(len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(2 * bool(damaged)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        (tmp_path / "x.npz").write_bytes(damaged)
        try:
            again = read_arrays(tmp_path / "x.npz")
        except GagsError as error:
            assert "x.npz: expected arrays" in str(error)
            n_named += 1
        else:
            # the archive checks the sums of what it holds: at most a name or a date was changed
            assert all(any(np.array_equal(a, b) for b in arrays.values()) for a in again.values())
    assert n_named > 100


def test_a_damaged_record_of_a_stage_is_named(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    record = run.stage("masks", {"a": 1}).path("stage.json")
    for content in ("[]", "{}", "3"):
        record.write_text(content)
        with pytest.raises(
            GagsError, match=rf"stage\.json: expected a stage's name, .*; delete {record.parent} and run"
        ):
            run.stage("masks", {"a": 1})


def test_settings_that_change_no_result_rebuild_nothing(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    stage = run.stage("splats", {"settings": Settings(), "views": 3})
    with stage.building():
        pass
    assert stage.ingredients == {"settings": {"steps": 3, "rate": 0.5}, "views": 3}
    assert run.stage("splats", {"settings": Settings(save_every=99), "views": 3}).complete
    assert not run.stage("splats", {"settings": Settings(steps=4), "views": 3}).complete


def test_what_a_killed_attempt_left_is_removed_when_the_stage_is_built_again(tmp_path: Path) -> None:
    script = (
        "import os, signal; from pathlib import Path; from gags.store import RunFolder, write_atomically\n"
        f"stage = RunFolder.create(Path({str(tmp_path / 'run')!r})).stage('masks', {{'a': 1}})\n"
        "def write(path): path.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "with stage.building(): write_atomically(stage.path('deep/x.json'), write)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    stage = RunFolder.create(tmp_path / "run").stage("masks", {"a": 1})
    stage.path(".hidden.tmp").write_text("of somebody else")
    assert len([path for path in stage.folder.rglob("*tmp*")]) == 2
    with stage.building():
        assert [path.name for path in stage.folder.rglob("*tmp*")] == [".hidden.tmp"]


def test_a_run_killed_in_its_first_write_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene/.stage.json.4711.tmp.json").write_text("half")
    RunFolder.create(tmp_path)
    (tmp_path / "scene/mine.json").write_text("{}")
    with pytest.raises(GagsError, match="expected an empty folder or an earlier run, found other files"):
        RunFolder.create(tmp_path)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small tmpfs needs root on Linux")
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not allowed here: {mounted.stderr.decode().strip()}")
    try:
        big = np.random.default_rng(0).integers(0, 255, 1_000_000, dtype=np.uint8)
        with pytest.raises(GagsError, match=r"a\.npz: the disk is full .* run the same command again"):
            write_arrays(tmp_path / "a.npz", {"a": big})
        with pytest.raises(GagsError, match="b: the disk is full"):
            write_tensors(tmp_path / "b", {"a": torch.from_numpy(big)})
        with pytest.raises(GagsError, match="c: the disk is full"):
            write_json(tmp_path / "c", big.tolist())
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_peak_memory_sees_a_large_array() -> None:
    # in a process of its own: here, what earlier tests left behind may be freed in between
    script = """
import numpy as np
from gags.store import peak_memory_mb, reset_peak_memory
freed = np.ones(40_000_000)
del freed
reset_peak_memory()
before = peak_memory_mb()
array = np.ones(20_000_000)
assert before + 100 <= peak_memory_mb() <= before + 300, (before, peak_memory_mb())
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_one_process_at_a_time_makes_a_run(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    again = RunFolder.create(tmp_path)
    with run.locked(), pytest.raises(GagsError, match="nobody is writing, found another gags process"), again.locked():
        pass
    # nothing was made
    assert not tmp_path.exists()
    with RunFolder.create(tmp_path).locked():
        (tmp_path / "x").touch()
    assert (tmp_path / "x").exists()
