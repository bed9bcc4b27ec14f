"""Filters, suppression, label maps and storage of masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Bool
from scipy import ndimage
from torch import Tensor

from gags.segment import Granularity, arrays_to_view_masks, mask_nms, view_masks_to_arrays
from gags.segment._masks import (
    Candidates,
    assemble,
    box_nms,
    clean,
    distinct,
    intersections,
    mask_boxes,
    paint,
    without_small_regions,
)


def random_masks(seed: int, n: int = 9, height: int = 17, width: int = 23) -> Bool[Tensor, "mask height width"]:
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, height, width), bool)
    for mask in masks:
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(1, 9), x : x + rng.integers(1, 12)] = True
    return torch.from_numpy(masks)


def candidates(masks: Bool[Tensor, "mask height width"], seed: int = 0) -> Candidates:
    generator = torch.Generator().manual_seed(seed)
    return Candidates(masks, 0.7 + 0.3 * torch.rand(len(masks), generator=generator), torch.full((len(masks),), 0.99))


@given(st.integers(0, 10_000))
def test_intersections_equal_the_plain_count(seed: int) -> None:
    masks = random_masks(seed)
    flat = masks.flatten(1).float()
    torch.testing.assert_close(intersections(masks), flat @ flat.T)


@given(st.integers(0, 10_000))
def test_mask_nms_equals_its_rule_read_aloud(seed: int) -> None:
    masks = random_masks(seed)
    score = candidates(masks, seed).score
    kept = []
    for i in range(len(masks)):
        alive = bool(score[i] > 0.7)
        for j in range(len(masks)):
            if i == j:
                continue
            shared = (masks[i] & masks[j]).sum()
            better = score[j] > score[i] or (score[j] == score[i] and j < i)
            alive &= not (better and shared / (masks[i] | masks[j]).sum() > 0.8)
            alive &= not (shared / masks[i].sum() >= 0.85 and shared / masks[j].sum() < 0.5)
        if alive:
            kept.append(i)
    assert mask_nms(masks, score).tolist() == kept


def test_mask_nms_of_nothing_is_nothing() -> None:
    assert mask_nms(torch.zeros(0, 3, 4, dtype=torch.bool), torch.zeros(0)).tolist() == []


@given(st.integers(0, 10_000))
def test_boxes_hold_their_masks_tightly(seed: int) -> None:
    masks = torch.cat([random_masks(seed), torch.zeros(1, 17, 23, dtype=torch.bool)])
    boxes = mask_boxes(masks)
    for mask, (x0, y0, x1, y1) in zip(masks[:-1], boxes.tolist(), strict=False):
        assert mask.sum() == mask[y0 : y1 + 1, x0 : x1 + 1].sum()
        assert mask[y0].any() and mask[y1].any() and mask[:, x0].any() and mask[:, x1].any()
    assert boxes[-1].tolist() == [0, 0, 0, 0]


def test_box_nms_keeps_the_best_of_overlapping_boxes() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [30, 0, 40, 10], [0, 0, 10, 10]])
    assert box_nms(boxes, torch.tensor([0.8, 0.9, 0.7, 0.8]), 0.7).tolist() == [1, 2]
    assert box_nms(boxes, torch.tensor([0.8, 0.7, 0.7, 0.8]), 0.7).tolist() == [0, 2]
    assert box_nms(boxes, torch.tensor([0.8, 0.9, 0.7, 0.8]), 0.99).tolist() == [0, 1, 2]


def test_small_islands_and_holes_go_and_nothing_else() -> None:
    mask = np.zeros((40, 30), bool)
    mask[5:25, 5:25] = True
    mask[10:12, 10:12] = False  # a hole of 4 pixels
    mask[15:22, 15:22] = False  # a hole of 49
    mask[30:32, 3:6] = True  # an island of 6
    cleaned = without_small_regions(mask, 20)
    expected = mask.copy()
    expected[10:12, 10:12], expected[30:32, 3:6] = True, False
    np.testing.assert_array_equal(cleaned, expected)
    tiny = np.zeros((9, 8), bool)
    tiny[2, 2] = tiny[6:8, 6] = True
    assert without_small_regions(tiny, 20).sum() == 2, "the largest island stays"
    assert ndimage.label(without_small_regions(tiny, 20))[1] == 1


def test_clean_prefers_masks_it_did_not_change() -> None:
    whole = torch.zeros(2, 30, 30, dtype=torch.bool)
    whole[:, 5:25, 5:25] = True
    whole[0, 12, 12] = False
    sure = Candidates(whole, torch.tensor([0.9, 0.8]), torch.ones(2))
    assert len(clean(sure, 0, 1.0).masks) == 2
    (kept,) = clean(Candidates(whole, torch.tensor([0.9, 0.9]), torch.ones(2)), 4, 0.7).masks
    assert kept[12, 12]


def test_distinct_keeps_the_first_of_equal_masks_and_no_empty_one() -> None:
    masks = random_masks(3, 4)
    repeated = torch.cat([masks, masks[1:3], torch.zeros(1, 17, 23, dtype=torch.bool)])
    result = distinct(candidates(repeated))
    assert torch.equal(result.masks, masks)


def test_later_masks_are_painted_over_earlier_ones() -> None:
    masks = torch.zeros(2, 3, 4, dtype=torch.bool)
    masks[0, :2] = True
    masks[1, 1:, :3] = True
    expected = [[5, 5, 5, 5], [6, 6, 6, 5], [6, 6, 6, -1]]
    assert paint(masks, 5).tolist() == expected


@pytest.mark.parametrize("counts", [(3, 2, 0, 4), (0, 0, 0, 0), (1, 1, 1, 1)])
def test_labels_run_through_the_levels_and_storage_loses_nothing(counts: tuple[int, ...]) -> None:
    levels = [candidates(random_masks(i, n)) for i, n in enumerate(counts)]
    view = assemble(levels, torch.rand(5, 2))
    assert view.granularity.tolist() == [int(g) for g, n in zip(Granularity, counts, strict=True) for _ in range(n)]
    for g, label_map in zip(Granularity, view.label_maps, strict=True):
        rows = torch.nonzero(view.granularity == int(g)).flatten()
        labels = label_map[label_map >= 0].unique()
        assert set(labels.tolist()) <= set(rows.tolist())
        for label in labels.tolist():
            assert view.masks[label][label_map == label].all()
    again = arrays_to_view_masks(view_masks_to_arrays(view))
    for name in ("masks", "granularity", "predicted_iou", "stability", "label_maps", "prompts_xy_px"):
        before, after = getattr(view, name), getattr(again, name)
        assert before.dtype == after.dtype and torch.equal(before, after), name
