"""Fixture 07: target features from label maps and granularity weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gags.distill._targets import downscaled, resize_labels, target_feature_map


@pytest.fixture(scope="module")
def fixture(parity_dir: Path) -> dict[str, Tensor]:
    with np.load(parity_dir / "07_target_feature_map.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.mark.parametrize("mode", ["soft", "hard", "median"])
@pytest.mark.parametrize("size", ["same", "resized"])
def test_features_and_mask(fixture: dict[str, Tensor], size: str, mode: str) -> None:
    target, valid = target_feature_map(
        fixture["seg_map"][1:].int(),
        fixture["img_embed"],
        fixture[f"{size}_scale_map"].movedim(0, -1),
        mode,
        reference_quirks=True,
    )
    torch.testing.assert_close(target.movedim(-1, 0), fixture[f"{size}_{mode}_feature"], rtol=0, atol=1e-6)
    assert torch.equal(valid.to(torch.uint8), fixture[f"{size}_{mode}_mask"][0])


def test_gradient_of_the_weights(fixture: dict[str, Tensor]) -> None:
    weights = fixture["same_scale_map"].movedim(0, -1).clone().requires_grad_()
    target, _ = target_feature_map(
        fixture["seg_map"][1:].int(), fixture["img_embed"], weights, "soft", reference_quirks=True
    )
    (target * fixture["same_soft_upstream"].movedim(0, -1)).sum().backward()
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad.movedim(-1, 0), fixture["same_soft_grad_scale_map"], rtol=0, atol=2e-6)


def test_without_the_quirks_valid_pixels_agree(fixture: dict[str, Tensor]) -> None:
    weights = fixture["same_scale_map"].movedim(0, -1)
    target, valid = target_feature_map(fixture["seg_map"][1:].int(), fixture["img_embed"], weights)
    expected = fixture["same_soft_feature"].movedim(0, -1)
    torch.testing.assert_close(target[valid], expected[valid], rtol=0, atol=1e-6)


def test_half_resolution(fixture: dict[str, Tensor]) -> None:
    labels = fixture["seg_map"].int()
    height, width = (downscaled(side, 2) for side in labels.shape[1:])
    assert torch.equal(resize_labels(labels, height, width), fixture["half_seg_map"].int())
