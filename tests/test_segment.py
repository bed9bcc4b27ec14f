"""The segmentation stage over a scene: each view by itself, repeatable, labelled nearly everywhere."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import tiny
from gags.gaussians import Gaussians
from gags.scene import Scene, View
from gags.segment import HierarchyConfig, HierarchySegmenter, SegmentConfig, ViewMasks, segment

CONFIG = SegmentConfig(min_region_px=4)


@pytest.fixture(scope="module")
def room(tiny_scene: Path) -> tuple[Scene, Gaussians, dict[str, torch.Tensor]]:
    """The tiny scene, Gaussians on a sheet across it, and depths at which all views see most of them."""
    views = tuple(
        View(f"view_{i:02d}.png", camera, tiny_scene / "images" / f"view_{i:02d}.png", held_out=i == 3)
        for i, camera in enumerate(tiny.cameras())
    )
    generator = torch.Generator().manual_seed(0)
    n = 900
    means = (torch.rand(n, 3, generator=generator) - 0.5) * torch.tensor([4.0, 0.1, 3.0])
    identity = torch.tensor([1.0, 0, 0, 0]).expand(n, 4)
    gaussians = Gaussians(means, identity, torch.zeros(n, 3), torch.zeros(n), torch.zeros(n, 1, 3))
    depths = {view.name: torch.full((tiny.HEIGHT, tiny.WIDTH), 4.0 + 0.5 * i) for i, view in enumerate(views)}
    return Scene(views, torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8)), gaussians, depths


def equal(a: ViewMasks, b: ViewMasks) -> bool:
    return all(torch.equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(ViewMasks))


def test_a_view_does_not_depend_on_which_others_are_done(
    room: tuple[Scene, Gaussians, dict[str, torch.Tensor]],
) -> None:
    scene, gaussians, depths = room
    full = dict(segment(scene, gaussians, depths, tiny.TrueSegmenter(), CONFIG))
    assert list(full) == [view.name for view in scene.training_views]
    done = {"view_00.png", "view_04.png", "view_05.png"}
    rest = dict(segment(scene, gaussians, depths, tiny.TrueSegmenter(), CONFIG, skip=done))
    assert list(rest) == [name for name in full if name not in done]
    assert all(equal(rest[name], full[name]) for name in rest)
    other_seed = dict(segment(scene, gaussians, depths, tiny.TrueSegmenter(), SegmentConfig(seed=1, min_region_px=4)))
    assert not torch.equal(other_seed["view_01.png"].prompts_xy_px, full["view_01.png"].prompts_xy_px)


def test_the_built_in_segmenter_labels_nearly_every_pixel_of_every_level(
    room: tuple[Scene, Gaussians, dict[str, torch.Tensor]],
) -> None:
    scene, gaussians, depths = room
    segmenter = HierarchySegmenter(HierarchyConfig(n_superpixels=150))
    for _, view in segment(scene, gaussians, depths, segmenter, CONFIG):
        assert (view.label_maps[1:] >= 0).all(0).float().mean() > 0.8
        assert view.label_maps.dtype == torch.int32 and int(view.label_maps.max()) < len(view.masks)


def test_the_number_of_prompts_at_once_changes_nothing(
    room: tuple[Scene, Gaussians, dict[str, torch.Tensor]],
) -> None:
    scene, gaussians, depths = room
    segmenter = HierarchySegmenter(HierarchyConfig(n_superpixels=150))
    done = {view.name for view in scene.views[2:]}
    many, few = (
        dict(segment(scene, gaussians, depths, segmenter, replace(CONFIG, prompts_per_batch=n), skip=done))
        for n in (64, 7)
    )
    assert len(many) == 2 and all(equal(many[name], few[name]) for name in many)


def test_a_view_in_which_nothing_passes_is_simply_unlabelled(
    room: tuple[Scene, Gaussians, dict[str, torch.Tensor]],
) -> None:
    scene, gaussians, depths = room
    for _, view in segment(scene, gaussians, depths, tiny.TrueSegmenter(), SegmentConfig(min_score=0.99)):
        assert len(view.masks) == 0 and (view.label_maps == -1).all()
