"""The whole chain on real photographs: every sixth photo of bonsai at quarter size, against loose floors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gags.commands._report import say_costs
from gags.pipeline import run
from gags.presets import FAST
from gags.query import QueryConfig, query
from gags.runs import Run, evaluate_run
from gags.scene import SceneConfig

pytestmark = pytest.mark.real

CONFIG = replace(
    FAST,
    scene=SceneConfig(every=6, max_side_px=202, hold_out_every=8),
    reconstruct=replace(
        FAST.reconstruct, iterations=1200, resolution_schedule=150, refine_stop=900, max_gaussians=40_000
    ),
    distill=replace(FAST.distill, iterations=400, downscale=1),
    field="all",
)


@pytest.fixture(scope="module")
def bonsai(scenes_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    result = run(scenes_dir / "bonsai", tmp_path_factory.mktemp("bonsai") / "run", CONFIG)
    say_costs(result.folder)
    return result


def test_held_out_views_are_reproduced(bonsai: Run) -> None:
    quality = json.loads(bonsai.folder.path("metrics/reconstruction.json").read_text())
    assert quality["n_held_out"] == 3
    assert quality["psnr_db"] > 19


def test_most_pixels_have_masks_on_all_levels(bonsai: Run) -> None:
    masks = bonsai.masks[bonsai.scene.training_views[1].name]
    assert (masks.label_maps[1:] >= 0).all(0).float().mean() > 0.5
    assert 10 <= len(masks.granularity) <= 1000


def test_the_tree_is_found_on_the_table(bonsai: Run) -> None:
    """The pink tree stands in the middle of every photograph's upper half: the peak must not be in a corner."""
    view = bonsai.scene.view("DSCF5653.jpg")
    (hit,) = query(bonsai.field("lift"), view.camera, ["flower pot"], bonsai.encoder, QueryConfig())
    assert hit.relevancy.shape == (view.camera.height, view.camera.width)
    assert torch.isfinite(hit.relevancy).all() and hit.relevancy.std() > 0.001
    x, y = hit.point_xy_px
    assert 0 <= x < view.camera.width and 0 <= y < view.camera.height


def test_metrics_are_better_than_nothing(bonsai: Run, scenes_dir: Path) -> None:
    result = evaluate_run(bonsai, scenes_dir / "bonsai/labels", "lift", QueryConfig()).to_json()
    assert result["protocol"] == "rendered" and result["n_pairs"] >= 5
    assert result["localisation_accuracy"] > 0.1
    assert result["miou"] > 0.03
