"""The preset paper holds the publication's numbers, by name; the others differ from it in effort alone."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import torch

from gags.distill import DistillConfig, FeatureDecoder, GranularityDecoder
from gags.distill._distill import _Training
from gags.pipeline import RunConfig
from gags.presets import PAPER, PRESETS
from gags.query import QueryConfig
from gags.segment import mask_nms
from gags.segment._prompts import CELLS_PER_SIDE, PATCHES_PER_SIDE

PAPER_NUMBERS: dict[str, dict[str, Any]] = {
    "segment": {
        "prompts": "depth",
        "occlusion_tolerance": 0.25,
        "min_per_side": 4,
        "max_per_side": 20,
        "min_predicted_iou": 0.7,
        "min_stability": 0.85,
        "max_box_iou": 0.7,
        "min_region_px": 100,
        "max_mask_iou": 0.8,
        "min_score": 0.7,
    },
    "encode": {"outside": "black", "scene_prior": 0.0},
    "distill": {
        "iterations": 30_000,
        "downscale": 2,
        "views_per_iteration": 1,
        "pixels_per_iteration": None,
        "subspace_width": None,
        "feature_width": 16,
        "feature_lr": 1e-3,
        "adam_eps": 1e-15,
        "decoder_lr": 1e-4,
        "final_lr": 1.0,
        "decoder_dtype": "float32",
        "entropy_weight": (0.001, 0.002),
        "region_weight": 0.1,
        "late_start": 0.5,
        "levels": "gad",
        "target": "soft",
    },
}

EFFORT = {
    "iterations",
    "pixels_per_iteration",
    "subspace_width",
    "feature_lr",
    "decoder_lr",
    "final_lr",
    "decoder_dtype",
    "max_side_px",
    "checkpoint_every",
}
"""What a shorter schedule of the same objective may change."""

BUILT_IN = {"scene_prior"}
"""Of the built-in encoder alone, which the paper does not have."""


@pytest.mark.parametrize(
    ("stage", "name", "value"),
    [(stage, name, value) for stage, numbers in PAPER_NUMBERS.items() for name, value in numbers.items()],
)
def test_the_preset_paper_is_the_paper(stage: str, name: str, value: Any) -> None:
    assert getattr(getattr(PAPER, stage), name) == value


def test_the_paper_s_other_numbers() -> None:
    assert PRESETS["paper"] is PAPER
    assert (PATCHES_PER_SIDE, CELLS_PER_SIDE) == (8, 10)
    suppression = inspect.signature(mask_nms).parameters
    defaults = {name: suppression[name].default for name in ("max_iou", "min_score", "inside", "covered")}
    assert defaults == {"max_iou": 0.8, "min_score": 0.7, "inside": 0.85, "covered": 0.5}
    query = QueryConfig()
    assert query.negatives == ("object", "things", "stuff", "texture")
    assert (query.temperature, query.threshold, query.kernel_px, query.majority_radius_px) == (10.0, 0.4, 30, 3)
    assert (query.smooth_radius, query.smooth_votes, query.smooth_min_votes) == (0.05, 20, 10)


def test_the_paper_s_networks_and_their_optimiser() -> None:
    def widths(decoder: torch.nn.Module) -> list[int]:
        layers = [layer for layer in decoder.modules() if isinstance(layer, torch.nn.Linear)]
        return [layers[0].in_features, *(layer.out_features for layer in layers)]

    assert widths(FeatureDecoder(16, 512)) == [16, *[256] * 8, 512]
    assert widths(GranularityDecoder(16)) == [16, 64, 128, 64, 32, 16, 3]
    training = _Training(3, 512, PAPER.distill, torch.device("cpu"))
    assert not training.features.any()
    features, decoders = training.optimizer.param_groups
    assert isinstance(training.optimizer, torch.optim.Adam)
    assert (features["lr"], features["eps"], decoders["lr"]) == (1e-3, 1e-15, 1e-4)


def test_the_late_weights_hold_from_iteration_15_001() -> None:
    assert PAPER.distill.loss_weights(14_999) == (0.001, 0.0)
    assert PAPER.distill.loss_weights(15_000) == (0.002, 0.1)


@pytest.mark.parametrize("preset", ["fast", "balanced"])
def test_other_presets_have_the_same_objective(preset: str) -> None:
    chosen: RunConfig = PRESETS[preset]
    for stage in ("segment", "encode", "distill", "lift"):
        found, paper = (dataclasses.asdict(getattr(config, stage)) for config in (chosen, PAPER))
        assert {name for name in paper if found[name] != paper[name]} <= EFFORT | BUILT_IN, stage


def test_the_region_variance_begins_with_the_late_weights() -> None:
    config = DistillConfig(iterations=7, late_start=0.5)
    assert [config.loss_weights(iteration)[1] > 0 for iteration in range(7)] == [False] * 4 + [True] * 3


def test_learning_rates_fall_in_the_late_half_alone() -> None:
    assert PAPER.distill.learning_rates(0) == PAPER.distill.learning_rates(29_999) == (1e-3, 1e-4)
    config = DistillConfig(iterations=8, feature_lr=0.08, decoder_lr=0.8, final_lr=1 / 16)
    rates = [config.learning_rates(iteration) for iteration in range(9)]
    assert rates[:5] == [(0.08, 0.8)] * 5
    assert [decoder for _, decoder in rates[5:]] == pytest.approx([0.4, 0.2, 0.1, 0.05])
    assert [features for features, _ in rates[5:]] == pytest.approx([0.04, 0.02, 0.01, 0.005])
    # with nothing late they stay
    assert dataclasses.replace(config, late_start=1.0).learning_rates(7) == (0.08, 0.8)
