"""Laws of the targets and losses of the distillation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gags.distill._losses import (
    absolute_difference,
    balanced_rows,
    granularity_entropy,
    region_variance,
    sampled_rows,
)
from gags.distill._targets import (
    downscaled,
    mixed_embeddings,
    mixed_label_map,
    mixing_weights,
    resize_labels,
    target_feature_map,
    valid_pixels,
)
from gags.errors import GagsError

HEIGHT, WIDTH, MASKS, EMBEDDING = 7, 11, 6, 5


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _labels(pixels: int, count: int = MASKS, seed: int = 0) -> Tensor:
    return torch.randint(-1, count, (pixels,), generator=_generator(seed), dtype=torch.int32)


def _view(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Label maps [3, height, width], embeddings, weights [height, width, 3]."""
    label_maps = _labels(3 * HEIGHT * WIDTH, seed=seed).reshape(3, HEIGHT, WIDTH)
    embeddings = torch.randn(MASKS, EMBEDDING, generator=_generator(seed))
    weights = torch.rand(HEIGHT, WIDTH, 3, generator=_generator(seed + 1)).softmax(dim=-1)
    return label_maps, embeddings, weights


def _balanced_mean(values: Tensor, labels: Tensor) -> Tensor:
    rows = balanced_rows(labels)
    return rows.mean(values[rows.pixel_ids])


# --- region-balanced mean ---------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), factor=st.integers(2, 5))
def test_region_size_does_not_move_the_balanced_mean(sizes: list[int], factor: int) -> None:
    values = torch.rand(len(sizes), generator=_generator())
    even = _balanced_mean(values, torch.arange(len(sizes)))
    sizes_tensor = torch.tensor(sizes)
    grown = sizes_tensor * torch.where(torch.arange(len(sizes)) == 0, factor, 1)
    for repeat in (sizes_tensor, grown):
        labels = torch.arange(len(sizes)).repeat_interleave(repeat)
        torch.testing.assert_close(_balanced_mean(values.repeat_interleave(repeat), labels), even)


def test_balanced_mean_is_the_mean_of_region_means() -> None:
    values, labels = torch.rand(83, generator=_generator()), _labels(83)
    slow = torch.stack([values[labels == label].mean() for label in labels.unique() if label >= 0]).mean()
    torch.testing.assert_close(_balanced_mean(values, labels), slow)


def test_nothing_labelled_costs_nothing_but_stops_the_reference() -> None:
    values = torch.rand(9, requires_grad=True)
    labels = torch.full((9,), -1)
    loss = _balanced_mean(values, labels)
    loss.backward()
    assert loss == 0 and values.grad is not None and not values.grad.any()
    assert len(sampled_rows(labels, 4, np.random.default_rng(0)).pixel_ids) == 0
    with pytest.raises(GagsError, match="expected a labelled pixel, found none"):
        balanced_rows(labels, reference_quirks=True)


# --- sampled rows -----------------------------------------------------------------------------------------------------


def test_sampled_mean_is_unbiased() -> None:
    values, labels = torch.rand(97, generator=_generator()), _labels(97)
    valid = torch.rand(97, generator=_generator(1)) > 0.3
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(3000):
        rows = sampled_rows(labels, 13, rng).where(valid)
        draws.append(rows.mean(values[rows.pixel_ids]))
    estimate = torch.stack(draws)
    error = estimate.std() / len(draws) ** 0.5
    assert abs(estimate.mean() - _balanced_mean(values * valid, labels)) < 4 * error
    # spread evenly, the sample varies less than independent draws of as many pixels would
    rows = balanced_rows(labels).where(valid)
    per_pixel = torch.zeros(97).index_put((rows.pixel_ids,), values[rows.pixel_ids])
    all_rows = balanced_rows(labels)
    variance = (all_rows.weights * (per_pixel[all_rows.pixel_ids] - estimate.mean()) ** 2).sum()
    assert estimate.var() < variance / 13


@given(count=st.integers(1, 300), seed=st.integers(0, 20))
def test_sampled_rows_are_distinct_labelled_and_even(count: int, seed: int) -> None:
    labels = _labels(60, seed=seed)
    rows = sampled_rows(labels, count, np.random.default_rng(seed))
    assert (labels[rows.pixel_ids] >= 0).all()
    assert len(rows.pixel_ids.unique()) == len(rows.pixel_ids) <= count
    torch.testing.assert_close(rows.weights.sum(), torch.tensor(1.0))
    regions = labels[labels >= 0].unique()
    shares = torch.stack([rows.weights[labels[rows.pixel_ids] == region].sum() for region in regions])
    assert (shares * count - count / len(regions)).abs().max() < 2


def test_enough_samples_are_the_balanced_rows() -> None:
    labels = torch.tensor([2, 0, -1, 2, 0, 0, 5])
    sampled = sampled_rows(labels, 30_000, np.random.default_rng(0))
    full = balanced_rows(labels)
    order = sampled.pixel_ids.argsort()
    assert torch.equal(sampled.pixel_ids[order], full.pixel_ids)
    torch.testing.assert_close(sampled.weights[order], full.weights, rtol=0, atol=1e-4)


# --- variance, entropy, L1 --------------------------------------------------------------------------------------------


def test_region_variance_against_torch_var() -> None:
    labels = torch.cat([_labels(70), torch.tensor([MASKS])])  # the last region has one pixel
    fast = torch.randn(71, 3, generator=_generator(), dtype=torch.float64).requires_grad_()
    slow = fast.detach().clone().requires_grad_()
    parts = [slow[labels == label] for label in labels.unique() if label >= 0]
    expected = sum(part.var(dim=0).mean() * len(part) for part in parts if len(part) > 1) / len(labels)
    loss = region_variance(fast, labels)
    torch.testing.assert_close(loss, expected)
    for value in (loss, expected):
        value.backward()
    torch.testing.assert_close(fast.grad, slow.grad)


def test_region_variance_is_zero_where_regions_are_constant() -> None:
    labels = _labels(50)
    constant = torch.randn(MASKS, 4, generator=_generator())[labels.clamp(min=0).long()]
    assert region_variance(constant, labels).abs() < 1e-12
    alone = torch.arange(5)
    assert region_variance(torch.rand(5, 4), alone) == 0
    with pytest.raises(GagsError, match="expected a region of two pixels, found none"):
        region_variance(torch.rand(5, 4), alone, reference_quirks=True)


def test_entropy_is_zero_at_one_hot_and_largest_when_even() -> None:
    one_hot = torch.eye(3)[torch.arange(7) % 3]
    assert granularity_entropy(one_hot).abs() < 1e-6
    even = granularity_entropy(torch.full((4, 5, 3), 1 / 3))
    torch.testing.assert_close(even, torch.tensor(np.log(3) / 3, dtype=torch.float32), rtol=0, atol=1e-5)
    assert granularity_entropy(torch.rand(4, 5, 3, generator=_generator()).softmax(-1)) < even


def test_equal_features_have_no_gradient() -> None:
    prediction = torch.rand(3, 4, requires_grad=True)
    absolute_difference(prediction, prediction.detach()).sum().backward()
    assert prediction.grad is not None and not prediction.grad.any()


# --- targets ----------------------------------------------------------------------------------------------------------


def test_mixed_label_map_copies_the_winning_level_only() -> None:
    label_maps, _, _ = _view()
    for level in range(3):
        weights = torch.full((HEIGHT, WIDTH, 3), 0.2)
        weights[..., level] = 0.6
        assert torch.equal(mixed_label_map(weights, label_maps), label_maps[level])
    assert torch.equal(mixed_label_map(torch.full((HEIGHT, WIDTH, 3), 1 / 3), label_maps), label_maps[0])


@pytest.mark.parametrize("mode", ["soft", "hard", "median"])
def test_rows_of_the_target_map(mode: str) -> None:
    label_maps, embeddings, weights = _view()
    target, valid = target_feature_map(label_maps, embeddings, weights, mode)
    mixing = mixing_weights(weights, label_maps, mode)
    assert torch.equal(valid, valid_pixels(label_maps, mixing, mode)) and valid.any() and not valid.all()
    rows = mixed_embeddings(label_maps.flatten(1).T, embeddings, mixing.flatten(0, 1)).view_as(target)
    torch.testing.assert_close(rows[valid], target[valid])
    assert not target[(label_maps < 0).all(dim=0)].any()


def test_median_weights_against_torch_median() -> None:
    label_maps, _, weights = _view()
    mixing = mixing_weights(weights, label_maps, "median")
    torch.testing.assert_close(mixing.sum(dim=-1), torch.ones(HEIGHT, WIDTH))
    for label in range(MASKS):
        region = label_maps[0] == label
        median = weights[region].median(dim=0).values
        torch.testing.assert_close(mixing[region], (median / median.sum()).expand(int(region.sum()), 3))
    assert torch.equal(mixing[label_maps[0] < 0], weights[label_maps[0] < 0])


@pytest.mark.parametrize("mode", ["soft", "median"])
def test_target_gradients_against_differences(mode: str) -> None:
    label_maps, embeddings, weights = _view()

    def target(weights: Tensor) -> Tensor:
        return target_feature_map(label_maps, embeddings.double(), weights, mode)[0]

    assert torch.autograd.gradcheck(target, weights.double().requires_grad_())


def test_resize_labels_takes_the_floor() -> None:
    columns = torch.arange(WIDTH, dtype=torch.int32).repeat(2, HEIGHT, 1)
    assert resize_labels(columns, 3, 5)[0, 0].tolist() == [0, 2, 4, 6, 8]
    assert [downscaled(side, 2) for side in (37, 53, 50, 1)] == [18, 26, 25, 1]
