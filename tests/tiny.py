"""A tiny analytic scene, and models that know its truth: what the end-to-end tests run on.

Three two-toned balls on a grey floor, ray-cast exactly from cameras on an arc, written as a COLMAP text model with LERF-OVS labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from skimage.measure import find_contours
from torch import Tensor

from gags.geometry import Camera, look_at
from gags.segment import MaskProposals

HEIGHT, WIDTH = 96, 128
BALLS = {"red ball": (-1.0, 0.0), "green ball": (0.2, 0.9), "blue ball": (1.0, -0.5)}
RADIUS = 0.55
TONES = np.array(
    [[90, 90, 90], [230, 60, 50], [150, 20, 10], [60, 220, 80], [10, 130, 30], [70, 90, 240], [20, 30, 150]], np.uint8
)
"""Floor, then upper and lower tone of each ball."""
N_VIEWS = 8
HELD_OUT = "view_03.png"
LABEL_SCALE = 2
"""Labels are drawn this much larger than the images, so that their outlines are exact to a fraction of a pixel."""


def cameras() -> list[Camera]:
    """Cameras on an arc around the balls; y points down, as in COLMAP scenes."""
    result = []
    for i in range(N_VIEWS):
        angle = np.deg2rad(-50 + 100 * i / (N_VIEWS - 1))
        eye = torch.tensor([4.5 * np.sin(angle), -2.2 - 0.2 * (i % 3), -4.5 * np.cos(angle)], dtype=torch.float32)
        T_camera_world = look_at(eye, torch.tensor([0.0, -0.4, 0.0]), torch.tensor([0.0, -1.0, 0.0]))
        result.append(Camera(T_camera_world, 124.0, 124.0, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT))
    return result


def ray_cast(camera: Camera, scale: int = 1) -> np.ndarray:
    """Index into TONES of what each pixel centre sees, at ``scale`` times the camera's size."""
    camera = camera.resized(camera.width * scale, camera.height * scale)
    u, v = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    rays_camera = np.stack(
        [(u - camera.cx_px) / camera.fx_px, (v - camera.cy_px) / camera.fy_px, np.ones_like(u)], axis=-1
    )
    rays = rays_camera @ camera.T_camera_world[:3, :3].numpy()
    origin = camera.center_world.numpy()
    nearest = np.where(rays[..., 1] > 1e-6, -origin[1] / np.maximum(rays[..., 1], 1e-6), np.inf)
    tone = np.zeros(nearest.shape, int)
    for i, (x, z) in enumerate(BALLS.values()):
        center = np.array([x, -RADIUS, z])
        a, b, c = (rays**2).sum(-1), rays @ (origin - center), ((origin - center) ** 2).sum() - RADIUS**2
        root = b**2 - a * c
        distance = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
        closer = distance < nearest
        upper = origin[1] + np.where(closer, distance, 0) * rays[..., 1] < -RADIUS
        tone = np.where(closer, np.where(upper, 1 + 2 * i, 2 + 2 * i), tone)
        nearest = np.where(closer, distance, nearest)
    return tone


def write_scene(folder: Path) -> Path:
    """Write images/, sparse/0/ (text) and labels/ (of the view HELD_OUT)."""
    for part in ("images", "sparse/0", "labels"):
        (folder / part).mkdir(parents=True)
    lines = []
    for i, camera in enumerate(cameras()):
        name = f"view_{i:02d}.png"
        colors = TONES[ray_cast(camera, scale=4)].astype(float)
        picture = colors.reshape(HEIGHT, 4, WIDTH, 4, 3).mean((1, 3)).round().astype(np.uint8)
        Image.fromarray(picture).save(folder / "images" / name)
        numbers = " ".join(f"{value:.9f}" for value in [*_wxyz(camera), *camera.T_camera_world[:3, 3].tolist()])
        lines += [f"{i + 1} {numbers} 1 {name}", ""]
        if name == HELD_OUT:
            (folder / "labels" / "view_03.json").write_text(json.dumps(label(ray_cast(camera, LABEL_SCALE), name)))
    model = folder / "sparse/0"
    (model / "cameras.txt").write_text(f"1 PINHOLE {WIDTH} {HEIGHT} 124 124 {WIDTH / 2} {HEIGHT / 2}\n")
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    points, colors = _points()
    rows = [
        f"{i + 1} {x:.6f} {y:.6f} {z:.6f} {r} {g} {b} 0.5"
        for i, ((x, y, z), (r, g, b)) in enumerate(zip(points, colors, strict=True))
    ]
    (model / "points3D.txt").write_text("\n".join(rows) + "\n")
    return folder


def _wxyz(camera: Camera) -> list[float]:
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(camera.T_camera_world[:3, :3].double().numpy()).as_quat()
    return [w, x, y, z]


def _points() -> tuple[np.ndarray, np.ndarray]:
    """Points on the balls and the floor with their colours."""
    rng = np.random.default_rng(0)
    points, tones = [], []
    for i, (x, z) in enumerate(BALLS.values()):
        normals = rng.normal(size=(250, 3))
        on_ball = np.array([x, -RADIUS, z]) + RADIUS * normals / np.linalg.norm(normals, axis=1, keepdims=True)
        points.append(on_ball)
        tones.append(np.where(on_ball[:, 1] < -RADIUS, 1 + 2 * i, 2 + 2 * i))
    floor = rng.uniform([-5, 0, -3], [5, 0, 12], size=(700, 3))
    points.append(floor)
    tones.append(np.zeros(len(floor), int))
    return np.concatenate(points), TONES[np.concatenate(tones)]


def label(tone: np.ndarray, name: str) -> dict:
    """A LERF-OVS label file of a picture with these indices into TONES."""
    objects = []
    for i, category in enumerate(BALLS):
        mask = np.pad((tone == 1 + 2 * i) | (tone == 2 + 2 * i), 1)
        rows, columns = np.nonzero(mask[1:-1, 1:-1])
        polygon = [[round(x - 1), round(y - 1)] for y, x in max(find_contours(mask, 0.5), key=len)]
        box = [int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())]
        objects.append({"category": category, "segmentation": polygon, "bbox": box})
    return {"info": {"name": name, "width": tone.shape[1], "height": tone.shape[0]}, "objects": objects}


def nearest_tone(image: UInt8[np.ndarray, "height width 3"]) -> np.ndarray:
    """Index into TONES of the closest tone of each pixel."""
    return ((image[..., None, :].astype(int) - TONES.astype(int)) ** 2).sum(-1).argmin(-1)


@dataclass(frozen=True)
class _TruePrompter:
    tone: np.ndarray

    def distinct_prompts(self, points_xy_px: Float[Tensor, "prompt 2"]) -> Float[Tensor, "distinct 2"]:
        return points_xy_px

    def propose(self, points_xy_px: Float[Tensor, "prompt 2"]) -> MaskProposals:
        masks = []
        for x, y in points_xy_px.tolist():
            tone = self.tone[min(int(y), HEIGHT - 1), min(int(x), WIDTH - 1)]
            ball = (tone + 1) // 2
            same_tone = self.tone == tone
            whole = (self.tone + 1) // 2 == ball
            masks.append(np.stack([same_tone, same_tone, whole]))
        stacked: Bool[Tensor, "prompt 3 height width"] = torch.from_numpy(np.stack(masks))
        return MaskProposals(stacked, torch.full((len(masks), 3), 0.95), torch.full((len(masks), 3), 0.95))


class TrueSegmenter:
    """Knows the true masks: a tone, a tone, a ball."""

    name = "true"

    def prepare(
        self, image: UInt8[Tensor, "height width 3"], depth: Tensor | None, relative_depth: Tensor | None = None
    ) -> _TruePrompter:
        return _TruePrompter(nearest_tone(image.numpy()))


class TrueEncoder:
    """Orthogonal embeddings: one axis a ball, one for the floor, one for each canonical negative, one for anything else."""

    name = "true"
    width = 9
    tile_px = 32
    phrases = ("floor", *BALLS, "object", "things", "stuff", "texture", "")

    def encode_tiles(self, tiles: Float[Tensor, "tile 3 size size"]) -> Float[Tensor, "tile width"]:
        pixels = (tiles.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
        result = torch.zeros(len(tiles), self.width)
        for i, tile in enumerate(pixels):
            inside = tile.reshape(-1, 3)[tile.reshape(-1, 3).max(-1) > 8]
            if len(inside):
                objects = (nearest_tone(inside[None])[0] + 1) // 2
                result[i, np.bincount(objects).argmax()] = 1
            else:
                result[i, -1] = 1
        return result

    def encode_phrases(self, phrases: Sequence[str]) -> Float[Tensor, "phrase width"]:
        axes = [self.phrases.index(phrase) if phrase in self.phrases else self.width - 1 for phrase in phrases]
        return torch.eye(self.width)[axes]
