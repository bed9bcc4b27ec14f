"""gags ablate on the tiny scene: seven settings, stages shared between them, resume, the table."""

from __future__ import annotations

import dataclasses
import io
import json
import statistics
from pathlib import Path

import pytest
from rich.console import Console

import tiny
from gags.cli import main
from gags.commands.ablate import PAPER, SETTINGS, SettingName, ablate, ablation_json, ablation_table
from gags.errors import GagsError
from gags.pipeline import RunConfig
from gags.presets import TINY
from gags.query import QueryConfig
from gags.runs import open_run

QUERY = QueryConfig(kernel_px=5)
CONFIG = dataclasses.replace(
    TINY,
    reconstruct=dataclasses.replace(TINY.reconstruct, iterations=30),
    distill=dataclasses.replace(TINY.distill, iterations=8, pixels_per_iteration=128),
)


def test_the_seven_settings_are_the_papers() -> None:
    settings = [SETTINGS[name] for name in PAPER]
    assert len(set(settings)) == 7 and {setting.field for setting in settings} == {"gad"}
    assert {setting.levels for setting in settings if setting.prompts == "uniform"} == {"s", "m", "l", "mean", "gad"}
    assert {setting.levels for setting in settings if setting.prompts == "depth"} == {"mean", "gad"}


def test_what_does_not_differ_is_made_once_and_kept(tiny_scene: Path, tmp_path: Path) -> None:
    settings: tuple[SettingName, ...] = ("uniform-s", "depth-mean", "depth-gad")
    models = (tiny.TrueSegmenter(), tiny.TrueEncoder())
    found = ablate(tiny_scene, tmp_path, CONFIG, QUERY, settings, 2, "rendered", *models)
    runs = {path.name: path for path in tmp_path.iterdir()}
    assert runs.keys() == {f"{name}-{seed}" for name in settings for seed in (0, 1)}

    def same(stage_file: str, one: str, other: str) -> bool:
        return (runs[one] / stage_file).samefile(runs[other] / stage_file)

    masks, features = "masks/view_00.png.npz", "features/view_00.png.safetensors"
    for name in runs:
        assert same("splats/splats.ply", "uniform-s-0", name) and same(
            "depth/view_01.png.safetensors", "uniform-s-0", name
        )
        prompts, _, seed = name.split("-")
        donor = "uniform-s-0" if prompts == "uniform" else f"depth-mean-{seed}"
        assert same(masks, donor, name) and same(features, donor, name)
        assert open_run(runs[name], tiny.TrueEncoder()).field("gad") is not None
    assert not same(masks, "depth-gad-0", "depth-gad-1") and not same(masks, "depth-gad-0", "uniform-s-0")
    fields = {(path / "field/gad/field.safetensors").read_bytes() for path in runs.values()}
    assert len(fields) == 6

    times = {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != "run.json"
    }
    assert ablate(tiny_scene, tmp_path, CONFIG, QUERY, settings, 2, "rendered", *models) == found
    assert times == {path: path.stat().st_mtime_ns for path in times}

    report = json.loads(json.dumps(ablation_json(found)))
    row = next(row for row in report["settings"] if row["name"] == "depth-gad")
    values = [outcome.evaluation.miou for outcome in found["depth-gad"]]
    assert row["miou"]["by_seed"] == values and row["miou"]["deviation"] == pytest.approx(statistics.stdev(values))
    console = Console(width=140, file=io.StringIO())
    console.print(ablation_table(found))
    text = console.file.getvalue()
    assert "published" in text and "depth (GaS)" in text and f"{100 * row['miou']['mean']:.1f} ±" in text


def test_training_free_fields_share_what_gad_learns_from(tiny_scene: Path, tmp_path: Path) -> None:
    settings: tuple[SettingName, ...] = ("depth-gad", "depth-lift", "depth-galift")
    found = ablate(
        tiny_scene, tmp_path, CONFIG, QUERY, settings, 1, "rendered", tiny.TrueSegmenter(), tiny.TrueEncoder()
    )
    for name, kind in zip(settings, ("gad", "lift", "galift"), strict=True):
        run = tmp_path / f"{name}-0"
        assert [path.name for path in (run / "field").iterdir()] == [kind]
        assert (run / "masks/stage.json").samefile(tmp_path / "depth-gad-0/masks/stage.json")
        assert found[name][0].field_seconds > 0
    assert [row["field"] for row in ablation_json(found)["settings"]] == ["gad", "lift", "galift"]


def test_changed_geometry_replaces_what_was_shared(tiny_scene: Path, tmp_path: Path) -> None:
    settings: tuple[SettingName, ...] = ("uniform-s", "uniform-l")
    models = (tiny.TrueSegmenter(), tiny.TrueEncoder())
    ablate(tiny_scene, tmp_path, CONFIG, QUERY, settings, 1, "rendered", *models)
    before = (tmp_path / "uniform-l-0/splats/splats.ply").read_bytes()
    changed = dataclasses.replace(CONFIG, reconstruct=dataclasses.replace(CONFIG.reconstruct, iterations=20))
    ablate(tiny_scene, tmp_path, changed, QUERY, settings, 1, "rendered", *models)
    one, other = (tmp_path / f"uniform-{levels}-0/splats/splats.ply" for levels in "sl")
    assert one.samefile(other) and other.read_bytes() != before


@pytest.mark.usefixtures("true_models")
def test_the_command_writes_and_prints(tiny_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--settings",
        "uniform-s",
        "uniform-m",
        "--reconstruct.iterations",
        "20",
        "--distill.iterations",
        "3",
        "--seeds",
        "1",
    ]
    command = ["ablate", str(tiny_scene), "--out", str(tmp_path), "--labels", str(tiny_scene / "labels"), *flags]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "ablation.json").read_text())
    assert printed == {key: written[key] for key in printed}
    assert [row["levels"] for row in printed["settings"]] == ["s", "m"]
    assert printed["settings"][0]["miou"]["deviation"] is None
    assert written["config"]["reconstruct"]["iterations"] == 20
    assert main(command) == 0
    assert "protocol: rendered" in capsys.readouterr().out
    assert main([*command, "--seeds", "0"]) == 1
    assert "--seeds: expected at least 1, found 0" in capsys.readouterr().err


def test_without_labels_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(GagsError, match=r"ablate: expected labels in .*, found none"):
        ablate(tmp_path, tmp_path / "out", CONFIG, QUERY, PAPER, 1)
    with pytest.raises(GagsError, match=r"--query.kernel-px: expected at least 1, found 0"):
        ablate(tmp_path, tmp_path / "out", CONFIG, QueryConfig(kernel_px=0), PAPER, 1)
    labelled = dataclasses.replace(CONFIG, labels=tmp_path, decoders=tmp_path)
    with pytest.raises(GagsError, match=r"ablate --decoders .* expected masks and fields to be made"):
        ablate(tmp_path, tmp_path / "out", labelled, QUERY, PAPER, 1)


def test_short_flags_of_run_make_one_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[RunConfig] = []

    def stop(source: Path, out: Path, config: RunConfig, **_: object) -> None:
        asked.append(config)
        raise GagsError("far enough")

    monkeypatch.setattr("gags.commands.run.run", stop)
    command = ["run", str(tmp_path), "--out", str(tmp_path / "out"), "--field", "all"]
    for flags in ([], ["--levels", "m", "--prompts", "uniform"], ["--levels", "gad", "--lift.levels", "l"]):
        assert main([*command, *flags]) == 1
    found = [(config.segment.prompts, config.distill.levels, config.lift.levels) for config in asked]
    assert found == [("depth", "gad", "mean"), ("uniform", "m", "m"), ("depth", "gad", "l")]


def test_the_granularity_aware_lift_takes_no_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path), "--out", str(tmp_path / "out"), "--levels", "l"]) == 1
    assert "--levels l: expected --field gad, lift or all, found galift" in capsys.readouterr().err
