"""Fixture 03: LERF-OVS labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gags.evaluate import load_labels


def test_labels(parity_dir: Path) -> None:
    fixture = np.load(parity_dir / "03_lerf_labels.npz", allow_pickle=False)
    labels = load_labels(parity_dir / "03_labels")
    assert [frame.path.name for frame in labels.frames] == fixture["frame_files"].tolist()
    for index, frame in enumerate(labels.frames):
        # By name, not by the reference's number-minus-one.
        assert frame.image_name == frame.path.with_suffix(".jpg").name
        assert [frame.height, frame.width] == fixture["image_hw"].tolist()
        assert [label.category for label in frame.labels] == fixture[f"f{index}_categories"].tolist()
        for row, label in enumerate(frame.labels):
            boxes = fixture[f"f{index}_boxes_xyxy"][fixture[f"f{index}_box_category"] == row]
            np.testing.assert_array_equal(label.boxes_xyxy_px.numpy(), boxes)
            ours = label.mask.numpy()
            variants = (fixture[f"f{index}_masks"][row] > 0, fixture[f"f{index}_masks_opencv5"][row] > 0)
            best = max((ours & theirs).sum() / (ours | theirs).sum() for theirs in variants)
            floor = 0.8 if label.category == "hairline" else 0.97
            assert best >= floor, f"{frame.path.name}, {label.category}: IoU {best:.3f}"
