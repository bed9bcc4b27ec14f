"""Fixture 05: which masks survive suppression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gags.segment import mask_nms


def test_the_surviving_masks_are_those_of_the_reference(parity_dir: Path) -> None:
    with np.load(parity_dir / "05_mask_nms.npz", allow_pickle=False) as fixture:
        for name in fixture["case_names"]:
            masks = torch.from_numpy(fixture[f"{name}_masks"].astype(bool))
            iou, stability = (torch.from_numpy(fixture[f"{name}_{key}"]) for key in ("predicted_iou", "stability"))
            score = iou * stability
            np.testing.assert_array_equal(score, fixture[f"{name}_score"], err_msg=name)
            thresholds = (float(fixture["iou_threshold"]), float(fixture["score_threshold"]))
            # A threshold stored as float32 is a little off the decimal number that the float64 scores are compared with.
            kept = mask_nms(masks, score, *(round(threshold, 6) for threshold in thresholds))
            np.testing.assert_array_equal(kept, fixture[f"{name}_kept_input_order"], err_msg=name)
            best_first = kept[torch.argsort(-score[kept], stable=True)]
            np.testing.assert_array_equal(best_first, fixture[f"{name}_kept_by_score"], err_msg=name)
