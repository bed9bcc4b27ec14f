"""Fixture 07: target features from label maps and granularity weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gags.distill._distill import view_losses
from gags.distill._targets import ViewLabels, downscaled, mixed_label_map, resize_labels, target_feature_map
from gags.geometry import Camera


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


@pytest.mark.parametrize("mode", ["soft", "median"])
def test_without_the_quirks_labelled_pixels_agree_and_others_mix_nothing_in(
    fixture: dict[str, Tensor], mode: str
) -> None:
    labels, weights = fixture["seg_map"][1:].int(), fixture["same_scale_map"].movedim(0, -1)
    target, valid = target_feature_map(labels, fixture["img_embed"], weights, mode)
    expected = fixture[f"same_{mode}_feature"].movedim(0, -1)
    assert torch.equal(valid.to(torch.uint8), fixture[f"same_{mode}_mask"][0])
    torch.testing.assert_close(target[valid], expected[valid], rtol=0, atol=1e-6)
    assert not target[(labels < 0).all(dim=0)].any()


def test_without_the_quirk_a_feature_may_begin_with_zero(fixture: dict[str, Tensor]) -> None:
    labels, weights = fixture["seg_map"][1:].int(), fixture["same_scale_map"].movedim(0, -1)
    target, valid = target_feature_map(labels, fixture["img_embed"], weights, "hard")
    winner = labels.gather(0, weights.argmax(dim=-1)[None])[0]
    assert torch.equal(valid, winner >= 0)
    torch.testing.assert_close(target, fixture["same_hard_feature"].movedim(0, -1), rtol=0, atol=1e-6)
    starts_with_zero = (winner >= 0) & (fixture["img_embed"][winner.clamp(min=0).long(), 0] == 0)
    assert torch.equal(valid & ~starts_with_zero, fixture["same_hard_mask"][0] > 0)


@pytest.mark.parametrize("quirks", [False, True])
def test_training_leaves_out_what_the_map_leaves_out(fixture: dict[str, Tensor], quirks: bool) -> None:
    """The distillation's rows: a loss that counts pixels counts those of the map's mask."""
    labels, weights = fixture["seg_map"][1:].int(), fixture["same_scale_map"].movedim(0, -1)
    _, valid = target_feature_map(labels, fixture["img_embed"], weights, "hard", reference_quirks=quirks)
    decoded: list[Tensor] = []

    def decode(pixel_ids: Tensor) -> Tensor:
        decoded.append(pixel_ids)
        return torch.zeros(len(pixel_ids), fixture["img_embed"].shape[1])

    height, width = valid.shape
    camera = Camera(torch.eye(4), 1.0, 1.0, width / 2, height / 2, width, height)
    view = ViewLabels(camera, labels, fixture["img_embed"])
    view_losses(torch.zeros(height, width, 2), weights, decode, view, None, "hard", False, quirks)
    inside = mixed_label_map(weights, labels) >= 0
    assert torch.equal(decoded[0], (valid & inside).flatten().nonzero()[:, 0])


def test_half_resolution(fixture: dict[str, Tensor]) -> None:
    labels = fixture["seg_map"].int()
    height, width = (downscaled(side, 2) for side in labels.shape[1:])
    assert torch.equal(resize_labels(labels, height, width), fixture["half_seg_map"].int())
