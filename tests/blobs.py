"""A scene of separate blobs of Gaussians with known masks and embeddings: what the tests of ``gags.distill`` run on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from gags.gaussians import Gaussians
from gags.geometry import Camera, look_at
from gags.rasterize import blend_weights
from gags.scene import Scene, View
from gags.segment import ViewMasks

BLOBS, PER_BLOB, VIEWS, EMBEDDING = 5, 30, 7, 24
HEIGHT, WIDTH = 36, 52


@dataclass(frozen=True)
class BlobScene:
    scene: Scene
    gaussians: Gaussians
    masks: dict[str, ViewMasks]
    embeddings: dict[str, Float[Tensor, "mask embedding"]]
    blob_of_gaussian: Int[Tensor, " gaussian"]
    truth: Float[Tensor, "blob embedding"]
    """Orthonormal: the embedding of each blob."""
    clean_level: Int[Tensor, " blob"]
    """The level (0, 1, 2) whose embeddings are the truth in every view."""


def blob_scene(damaged: bool = False, held_out: str | None = None) -> BlobScene:
    """Blobs on a ring around the origin, seen from an arc; every level has the blob as its mask.

    ``damaged``: only one level a blob has the true embedding; the others have another random direction in each view.
    """
    generator = torch.Generator().manual_seed(3)
    blob_of_gaussian = torch.arange(BLOBS).repeat_interleave(PER_BLOB)
    gaussians = _gaussians(blob_of_gaussian, generator)
    views = tuple(
        View(f"v{i}.png", camera, Path("nowhere"), held_out=f"v{i}.png" == held_out)
        for i, camera in enumerate(_cameras())
    )
    truth = torch.linalg.qr(torch.randn(EMBEDDING, EMBEDDING, generator=generator)).Q[:BLOBS]
    clean_level = torch.arange(BLOBS) % 3
    masks, embeddings = {}, {}
    for view in views:
        masks[view.name] = _true_masks(gaussians, view.camera, blob_of_gaussian)
        table = truth.repeat(4, 1).clone()
        if damaged:
            wrong = functional.normalize(torch.randn(4, BLOBS, EMBEDDING, generator=generator), dim=-1)
            for level in range(3):
                rows = (level + 1) * BLOBS + torch.arange(BLOBS)
                is_wrong = clean_level != level
                table[rows[is_wrong]] = wrong[level + 1, is_wrong]
        embeddings[view.name] = table
    scene = Scene(views, torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8))
    return BlobScene(scene, gaussians, masks, embeddings, blob_of_gaussian, truth, clean_level)


def _gaussians(blob_of_gaussian: Int[Tensor, " gaussian"], generator: torch.Generator) -> Gaussians:
    angle = torch.arange(BLOBS) * (2 * torch.pi / BLOBS)
    centers = torch.stack([1.5 * angle.cos(), 0.9 * angle.sin(), 0.2 * angle.cos()], dim=1)
    count = len(blob_of_gaussian)
    return Gaussians(
        means=centers[blob_of_gaussian] + 0.15 * torch.randn(count, 3, generator=generator),
        quats=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        log_scales=torch.full((count, 3), 0.15).log(),
        opacity_logits=torch.full((count,), 2.0),
        sh=torch.zeros(count, 1, 3),
    )


def _cameras() -> list[Camera]:
    cameras = []
    for i in range(VIEWS):
        angle = torch.tensor(-0.5 + i / (VIEWS - 1))
        eye = torch.stack([5 * angle.sin(), torch.tensor(0.3 * (i % 2)), -5 * angle.cos()])
        T_camera_world = look_at(eye, torch.zeros(3), torch.tensor([0.0, -1.0, 0.0]))
        cameras.append(Camera(T_camera_world, 60.0, 60.0, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT))
    return cameras


def _true_masks(gaussians: Gaussians, camera: Camera, blob_of_gaussian: Int[Tensor, " gaussian"]) -> ViewMasks:
    shares = blend_weights(gaussians, camera).render(functional.one_hot(blob_of_gaussian).float())
    blob = torch.where(shares.sum(dim=-1) > 0.5, shares.argmax(dim=-1), -1)
    label_maps = torch.stack([torch.where(blob >= 0, blob + level * BLOBS, -1) for level in range(4)]).int()
    count = 4 * BLOBS
    return ViewMasks(
        masks=torch.stack([(label_maps == label).any(dim=0) for label in range(count)]),
        granularity=torch.arange(4).repeat_interleave(BLOBS),
        predicted_iou=torch.ones(count),
        stability=torch.ones(count),
        label_maps=label_maps,
        prompts_xy_px=torch.zeros(0, 2),
    )
