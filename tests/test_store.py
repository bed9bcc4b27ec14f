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
from gags.store import (
    RunFolder,
    fingerprint,
    fingerprint_files,
    peak_memory_mb,
    read_arrays,
    read_json,
    read_tensors,
    reset_peak_memory,
    write_arrays,
    write_atomically,
    write_json,
    write_tensors,
)


@dataclass(frozen=True)
class Settings:
    steps: int = 3
    rate: float = 0.5


def test_tensors_round_trip_with_their_metadata(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 4).T, "a": torch.arange(5)}
    write_tensors(tmp_path / "x.safetensors", tensors, {"step": 7, "settings": Settings()})
    again, metadata = read_tensors(tmp_path / "x.safetensors")
    assert metadata == {"step": 7, "settings": {"steps": 3, "rate": 0.5}}
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


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"garbage")
    with pytest.raises(GagsError, match="x: expected JSON, found something else"):
        read_json(tmp_path / "x")
    with pytest.raises(GagsError, match="x: expected a safetensors file, found something else"):
        read_tensors(tmp_path / "x")
    with pytest.raises(GagsError, match="y: expected a safetensors file here, found none"):
        read_tensors(tmp_path / "y")


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
    reset_peak_memory()
    before = peak_memory_mb()
    array = np.ones(20_000_000)
    assert peak_memory_mb() >= before + 100
    del array
