"""Fixture 06, its second half: label maps and the index that is unique over the four levels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from gags.exchange import LanguageFeatures, write_language_features
from gags.geometry import Camera
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


def test_the_reference_s_files_are_read(fixture: Arrays, tmp_path: Path) -> None:
    np.save(tmp_path / "frame_s.npy", fixture["seg_maps"])
    np.save(tmp_path / "frame_f.npy", fixture["feature"])
    height, width = fixture["seg_maps"].shape[1:]
    camera = Camera(torch.eye(4), 9.0, 9.0, width / 2, height / 2, width, height)
    view, features = LanguageFeatures.open(tmp_path, ["frame.jpg"]).read("frame.jpg", camera)
    np.testing.assert_allclose(features, fixture["feature"], rtol=0, atol=2.5e-4)
    np.testing.assert_array_equal(view.label_maps, fixture["seg_maps"].astype(np.int32))
    for level, name in enumerate(fixture["level_names"]):
        for label in range(fixture["level_counts"][level]):
            row, shown = label + fixture["level_offsets"][level], fixture[f"{name}_segmap"] == label
            np.testing.assert_array_equal(view.masks[row], shown)
            assert view.granularity[row] == level or not shown.any()


def test_the_reference_s_files_are_written(fixture: Arrays, tmp_path: Path) -> None:
    view = assemble([kept(fixture, level) for level in fixture["level_names"]], torch.zeros(0, 2))
    write_language_features(tmp_path, {"frame.jpg": view}, {"frame.jpg": torch.from_numpy(fixture["feature"])})
    for name, key in (("frame_s.npy", "seg_maps"), ("frame_f.npy", "feature")):
        written = np.load(tmp_path / name, allow_pickle=False)
        assert written.dtype == np.float32
        np.testing.assert_array_equal(written, fixture[key])
