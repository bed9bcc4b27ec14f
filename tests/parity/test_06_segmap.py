"""Fixture 06, its second half: label maps and the index that is unique over the four levels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from gags.segment import LEVELS, Granularity, mask_nms
from gags.segment._masks import Candidates, assemble, paint

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def fixture(parity_dir: Path) -> Arrays:
    with np.load(parity_dir / "06_tiles_and_segmap.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def kept(fixture: Arrays, level: str) -> Candidates:
    masks = torch.from_numpy(fixture[f"{level}_masks"].astype(bool))
    scores = [torch.from_numpy(fixture[f"{level}_{key}"]) for key in ("predicted_iou", "stability")]
    candidates = Candidates(masks, *scores)
    rows = mask_nms(masks, candidates.score)
    np.testing.assert_array_equal(rows, fixture[f"{level}_kept"])
    return candidates[rows]


def test_a_level_is_painted_as_by_the_reference(fixture: Arrays) -> None:
    for level in fixture["level_names"]:
        np.testing.assert_array_equal(paint(kept(fixture, level).masks), fixture[f"{level}_segmap"])


def test_labels_are_unique_over_the_levels_as_in_the_reference(fixture: Arrays) -> None:
    view = assemble([kept(fixture, level) for level in fixture["level_names"]], torch.zeros(0, 2))
    np.testing.assert_array_equal(view.label_maps, fixture["seg_maps"].astype(np.int32))
    levels = (Granularity.DEFAULT, *LEVELS)
    counts = [int((view.granularity == level).sum()) for level in levels]
    np.testing.assert_array_equal(counts, fixture["level_counts"])
    first = [int(torch.nonzero(view.granularity == level)[0]) for level in levels]
    np.testing.assert_array_equal(first, fixture["level_offsets"])
