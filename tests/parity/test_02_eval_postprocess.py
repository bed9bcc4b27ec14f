"""Fixture 02: relevancy map to mask, IoU and localisation hit."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gags.evaluate import iou, localised
from gags.query import QueryConfig, find, heat, majority_filter, mean_filter, peak
from gags.query._relevancy import blend


@pytest.mark.parametrize("prefix", ["", "small_"])
def test_chain_from_relevancy_to_mask(parity_dir: Path, prefix: str) -> None:
    fixture = np.load(parity_dir / "02_eval_postprocess.npz", allow_pickle=False)
    maps, kernel_px = torch.from_numpy(fixture[f"{prefix}relevancy"]), int(fixture["kernel_size"])
    heat_maps = heat(maps, kernel_px)
    raw = heat_maps > float(fixture["threshold"])
    np.testing.assert_allclose(
        mean_filter(maps, kernel_px).numpy(), fixture[f"{prefix}mean_filtered"], rtol=0, atol=2e-7
    )
    np.testing.assert_allclose(blend(maps, kernel_px).numpy(), fixture[f"{prefix}blended"], rtol=0, atol=2e-7)
    np.testing.assert_allclose(heat_maps.numpy(), fixture[f"{prefix}heat"], rtol=0, atol=2e-6)
    np.testing.assert_array_equal(raw.numpy(), fixture[f"{prefix}mask_thresholded"])
    np.testing.assert_array_equal(
        majority_filter(raw, int(fixture["majority_radius"])).numpy(), fixture[f"{prefix}mask_majority"]
    )


def test_majority_filter_alone(parity_dir: Path) -> None:
    fixture = np.load(parity_dir / "02_eval_postprocess.npz", allow_pickle=False)
    bits = torch.from_numpy(fixture["majority_in"]).bool()
    np.testing.assert_array_equal(
        majority_filter(bits, int(fixture["majority_radius"])).numpy(), fixture["majority_out"]
    )


def test_scores_of_a_query(parity_dir: Path) -> None:
    fixture = np.load(parity_dir / "02_eval_postprocess.npz", allow_pickle=False)
    config = QueryConfig(
        threshold=float(fixture["threshold"]),
        kernel_px=int(fixture["kernel_size"]),
        majority_radius_px=int(fixture["majority_radius"]),
    )
    truth = torch.from_numpy(fixture["gt_masks"]).bool()
    boxes = torch.from_numpy(fixture["boxes_xyxy"])
    for row, relevancy_map in enumerate(torch.from_numpy(fixture["relevancy"])):
        candidates = peak(mean_filter(relevancy_map, config.kernel_px))
        assert candidates[0].tolist() == fixture["peak_xy"][row].tolist()
        assert len(candidates) == fixture["peak_count"][row]
        assert localised(candidates, boxes[torch.from_numpy(fixture["box_phrase"] == row)]) == bool(fixture["hit"][row])
        hit = find("phrase", relevancy_map, config)
        assert (hit.mask & truth[row]).sum() == fixture["intersection"][row]
        assert (hit.mask | truth[row]).sum() == fixture["union"][row]
        assert iou(hit.mask, truth[row]) == pytest.approx(fixture["iou"][row], abs=1e-6)


@pytest.mark.parametrize("prefix", ["", "small_"])
def test_the_first_two_rows_and_columns_of_a_filtered_map_are_equal(parity_dir: Path, prefix: str) -> None:
    """An even kernel reaches one pixel farther up and left, and the border is mirrored without its edge pixel."""
    fixture = np.load(parity_dir / "02_eval_postprocess.npz", allow_pickle=False)
    filtered = mean_filter(torch.from_numpy(fixture[f"{prefix}relevancy"]), int(fixture["kernel_size"]))
    torch.testing.assert_close(filtered[..., 0], filtered[..., 1], rtol=0, atol=2e-7)
    torch.testing.assert_close(filtered[..., 0, :], filtered[..., 1, :], rtol=0, atol=2e-7)


def test_the_majority_filter_never_reads_the_last_row_and_column(parity_dir: Path) -> None:
    fixture = np.load(parity_dir / "02_eval_postprocess.npz", allow_pickle=False)
    bits = torch.from_numpy(fixture["majority_in"]).bool()
    bits[-1], bits[:, -1] = False, False
    filtered = majority_filter(bits, int(fixture["majority_radius"]))
    np.testing.assert_array_equal(filtered.numpy(), fixture["majority_out"])


def test_phrases_do_not_influence_each_other(parity_dir: Path) -> None:
    """The reference writes one map's blend back into its input; what comes out is as if it did not."""
    fixture = np.load(parity_dir / "02_eval_postprocess.npz", allow_pickle=False)
    maps = torch.from_numpy(fixture["relevancy"])
    before, config = maps.clone(), QueryConfig(kernel_px=int(fixture["kernel_size"]))
    last = find("last", maps[-1], config)
    hits = [find("phrase", relevancy_map, config) for relevancy_map in maps]
    assert torch.equal(maps, before)
    assert torch.equal(hits[-1].mask, last.mask) and hits[-1].point_xy_px == last.point_xy_px


def test_a_constant_map_gives_an_empty_mask(parity_dir: Path) -> None:
    fixture = np.load(parity_dir / "02_eval_postprocess.npz", allow_pickle=False)
    constant = torch.full(fixture["relevancy"].shape[1:], 0.7)
    assert not find("phrase", constant, QueryConfig(kernel_px=int(fixture["kernel_size"]))).mask.any()


def test_two_empty_masks_agree_and_are_no_number_in_the_reference() -> None:
    nothing, something = torch.zeros(3, 5).bool(), torch.eye(3, 5).bool()
    assert iou(nothing, nothing) == 1.0
    assert math.isnan(iou(nothing, nothing, reference_quirks=True))
    assert iou(something, nothing) == iou(something, nothing, reference_quirks=True) == 0.0
