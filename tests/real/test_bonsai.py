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
from gags.runs import FIELD_KINDS, FieldKind, Run, evaluate_run
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


@pytest.mark.parametrize("kind", FIELD_KINDS)
def test_every_field_answers_in_a_view(bonsai: Run, kind: FieldKind) -> None:
    view = bonsai.scene.view("DSCF5653.jpg")
    (hit,) = query(bonsai.field(kind), view.camera, ["bicycle"], bonsai.encoder, QueryConfig())
    assert hit.relevancy.shape == (view.camera.height, view.camera.width)
    assert torch.isfinite(hit.relevancy).all() and hit.relevancy.std() > 0.001
    x, y = hit.point_xy_px
    assert 0 <= x < view.camera.width and 0 <= y < view.camera.height


@pytest.mark.parametrize(
    ("kind", "miou", "localised"), [("galift", 0.15, 0.35), ("lift", 0.08, 0.2), ("gad", 0.005, 0.0)]
)
def test_metrics_are_better_than_nothing(
    bonsai: Run, scenes_dir: Path, kind: FieldKind, miou: float, localised: float
) -> None:
    """gad's few iterations here only show that it runs: benchmarks/README.md has the figures of a whole one."""
    result = evaluate_run(bonsai, scenes_dir / "bonsai/labels", kind, QueryConfig()).to_json()
    assert result["protocol"] == "rendered" and result["n_pairs"] >= 5
    assert result["localisation_accuracy"] >= localised
    assert result["miou"] > miou
