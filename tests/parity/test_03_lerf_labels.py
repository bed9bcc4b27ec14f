"""Fixture 03: LERF-OVS labels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from gags.errors import GagsError
from gags.evaluate import Labels, load_labels, reference_labels
from gags.evaluate._labels import reference_key


@pytest.fixture(scope="module")
def labels(parity_dir: Path) -> Labels:
    return load_labels(parity_dir / "03_labels")


def test_labels(parity_dir: Path, labels: Labels) -> None:
    fixture = np.load(parity_dir / "03_lerf_labels.npz", allow_pickle=False)
    assert [frame.path.name for frame in labels.frames] == fixture["frame_files"].tolist()
    for index, frame in enumerate(labels.frames):
        # By name, not by the reference's number-minus-one.
        assert frame.image_name == json.loads(frame.path.read_text())["info"]["name"]
        assert [frame.height, frame.width] == fixture["image_hw"].tolist()
        assert [label.category for label in frame.labels] == fixture[f"f{index}_categories"].tolist()
        for row, label in enumerate(frame.labels):
            boxes = fixture[f"f{index}_boxes_xyxy"][fixture[f"f{index}_box_category"] == row]
            np.testing.assert_array_equal(label.boxes_xyxy_px.numpy(), boxes)
            ours = label.mask.numpy()
            variants = (fixture[f"f{index}_masks"][row] > 0, fixture[f"f{index}_masks_opencv5"][row] > 0)
            best = max((ours & theirs).sum() / (ours | theirs).sum() for theirs in variants)
            # A line of one pixel's width may lie a pixel beside itself: the next test looks at its ends.
            assert best >= 0.90 or label.category == "hairline", f"{frame.path.name}, {label.category}: IoU {best:.3f}"


def test_every_vertex_is_filled_at_its_truncated_place(labels: Labels) -> None:
    for frame in labels.frames:
        masks = {label.category: label.mask.numpy() for label in frame.labels}
        for entry in json.loads(frame.path.read_text())["objects"]:
            x, y = np.trunc(np.array(entry["segmentation"], dtype=float)).astype(int).T
            inside = (x >= 0) & (x < frame.width) & (y >= 0) & (y < frame.height)
            assert masks[entry["category"]][y[inside], x[inside]].all(), entry["category"]
            if len(x) == 2 and inside.all():
                length = max(np.ptp(x), np.ptp(y)) + 1
                assert masks[entry["category"]].sum() >= length, entry["category"]


def test_the_reference_finds_images_by_number_and_we_by_name(parity_dir: Path, labels: Labels) -> None:
    fixture = np.load(parity_dir / "03_lerf_labels.npz", allow_pickle=False)
    keys = [reference_key(frame) for frame in labels.frames]
    assert [str(key) for key in keys] == fixture["frame_keys"].tolist()
    names = [f"image_{number:05d}.png" for number in range(max(keys) + 1)]
    found = reference_labels(labels, names[::-1])
    assert [frame.image_name for frame in found.frames] == [names[key] for key in keys]
    assert found.phrases == labels.phrases
    with pytest.raises(GagsError, match=f"expected a number of 1 to {max(keys)} at the end of the image name"):
        reference_labels(labels, names[:-1])


def test_the_reference_draws_every_frame_at_the_size_of_the_last(parity_dir: Path, labels: Labels) -> None:
    smaller = dataclasses.replace(labels.frames[-1], width=labels.frames[-1].width - 7)
    names = [f"{number:05d}.png" for number in range(1 + max(map(reference_key, labels.frames)))]
    for frame in reference_labels(Labels((*labels.frames[:-1], smaller)), names).frames:
        assert frame.width == smaller.width
        assert all(label.mask.shape == (frame.height, frame.width) for label in frame.labels)
