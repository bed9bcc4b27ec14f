"""Prompts: near and far views of a surface are asked equally closely."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from gags.gaussians import Gaussians
from gags.geometry import Camera, project
from gags.segment import SegmentConfig, segment_view
from gags.segment._prompts import (
    depth_prompts,
    nearest_depth_map,
    nearest_depths,
    prompts_per_side,
    relative_depth_map,
    uniform_prompts,
    usual_depths,
    visible_pixels,
)

WIDTH, HEIGHT = 160, 120


def camera_at(distance: float) -> Camera:
    """Looks along z at a wall at z = 0."""
    T_camera_world = torch.eye(4)
    T_camera_world[2, 3] = distance
    return Camera(T_camera_world, 100.0, 100.0, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT)


def wall(n: int = 20_000) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    xy = (torch.rand(n, 2, generator=generator) - 0.5) * torch.tensor([12.0, 9.0])
    means = torch.cat([xy, torch.zeros(n, 1)], dim=1)
    identity = torch.tensor([1.0, 0, 0, 0]).expand(n, 4)
    return Gaussians(means, identity, torch.zeros(n, 3), torch.zeros(n), torch.zeros(n, 1, 3))


def depth_of(distance: float) -> torch.Tensor:
    return torch.full((HEIGHT, WIDTH), distance)


def test_a_surface_gets_about_as_many_prompts_from_near_as_from_far() -> None:
    gaussians, distances = wall(), (2.0, 6.0)
    cameras = [camera_at(distance) for distance in distances]
    depths = [depth_of(distance) for distance in distances]
    nearest = nearest_depths(gaussians, cameras, depths)
    # the middle of the wall, which both cameras see
    per_area = []
    for camera, depth, distance in zip(cameras, depths, distances, strict=True):
        points = depth_prompts(depth, nearest_depth_map(gaussians, camera, depth, nearest), (0, 0))
        on_wall = (points - torch.tensor([WIDTH / 2, HEIGHT / 2])) / 100.0 * distance
        middle = (on_wall.abs() < torch.tensor([1.2, 0.9])).all(1)
        per_area.append(int(middle.sum()))
    assert 0.6 < per_area[1] / per_area[0] < 1.6, per_area
    assert prompts_per_side(6.0, 2.0) ** 2 == 144


@pytest.mark.parametrize(
    ("mean", "nearest", "n"),
    [
        (1.0, 1.0, 4),
        (1.24, 1.0, 4),
        (1.25, 1.0, 5),
        (0.99, 1.0, 1),
        (9.0, 1.0, 20),
        (float("nan"), 1.0, 1),
        (1.0, float("nan"), 1),
    ],
)
def test_prompts_per_side(mean: float, nearest: float, n: int) -> None:
    assert prompts_per_side(mean, nearest) == n


def test_what_is_hidden_or_behind_is_not_seen() -> None:
    camera, depth = camera_at(4.0), depth_of(4.0)
    means = torch.tensor([[0.0, 0, 0], [0, 0, 0.9], [0, 0, 1.1], [0, 0, -1.1], [0, 0, -9.0], [99.0, 0, 0]])
    _, visible = visible_pixels(means, camera, depth)
    assert visible.tolist() == [True, True, False, False, False, False]
    _, visible = visible_pixels(means, camera, torch.zeros(HEIGHT, WIDTH))
    assert not visible.any()


def test_the_nearest_of_two_points_in_a_pixel_is_kept_unless_quirks_are_wanted() -> None:
    camera, depth = camera_at(4.0), depth_of(4.0)
    gaussians = replace(
        wall(2),
        means=torch.zeros(2, 3),
        quats=torch.zeros(2, 4),
        log_scales=torch.zeros(2, 3),
        opacity_logits=torch.zeros(2),
    )
    nearest = torch.tensor([1.5, 3.0])
    pixel = project(camera, gaussians.means)[0][0].round().long()
    for quirks, expected in ((False, 1.5), (True, 3.0)):
        sparse = nearest_depth_map(gaussians, camera, depth, nearest, reference_quirks=quirks)
        assert sparse[pixel[1], pixel[0]] == expected and (sparse > 0).sum() == 1


def test_near_and_far_views_of_a_wall_are_told_apart() -> None:
    gaussians = replace(wall(), log_scales=torch.full((20_000, 3), -3.0))
    unseen = gaussians.means.clone()
    unseen[0] = torch.tensor([0.0, 0.0, 100.0])
    gaussians = replace(gaussians, means=unseen)
    cameras, depths = [camera_at(2.0), camera_at(8.0)], [depth_of(2.0), depth_of(8.0)]
    usual = usual_depths(gaussians, cameras, depths)
    seen_by_both = (gaussians.means[:, 0].abs() < 1.5) & (gaussians.means[:, 1].abs() < 1.1)
    seen_by_one = (gaussians.means[:, 0].abs() > 1.7) & (gaussians.means[:, 0].abs() < 5.9)
    seen_by_both[0] = False
    torch.testing.assert_close(usual[seen_by_both], torch.full((int(seen_by_both.sum()),), 4.0))
    torch.testing.assert_close(usual[seen_by_one], torch.full((int(seen_by_one.sum()),), 8.0))
    assert usual[0] == 0
    near, far = (relative_depth_map(gaussians, *each, usual) for each in zip(cameras, depths, strict=True))
    middle = (HEIGHT // 2, WIDTH // 2)
    assert near[middle] == pytest.approx(0.5, rel=0.01) and far[middle] == pytest.approx(2.0, rel=0.01)
    # what one view alone sees is seen from its usual depth; what no Gaussian shows, or has no depth, too
    assert far[HEIGHT // 2, 20] == pytest.approx(1.0, rel=0.01)
    assert (relative_depth_map(gaussians, cameras[0], torch.zeros(HEIGHT, WIDTH), usual) == 1).all()
    assert (relative_depth_map(gaussians, cameras[0], depths[0], torch.zeros(len(gaussians))) == 1).all()


def test_prompts_are_repeatable_in_the_image_and_follow_the_seed() -> None:
    gaussians, camera, depth = wall(), camera_at(6.0), depth_of(6.0)
    sparse = nearest_depth_map(gaussians, camera, depth, torch.full((len(gaussians),), 2.0))
    first, same, other = (depth_prompts(depth, sparse, seed) for seed in ((0, 1), (0, 1), (0, 2)))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert (first > 0).all() and (first < torch.tensor([WIDTH, HEIGHT])).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 99), width=st.integers(8, 70), height=st.integers(8, 50))
def test_the_uniform_grid_has_as_many_points_and_no_gap(seed: int, width: int, height: int) -> None:
    rng = np.random.default_rng(seed)
    depth = torch.from_numpy(rng.uniform(1, 3, (height, width)).astype(np.float32))
    sparse = torch.from_numpy(np.where(rng.random((height, width)) < 0.5, 1.0, 0.0).astype(np.float32))
    points = uniform_prompts(depth, sparse)
    assert len(points) == len(depth_prompts(depth, sparse, (0, 0)))
    assert (points > 0).all() and (points < torch.tensor([width, height])).all()
    # every pixel is near a point, as it is in a square grid of as many: half a diagonal, and half again for what rounding does
    spacing = (width * height / len(points)) ** 0.5
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([u.flatten(), v.flatten()], dim=1)
    assert torch.cdist(pixels, points).amin(dim=1).max() < 1.5 * spacing / 2**0.5 + 0.5


def test_a_view_does_not_depend_on_its_batches() -> None:
    image = torch.from_numpy(tiny.TONES[tiny.ray_cast(tiny.cameras()[0])])
    depth = torch.full((tiny.HEIGHT, tiny.WIDTH), 4.0)
    sparse = torch.from_numpy(np.random.default_rng(0).random((tiny.HEIGHT, tiny.WIDTH)) < 0.3) * 2.0
    config = SegmentConfig(min_region_px=4)
    views = [
        segment_view(image, depth, sparse.float(), tiny.TrueSegmenter(), replace(config, prompts_per_batch=n), 3)
        for n in (7, 1000)
    ]
    assert torch.equal(views[0].masks, views[1].masks) and torch.equal(views[0].label_maps, views[1].label_maps)
    tones = tiny.nearest_tone(image.numpy())
    assert len(np.unique(tones)) >= 5
    whole = views[0].masks[views[0].granularity == 3]
    for ball in range(1, 4):
        truth = torch.from_numpy((tones + 1) // 2 == ball)
        assert any(torch.equal(mask, truth) for mask in whole) or truth.sum() < 30
