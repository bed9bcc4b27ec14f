"""One switch restores the reference implementation in every stage, in queries and in evaluation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import tiny
from gags.cli import main
from gags.pipeline import RunConfig, run
from gags.presets import TINY
from gags.query import QueryConfig
from gags.runs import Run, evaluate_run
from gags.segment._prompts import depth_prompts, nearest_depth_map, nearest_depths

QUICK = dataclasses.replace(
    TINY,
    reconstruct=dataclasses.replace(TINY.reconstruct, iterations=40),
    distill=dataclasses.replace(TINY.distill, iterations=20),
)


@pytest.fixture(scope="module")
def finished(tiny_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("quirks") / "run"
    config = dataclasses.replace(QUICK, reference_quirks=True)
    return run(tiny_scene, out, config, segmenter=tiny.TrueSegmenter(), encoder=tiny.TrueEncoder())


def test_the_switch_reaches_every_stage_that_has_quirks() -> None:
    config = dataclasses.replace(RunConfig(), reference_quirks=True).with_quirks()
    stages = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    quirks = {name: stage.reference_quirks for name, stage in stages.items() if hasattr(stage, "reference_quirks")}
    assert quirks.keys() >= {"segment", "encode", "distill"} and all(quirks.values())
    assert RunConfig().with_quirks() == RunConfig()


def test_a_run_records_and_uses_the_quirks(finished: Run) -> None:
    for stage, name in (("masks", "segment"), ("features", "encode"), ("field/gad", "distill")):
        assert finished.folder.finished_stage(stage).ingredients[name]["reference_quirks"] is True
    assert finished.description["config"]["reference_quirks"] is True
    config, views = QUICK.segment, finished.scene.training_views
    cameras = [view.camera for view in views]
    nearest = nearest_depths(finished.gaussians, cameras, [finished.depths[view.name] for view in views])
    for view in views[:2]:
        depth = finished.depths[view.name]
        sparse = nearest_depth_map(finished.gaussians, view.camera, depth, nearest, reference_quirks=True)
        prompts = depth_prompts(depth, sparse, (config.seed,), reference_quirks=True)
        assert torch.equal(finished.masks[view.name].prompts_xy_px, prompts)


def test_queries_and_evaluation_of_the_run_follow_it(finished: Run, tiny_scene: Path) -> None:
    assert finished.query_config(QueryConfig()).reference_quirks
    query = QueryConfig(kernel_px=5)
    # Number 3, and the third of the sorted names: these begin at 0, so that it is another image than the label's.
    evaluation = evaluate_run(finished, tiny_scene / "labels", None, query)
    assert tiny.HELD_OUT == "view_03.png" and set(evaluation.by_frame) == {"view_02.png"}


def test_other_runs_follow_the_flag_of_the_command(finished: Run, tiny_scene: Path, tmp_path: Path) -> None:
    splats = finished.folder.path("splats/splats.ply")
    config = dataclasses.replace(QUICK, field="lift", splats=splats)
    plain = run(tiny_scene, tmp_path / "run", config, segmenter=tiny.TrueSegmenter(), encoder=tiny.TrueEncoder())
    assert not plain.query_config(QueryConfig()).reference_quirks
    frames = {
        quirks: set(evaluate_run(plain, tiny_scene / "labels", None, QueryConfig(reference_quirks=quirks)).by_frame)
        for quirks in (False, True)
    }
    assert frames == {False: {"view_03.png"}, True: {"view_02.png"}}
    name = plain.scene.training_views[0].name
    assert not torch.equal(plain.masks[name].prompts_xy_px, finished.masks[name].prompts_xy_px)


@pytest.mark.parametrize("command", ["run", "query", "evaluate"])
def test_the_commands_have_the_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--reference-quirks" in capsys.readouterr().out
