"""Fixture 04: nearest-view depth, prompts per patch, and one seeded draw."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from gags.gaussians import Gaussians
from gags.geometry import Camera
from gags.segment import SegmentConfig
from gags.segment._prompts import (
    CELLS_PER_SIDE,
    PATCHES_PER_SIDE,
    Patch,
    cell_counts,
    cell_origins,
    cell_weights,
    depth_prompts,
    draw_reference,
    nearest_depth_map,
    nearest_depths,
    patch_means,
    patches,
    prompts_per_side,
    visible_pixels,
)

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def fixture(parity_dir: Path) -> Arrays:
    with np.load(parity_dir / "04_prompt_density.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def gaussians_at(means: np.ndarray) -> Gaussians:
    n = len(means)
    return Gaussians(torch.from_numpy(means), torch.ones(n, 4), torch.zeros(n, 3), torch.zeros(n), torch.zeros(n, 1, 3))


def cameras_of(fixture: Arrays) -> list[Camera]:
    height, width = fixture["depth_maps"].shape[1:]
    return [
        Camera(torch.from_numpy(T), float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]), width, height)
        for T, K in zip(fixture["w2c"], fixture["K"], strict=True)
    ]


def boxes(cut: list[Patch]) -> np.ndarray:
    return np.array([(p.x0, p.y0, p.x0 + p.width, p.y0 + p.height) for p in cut])


def test_visibility_is_that_of_the_reference(fixture: Arrays) -> None:
    means, tolerance = torch.from_numpy(fixture["points"]), float(fixture["occlusion_tolerance"])
    for view, (camera, depth) in enumerate(zip(cameras_of(fixture), fixture["depth_maps"], strict=True)):
        vu, visible = visible_pixels(means, camera, torch.from_numpy(depth), tolerance)
        np.testing.assert_array_equal(visible.numpy(), fixture["visible"][view].astype(bool))
        np.testing.assert_array_equal(vu.numpy(), fixture["pixel_vu"][view])
        read = torch.where(visible, torch.from_numpy(depth)[vu[:, 0], vu[:, 1]], torch.inf)
        np.testing.assert_allclose(read.numpy(), fixture["pixel_depth"][view], rtol=1e-5)


def test_nearest_depths_and_their_maps_are_those_of_the_reference(fixture: Arrays) -> None:
    gaussians, cameras = gaussians_at(fixture["points"]), cameras_of(fixture)
    depths = [torch.from_numpy(depth) for depth in fixture["depth_maps"]]
    nearest = nearest_depths(gaussians, cameras, depths, float(fixture["occlusion_tolerance"]))
    np.testing.assert_allclose(nearest.numpy(), fixture["point_min_depth"], rtol=1e-5)
    for view, (camera, depth) in enumerate(zip(cameras, depths, strict=True)):
        sparse = nearest_depth_map(gaussians, camera, depth, nearest, reference_quirks=True)
        np.testing.assert_allclose(sparse.numpy(), fixture["min_depth_maps"][view], rtol=1e-5)
        # Without the quirk the smallest of the points at a pixel stays.
        smallest = nearest_depth_map(gaussians, camera, depth, nearest).numpy()
        seen = fixture["visible"][view] > 0
        expected = np.full(depth.shape, np.inf, np.float32)
        np.minimum.at(expected, tuple(fixture["pixel_vu"][view][seen].T), fixture["point_min_depth"][seen])
        np.testing.assert_allclose(smallest, np.where(np.isinf(expected), 0, expected), rtol=1e-5)


def test_the_numbers_are_the_defaults(fixture: Arrays) -> None:
    config = SegmentConfig()
    assert fixture["patches_per_side"] == PATCHES_PER_SIDE
    assert fixture["min_prompts_per_side"] == config.min_per_side
    assert fixture["max_prompts_per_side"] == config.max_per_side
    assert fixture["occlusion_tolerance"] == config.occlusion_tolerance


@pytest.mark.parametrize("prefix", ["", "syn_"])
def test_patches_and_cells_are_those_of_the_reference(fixture: Arrays, prefix: str) -> None:
    depth = fixture["syn_depth_map"] if prefix else fixture["depth_maps"][0]
    cut = patches(depth.shape[1], depth.shape[0])
    np.testing.assert_array_equal(boxes(cut), fixture[f"{prefix}patch_box_px"])
    if not prefix:
        size = np.tile([depth.shape[1], depth.shape[0]], 2)
        np.testing.assert_allclose(boxes(cut) / size, fixture["patch_box_norm"], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(cell_origins(cut[0].width, cut[0].height), fixture[f"{prefix}subcrop_origin_xy"])
    size = (cut[0].width // CELLS_PER_SIDE, cut[0].height // CELLS_PER_SIDE)
    np.testing.assert_array_equal(size, fixture[f"{prefix}subcrop_size_wh"])


def check_counts(
    depth: np.ndarray, nearest: np.ndarray, means: np.ndarray, nearest_means: np.ndarray, per_side: np.ndarray
) -> None:
    """Means and counts; and that without the quirk only patches with pixels that nothing is rendered at have others."""
    cut = patches(depth.shape[1], depth.shape[0])
    found = np.array([patch_means(depth, nearest, patch, reference_quirks=True) for patch in cut])
    np.testing.assert_allclose(found[:, 0], means, rtol=1e-5)
    np.testing.assert_allclose(found[:, 1], nearest_means, rtol=1e-5)
    np.testing.assert_array_equal([prompts_per_side(a, b) for a, b in found], per_side)
    for patch, mean in zip(cut, means, strict=True):
        rendered = patch.of(depth)[patch.of(depth) > 0]
        ours = patch_means(depth, nearest, patch)[0]
        if rendered.size == patch.width * patch.height:
            np.testing.assert_allclose(ours, mean, rtol=1e-5)
        elif rendered.size:
            np.testing.assert_allclose(ours, rendered.mean(dtype=np.float64), rtol=1e-9)
        else:
            assert np.isnan(ours)


def test_prompt_counts_are_those_of_the_reference(fixture: Arrays) -> None:
    for view, depth in enumerate(fixture["depth_maps"]):
        nearest = fixture["min_depth_maps"][view]
        check_counts(
            depth,
            nearest,
            fixture["patch_mean_depth"][view],
            fixture["patch_mean_min_depth"][view],
            fixture["prompts_per_side"][view],
        )
        np.testing.assert_array_equal(fixture["prompts_per_side"][view] ** 2, fixture["prompts_count"][view])
        counts = np.array([cell_counts(nearest, patch) for patch in patches(depth.shape[1], depth.shape[0])])
        np.testing.assert_array_equal(counts, fixture["subcrop_counts"][view])
        weights = np.array([cell_weights(patch_counts) for patch_counts in counts])
        np.testing.assert_allclose(weights, fixture["subcrop_weights"][view], atol=1e-6)


def test_synthetic_prompt_counts_are_those_of_the_reference(fixture: Arrays) -> None:
    depth, nearest = fixture["syn_depth_map"], fixture["syn_min_depth_map"]
    means = (fixture["syn_patch_mean_depth"], fixture["syn_patch_mean_min_depth"])
    check_counts(depth, nearest, *means, fixture["syn_prompts_per_side"])
    cut = patches(depth.shape[1], depth.shape[0])
    weights = np.array([cell_weights(cell_counts(nearest, patch)) for patch in cut])
    np.testing.assert_allclose(weights, fixture["syn_subcrop_weights"], atol=1e-6)


@pytest.mark.parametrize("prefix", ["", "syn_"])
def test_the_seeded_draw_is_that_of_the_reference(fixture: Arrays, prefix: str) -> None:
    depth = fixture["syn_depth_map"] if prefix else fixture["depth_maps"][0]
    nearest = fixture["syn_min_depth_map"] if prefix else fixture["min_depth_maps"][0]
    seed = int(fixture["draw_seed"])
    points = depth_prompts(torch.from_numpy(depth), torch.from_numpy(nearest), [seed, 0], reference_quirks=True)
    pixels = (points - 0.5).numpy()
    expected_px = fixture["syn_draw_points_px" if prefix else "draw_points_px"]
    np.testing.assert_array_equal(pixels, expected_px)
    if not prefix:
        size = (depth.shape[1], depth.shape[0])
        np.testing.assert_allclose(pixels / size, fixture["draw_points_norm"], rtol=1e-6)
    twister, cells, owners = random.Random(seed), [], []
    for index, patch in enumerate(patches(depth.shape[1], depth.shape[0])):
        count = prompts_per_side(*patch_means(depth, nearest, patch, reference_quirks=True)) ** 2
        cells.append(draw_reference(patch, count, cell_weights(cell_counts(nearest, patch)), twister)[1])
        owners += [index] * count
    np.testing.assert_array_equal(np.concatenate(cells), fixture[f"{prefix}draw_subcrop"])
    np.testing.assert_array_equal(owners, fixture[f"{prefix}draw_patch"])
