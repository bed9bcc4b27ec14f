"""Fixture 05: which masks survive suppression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gags.errors import GagsError
from gags.segment import mask_nms
from gags.segment._masks import Candidates, distinct


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


def test_where_nothing_survives_we_go_on_and_the_reference_stops(parity_dir: Path) -> None:
    with np.load(parity_dir / "05_mask_nms.npz", allow_pickle=False) as fixture:
        name, threshold = fixture["case_names"][0], float(fixture["score_threshold"])
        masks, score = torch.from_numpy(fixture[f"{name}_masks"] > 0), torch.from_numpy(fixture[f"{name}_score"])
    for few in (masks, masks[:0]):
        weak = threshold * score[: len(few)] / score.max()
        assert mask_nms(few, weak, min_score=threshold).tolist() == []
        with pytest.raises(GagsError, match=f"expected a mask with a score above .*, found none of {len(few)}"):
            mask_nms(few, weak, min_score=threshold, reference_quirks=True)


def test_we_drop_empty_masks_and_the_reference_keeps_them(parity_dir: Path) -> None:
    with np.load(parity_dir / "05_mask_nms.npz", allow_pickle=False) as fixture:
        for name in fixture["case_names"]:
            masks = torch.from_numpy(fixture[f"{name}_masks"] > 0)
            filled = masks.flatten(1).any(dim=1)
            candidates = Candidates(masks, torch.ones(len(masks)), torch.ones(len(masks)))
            assert distinct(candidates).masks.flatten(1).any(dim=1).all(), name
            assert (~distinct(candidates, True).masks.flatten(1).any(dim=1)).any() == (~filled).any(), name
