"""Fixture 08: mixed labels, the losses, their gradients and the whole objective."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gags.distill import DistillConfig
from gags.distill._distill import view_losses
from gags.distill._losses import absolute_difference, balanced_rows, granularity_entropy, region_variance
from gags.distill._targets import ViewLabels, mixed_label_map, target_feature_map
from gags.errors import GagsError
from gags.geometry import Camera

ATOL_VALUE = 2e-7


@pytest.fixture(scope="module")
def fixture(parity_dir: Path) -> dict[str, Tensor]:
    """The arrays, images channels-last."""
    with np.load(parity_dir / "08_distill_losses.npz", allow_pickle=False) as arrays:
        tensors = {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}
    labels = {key: tensors.pop(key).int() for key in ("seg_map", "trained_seg")}
    return labels | {key: value.movedim(0, -1) if value.ndim == 3 else value for key, value in tensors.items()}


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_()


def _assert_value(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL_VALUE)


def _assert_gradient(leaf: Tensor, expected: Tensor) -> None:
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_mixed_label_map(fixture: dict[str, Tensor]) -> None:
    assert torch.equal(mixed_label_map(fixture["scale_map"], fixture["seg_map"][1:]), fixture["trained_seg"])


def test_absolute_difference(fixture: dict[str, Tensor]) -> None:
    pred, gt = _leaf(fixture["pred"]), _leaf(fixture["gt"])
    difference = absolute_difference(pred, gt)
    _assert_value(difference, fixture["l1_map"])
    _assert_value(difference.mean(), fixture["l1_mean"])
    (difference * fixture["l1_map_upstream"]).sum().backward()
    _assert_gradient(pred, fixture["l1_map_grad_pred"])
    _assert_gradient(gt, fixture["l1_map_grad_gt"])


def test_region_balanced_mean(fixture: dict[str, Tensor]) -> None:
    values = _leaf(fixture["balance_loss_map"])
    rows = balanced_rows(fixture["trained_seg"].flatten())
    loss = rows.mean(values.flatten()[rows.pixel_ids])
    loss.backward()
    _assert_value(loss, fixture["balance_loss"])
    _assert_gradient(values, fixture["balance_grad"])


def test_region_variance(fixture: dict[str, Tensor]) -> None:
    features = _leaf(fixture["region_feature"])
    loss = region_variance(features.flatten(0, 1), fixture["trained_seg"].flatten())
    loss.backward()
    _assert_value(loss, fixture["region_variance_loss"])
    _assert_gradient(features, fixture["region_variance_grad"])


def test_entropy(fixture: dict[str, Tensor]) -> None:
    weights = _leaf(fixture["scale_map"])
    loss = granularity_entropy(weights)
    loss.backward()
    _assert_value(loss, fixture["entropy_loss"])
    _assert_gradient(weights, fixture["entropy_grad"])


def test_without_regions_we_go_on_and_the_reference_stops(fixture: dict[str, Tensor]) -> None:
    nothing = torch.full_like(fixture["trained_seg"], -1).flatten()
    features, values = fixture["region_feature"].flatten(0, 1), fixture["balance_loss_map"].flatten()
    rows = balanced_rows(nothing)
    assert rows.mean(values[rows.pixel_ids]) == 0 == region_variance(features, nothing)
    alone = nothing.clone()
    alone[0], alone[-1] = 0, 1
    assert region_variance(features, alone) == 0
    with pytest.raises(GagsError, match="expected a labelled pixel, found none"):
        balanced_rows(nothing, reference_quirks=True)
    for labels in (nothing, alone):
        with pytest.raises(GagsError, match="expected a region of two pixels, found none"):
            region_variance(features, labels, reference_quirks=True)


def test_the_weights_are_the_defaults(fixture: dict[str, Tensor]) -> None:
    config = DistillConfig()
    # Counted from 0: the reference's 15 000th and 15 001st iteration.
    for row, iteration in enumerate((14_999, 15_000)):
        found = torch.tensor([1.0, *config.loss_weights(iteration)])
        assert torch.equal(found, fixture["objective_weights"][row])


@pytest.mark.parametrize("quirks", [False, True])
@pytest.mark.parametrize("phase", ["early", "late"])
def test_objective(fixture: dict[str, Tensor], phase: str, quirks: bool) -> None:
    pred, weights, features = (_leaf(fixture[key]) for key in ("pred", "scale_map", "region_feature"))
    seg_map = fixture["seg_map"][1:]
    target, valid = target_feature_map(seg_map, fixture["img_embed"], weights.detach(), reference_quirks=True)
    _assert_value(target, fixture["objective_target"])
    assert torch.equal(valid.to(torch.uint8), fixture["objective_mask"][..., 0])

    height, width = seg_map.shape[1:]
    camera = Camera(torch.eye(4), 1.0, 1.0, width / 2, height / 2, width, height)
    losses = view_losses(
        features,
        weights,
        lambda pixel_ids: pred.flatten(0, 1)[pixel_ids],
        ViewLabels(camera, seg_map, fixture["img_embed"]),
        sample=None,
        reference_quirks=quirks,
    )
    distill, entropy, region = fixture["objective_weights"][int(phase == "late")]
    total = distill * losses.distill + entropy * losses.entropy + region * losses.region
    total.backward()
    _assert_value(losses.distill, fixture[f"objective_{phase}_distill"])
    _assert_value(total, fixture[f"objective_{phase}"])
    _assert_gradient(pred, fixture[f"objective_{phase}_grad_pred"])
    _assert_gradient(weights, fixture[f"objective_{phase}_grad_scale_map"])
    if phase == "late":
        _assert_gradient(features, fixture["objective_late_grad_region_feature"])
