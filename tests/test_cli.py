"""The command line as a user meets it: whole commands on the tiny scene, one clear line for each mistake."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

import tiny
from gags.cli import COMMANDS, main
from gags.gaussians import Gaussians
from gags.pipeline import run
from gags.presets import TINY
from gags.scene import Scene


@dataclasses.dataclass
class Recorder:
    """Watches a run being made."""

    seen: list[str] = dataclasses.field(default_factory=list)

    def scene(self, scene: Scene) -> None:
        self.seen.append(f"{len(scene.views)} views")

    def splats(self, gaussians: Gaussians, words: str) -> None:
        gaussians.check(words)
        self.seen.append(words)

    def features(self, gaussians: Gaussians, features: Tensor, words: str) -> None:
        assert features.shape[0] == len(gaussians)
        self.seen.append(words)

    def words(self, words: str) -> None:
        self.seen.append(words)


RECORDER = Recorder()


@pytest.fixture(scope="module")
def finished(tiny_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose field is in the built-in encoder's space, on masks that are true: its answers are weak, its files real."""
    out = tmp_path_factory.mktemp("cli") / "run"
    quick = dataclasses.replace(
        TINY,
        reconstruct=dataclasses.replace(TINY.reconstruct, iterations=60, checkpoint_every=40),
        distill=dataclasses.replace(TINY.distill, iterations=90, checkpoint_every=50),
        field="all",
    )
    run(tiny_scene, out, quick, segmenter=tiny.TrueSegmenter(), watcher=RECORDER)
    return out


def test_help_names_every_command_without_loading_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    loaded = "import sys, gags.cli; gags.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], stdout=subprocess.DEVNULL, check=False).returncode == 0
    module = subprocess.run([sys.executable, "-m", "gags", "fly"], capture_output=True, check=False)
    assert module.returncode == 2 and b"unknown command 'fly'" in module.stderr


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fly"]) == 2
    assert "unknown command 'fly'" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gags ")


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "usage: gags " + command in capsys.readouterr().out


UNITS = {
    r"_px$": "pixels",
    r"_mb$": "MB",
    r"seconds$": "seconds",
    r"_radius$": "scene units",
    r"_lr$": "[Ll]earning rate",
    r"_weight$": r"[Ww]eight|0\.\.1",
}
MEASURE = re.compile(
    r"0\.\.1|[Ss]hare|scene units|extent|pixels|seconds|MB|[Ll]earning rate|epsilon|[Ww]eight of|power|squared|multiplied|"
    r"half images|ln\(|divided by"
)
"""What a number that is no count can be in."""


def flags_of(arguments: type) -> Iterator[tuple[str, Any, str]]:
    """Name, annotation and help of every flag of a dataclass of flags: the text under its field."""
    hints = get_type_hints(arguments)
    classes = [kind for kind in arguments.__mro__ if dataclasses.is_dataclass(kind)]
    bodies = [ast.parse(inspect.getsource(kind)).body[0].body for kind in classes]  # type: ignore[attr-defined]
    for field, text in pairwise([*chain(*bodies), None]):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            hint = hints[field.target.id]
            if dataclasses.is_dataclass(hint):
                yield from flags_of(cast(type, hint))
            else:
                told = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                yield field.target.id, hint, text.value.value if told else ""  # type: ignore[union-attr]


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_flag_has_help_that_names_its_unit(command: str) -> None:
    flags = list(flags_of(importlib.import_module(f"gags.commands.{command}").Arguments))
    assert flags
    for name, hint, text in flags:
        assert text.strip(), f"{command}: {name} has no help"
        for ending, unit in UNITS.items():
            assert not re.search(ending, name) or re.search(unit, text), f"{name} does not say {unit}: {text}"
        if float in (hint, *get_args(hint)):
            assert MEASURE.search(text), f"{name} names no unit: {text}"


def test_run_flags_start_from_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for preset in ("fast", "paper"):
        with pytest.raises(SystemExit):
            main(["run", "--preset", preset, "--help"])
        shown[preset] = capsys.readouterr().out
    assert "30000" in shown["paper"] and "--reconstruct.iterations" in shown["fast"]
    assert shown["fast"] != shown["paper"]


def test_query_writes_pictures_and_json(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["query", str(finished), "red ball", "blue ball", "--view", "view_02.png", "--view", "view_05", "--json"])
        == 0
    )
    rows = json.loads(capsys.readouterr().out)
    assert [(row["phrase"], row["view"]) for row in rows] == [
        (phrase, view) for phrase in ("red ball", "blue ball") for view in ("view_02.png", "view_05.png")
    ]
    for row in rows:
        assert 0 <= row["score"] <= 1
        assert 0 <= row["point_xy_px"][0] <= tiny.WIDTH and 0 <= row["point_xy_px"][1] <= tiny.HEIGHT
        for kind in ("heat", "composite", "mask", "found"):
            assert np.asarray(Image.open(row["pictures"][kind])).shape == (tiny.HEIGHT, tiny.WIDTH, 3)


def test_pictures_of_views_and_phrases_with_like_names_stay_apart(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    views = json.loads((out / "scene/views.json").read_text())
    for view, name in zip(views, ("a/x.png", "b/x.png", "a__x.png", "a%2Fx.png", "b/x.jpg"), strict=False):
        view["name"] = name
    (out / "scene/views.json").write_text(json.dumps(views))
    phrases = ["red ball", "Red ball", "red-ball", "red  ball"]
    assert main(["query", str(out), *phrases, "--view", "all", "--json"]) == 0
    paths = [path for row in json.loads(capsys.readouterr().out) for path in row["pictures"].values()]
    assert len({path.lower() for path in paths}) == len(paths) == len(views) * len(phrases) * 4
    assert str(out / "renders/query/red-ball/a%2Fx.png_heat.png") in paths
    for mode in ("rgb", "depth"):
        assert main(["render", str(out), "--view", "all", "--mode", mode, "--out", str(tmp_path / "pictures")]) == 0
    assert len(list((tmp_path / "pictures").iterdir())) == 2 * len(views)


def test_query_without_a_view_chooses_one(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", str(finished), "ball", "--no-pictures", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["view"].startswith("view_") and "pictures" not in row


def test_query_prints_a_table(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", str(finished), "ball", "--view", "view_01.png"]) == 0
    assert "view_01.png" in capsys.readouterr().out


def test_query_3d_writes_the_selected_splats(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gags.gaussians import read_splats

    assert main(["query", str(finished), "ball", "--3d", "--json", "--out", str(tmp_path), "--field", "lift"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["n_gaussians"] == len(row["gaussian_ids"]) > 0
    assert len(read_splats(Path(row["ply"]))) == row["n_gaussians"]
    low, high = np.array(row["box_world"])
    assert (low <= row["centroid_world"]).all() and (row["centroid_world"] <= high).all()


@pytest.mark.parametrize("mode", ["rgb", "depth", "feature", "granularity", "relevancy"])
def test_render_modes(finished: Path, mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phrase = ["--phrase", "ball"] if mode == "relevancy" else []
    assert (
        main(["render", str(finished), "--mode", mode, "--view", "view_04.png", "--out", str(tmp_path), *phrase]) == 0
    )
    path = Path(capsys.readouterr().out.strip())
    picture = np.asarray(Image.open(path))
    assert picture.shape == (tiny.HEIGHT, tiny.WIDTH, 3) and picture.std() > 1


def test_evaluate_writes_and_prints(finished: Path, tiny_scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = str(tiny_scene / "labels")
    assert main(["evaluate", str(finished), "--labels", labels, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((finished / "metrics/evaluation.json").read_text())
    assert {"miou", "localisation_accuracy", "protocol", "split", "per_phrase", "per_frame"} <= printed.keys()
    assert main(["evaluate", str(finished), "--labels", labels, "--field", "teacher"]) == 0
    table = capsys.readouterr().out
    assert "2D teacher" in table and "published" in table
    assert (finished / "metrics/evaluation_teacher.json").exists()


def test_doctor_finds_the_built_in_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["encoder conse"]["ok"] and findings["segmenter hierarchy"]["ok"]
    assert findings["cores"]["ok"]
    assert main(["doctor"]) == 0
    assert "SAM weights" in capsys.readouterr().out


def test_doctor_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from gags.commands import doctor

    missing = {"gsplat", "pycolmap", "efficientnet-lite-pytorch"}
    installed = doctor.version

    def version(package: str) -> str:
        if package in missing:
            raise PackageNotFoundError(package)
        return installed(package)

    monkeypatch.setattr(doctor, "version", version)
    with pytest.raises(SystemExit) as stopped:
        main(["doctor"])
    assert stopped.value.code == 1
    shown = capsys.readouterr().out
    assert shown.count("MISSING") == 3 and all(f"pip install {package}\n" in shown for package in missing)


def test_a_run_shows_its_trainings_to_a_watcher(finished: Path) -> None:
    assert RECORDER.seen == [
        f"{tiny.N_VIEWS} views",
        "training the splats: 40 of 60 iterations",
        "the splats are trained",
        "the splats are trained; masks and their features are made",
        "learning features: 50 of 90 iterations",
    ]


def test_query_looks_from_a_saved_camera(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "camera.json"
    camera = json.loads((finished / "scene/views.json").read_text())[2]["camera"]
    path.write_text(
        json.dumps(camera | {"width": 64, "height": 48, "cx_px": 32, "cy_px": 24, "fx_px": 62, "fy_px": 62})
    )
    assert main(["query", str(finished), "ball", "--camera", str(path), "--json", "--out", str(tmp_path)]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["view"] == "camera"
    assert np.asarray(Image.open(row["pictures"]["found"])).shape == (48, 64, 3)
    assert "found --view a" in mistake(["query", str(finished), "ball", "--camera", str(path), "--view", "a"], capsys)


def test_view_serves_until_interrupted(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gags.commands import view

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(view, "time", SimpleNamespace(sleep=interrupted))
    assert main(["view", str(finished), "--port", "8930", "--share-off"]) == 0
    shown = capsys.readouterr()
    assert "http://localhost:89" in shown.err and "the page is closed" in shown.err and shown.out == ""
    assert "expected an address of this machine" in mistake(["view", str(finished), "--host", "203.0.113.7"], capsys)
    assert "expected a text file" in mistake(["view", str(finished), "--vocabulary", "none.txt"], capsys)


def mistake(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with one line; returns the line."""
    assert main(arguments) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_mistakes_are_one_clear_line(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(finished)
    assert "expected phrases with at least one word each, found an empty phrase" in mistake(["query", run, " "], capsys)
    assert "expected phrases with at least one word each, found no phrase" in mistake(["query", run], capsys)
    assert "query --3d: expected no --view, since it searches the whole scene, found --view view_01.png" in mistake(
        ["query", run, "ball", "--3d", "--view", "view_01.png"], capsys
    )
    kernel = ["--kernel-px", "0"]
    assert "--kernel-px: expected at least 1, found 0" in mistake(["query", run, "ball", *kernel], capsys)
    assert "--kernel-px: expected at least 1, found 0" in mistake(["render", run, *kernel], capsys)
    assert "--max-side-px: expected at least 16, found 3" in mistake(["render", run, "--max-side-px", "3"], capsys)
    assert "expected a run folder with a run.json" in mistake(["query", str(tmp_path), "ball"], capsys)
    assert "view 'nowhere.png': expected the file name" in mistake(
        ["query", run, "ball", "--view", "nowhere.png"], capsys
    )
    assert "expected a phrase, found none" in mistake(["render", run, "--mode", "relevancy"], capsys)
    granularity = ["render", run, "--mode", "granularity", "--field", "lift"]
    assert "expected a field that learned granularity" in mistake(granularity, capsys)
    assert "expected a folder" in mistake(["run", str(tmp_path / "none"), "--out", str(tmp_path / "out")], capsys)
    assert "labels" in mistake(["evaluate", run, "--labels", str(tmp_path)], capsys)


def test_nothing_is_left_behind_by_a_run_that_cannot_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    empty = ["run", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]
    mistake(empty, capsys)
    assert "found nothing; check the path" in mistake(["run", str(tmp_path / "none"), *empty[2:]], capsys)
    assert "nowhere: expected a folder" in mistake([*empty, "--labels", str(tmp_path / "nowhere")], capsys)
    mistake([*empty, "--segmenter", "sam", "--segmenter-weights", str(tmp_path / "none.pth")], capsys)
    assert not (tmp_path / "out").exists()


def test_an_interruption_inside_compiled_code_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> None:
        raise SystemError("returned a result with an exception set") from KeyboardInterrupt()

    monkeypatch.setattr("gags.commands.doctor.main", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on where it stopped\n"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small tmpfs needs root on Linux")
@pytest.mark.parametrize("size", ["40k", "300k"])
def test_a_disk_that_fills_up_ends_a_run_with_one_clear_line(
    tiny_scene: Path, tmp_path: Path, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path)]
    if (failed := subprocess.run(mount, capture_output=True, check=False)).returncode:
        pytest.skip(f"mounting a tmpfs is not allowed here: {failed.stderr.decode().strip()}")
    try:
        few = ["--reconstruct.iterations", "20", "--reconstruct.checkpoint-every", "5", "--distill.iterations", "2"]
        line = mistake(["run", str(tiny_scene), "--out", str(tmp_path / "run"), *few], capsys)
        assert "disk is full" in line
        assert not [path for path in tmp_path.rglob("*") if "tmp" in path.name]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
