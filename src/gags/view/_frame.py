"""Where the page's own coordinates lie in the scene, where its first look comes from, and cameras to and from it.

Display coordinates are the world's, moved and scaled: the cameras look at the origin from a few units away. The browser's
controls are made for such scenes, and its half-precision covariances can hold no others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gags.geometry import Camera, project
from gags.scene import View

_RING_RADIUS = 4.0
_SAMPLE = 20_000


@dataclass(frozen=True)
class Pose:
    """A look at the scene in display coordinates, as viser has cameras."""

    position: Float[np.ndarray, " 3"]
    look_at: Float[np.ndarray, " 3"]
    """The point that the page's controls turn around."""


@dataclass(frozen=True)
class DisplayFrame:
    """``x_display = (x_world - center_world) * scale``."""

    center_world: Float[Tensor, " 3"]
    """What the cameras look at, on the whole."""
    scale: float
    """Display units in a scene unit."""
    up_world: Float[Tensor, " 3"]
    """Unit vector, against gravity as far as the photographer held the camera upright."""

    def points(self, points_world: Float[Tensor, "*points 3"]) -> Float[np.ndarray, "*points 3"]:
        """Display coordinates."""
        return ((points_world - self.center_world) * self.scale).numpy()

    def to_world(self, point: Any) -> Float[Tensor, " 3"]:
        """World coordinates of a display position."""
        return torch.as_tensor(np.asarray(point), dtype=torch.float32) / self.scale + self.center_world

    def pose(self, camera: Camera) -> Pose:
        """Where a camera stands; it turns around the point of its axis that is nearest to the middle of the scene."""
        eye, forward = camera.center_world, camera.T_camera_world[2, :3]
        distance = float((self.center_world - eye) @ forward)
        # a camera that looks away from the middle turns around a point close to itself
        distance = max(distance, 0.25 * _RING_RADIUS / self.scale)
        return Pose(self.points(eye), self.points(eye + distance * forward))

    def camera(self, wxyz: Any, position: Any, fov_rad: float, width: int, height: int) -> Camera:
        """The world's camera of a browser's: its pose in display coordinates, OpenCV axes, vertical field of view."""
        w, x, y, z = (float(value) for value in wxyz)
        R_world_camera = torch.tensor(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        T_camera_world = torch.eye(4)
        T_camera_world[:3, :3] = R_world_camera.T
        T_camera_world[:3, 3] = -R_world_camera.T @ self.to_world(position)
        focal_px = height / 2 / math.tan(fov_rad / 2)
        return Camera(T_camera_world, focal_px, focal_px, width / 2, height / 2, width, height)


def display_frame(views: tuple[View, ...]) -> DisplayFrame:
    """The frame in which the cameras, on the whole, look at the origin, upright, from ``_RING_RADIUS`` units away."""
    centers = torch.stack([view.camera.center_world for view in views]).double()
    rotations = torch.stack([view.camera.T_camera_world[:3, :3] for view in views]).double()
    downs, forwards = rotations[:, 1], rotations[:, 2]
    up = -downs.mean(dim=0)
    # cameras that were rolled every way have no mean: then any of them will do
    up = torch.nn.functional.normalize(up if up.norm() > 0.1 else -downs[0], dim=0)
    # the point nearest to all optical axes: sum of (I - f f^T) (p - c) = 0
    across = torch.eye(3, dtype=torch.float64) - forwards[:, :, None] * forwards[:, None, :]
    # parallel axes have no nearest point: a little weight on a step ahead of the cameras decides there
    # (1e-6: of a single camera, or cameras in one place)
    step = (centers - centers.mean(dim=0)).norm(dim=1).mean().clamp_min(1e-6)
    ahead = (centers + step * forwards).mean(dim=0)
    weight = 1e-2 * len(views)
    matrix = across.sum(dim=0) + weight * torch.eye(3, dtype=torch.float64)
    center = torch.linalg.solve(matrix, (across @ centers[:, :, None]).sum(dim=0)[:, 0] + weight * ahead)
    distance = float((centers - center).norm(dim=1).median().clamp_min(1e-6))
    return DisplayFrame(center.float(), _RING_RADIUS / distance, up.float())


def first_view(views: tuple[View, ...], means: Float[Tensor, "gaussian 3"]) -> View:
    """The photograph that shows most of the scene: the page opens where it was taken."""
    sample = means[:: max(1, len(means) // _SAMPLE)]

    def seen(view: View) -> int:
        xy_px, depth = project(view.camera, sample)
        size_px = xy_px.new_tensor([view.camera.width, view.camera.height])
        return int(((depth > 0) & (xy_px > 0).all(dim=1) & (xy_px < size_px).all(dim=1)).sum())

    return max(views, key=seen)


def vertical_fov(camera: Camera) -> float:
    """Vertical field of view in radians."""
    return 2 * math.atan(camera.height / 2 / camera.fy_px)


def close_pose(
    frame: DisplayFrame, camera: Camera, center_world: Float[Tensor, " 3"], box_world: Float[Tensor, "2 3"]
) -> Pose:
    """A look from the direction of a camera at a box, as near as shows it whole, but no farther away than the camera."""
    away = camera.center_world - center_world
    size = float((box_world[1] - box_world[0]).norm())
    # the box's sphere in three quarters of the picture
    wanted = max(size, 1e-3 * float(away.norm())) / 2 / math.sin(vertical_fov(camera) / 2) / 0.75
    # 1e-6: a camera in the very centre has no direction, and stays there
    eye = center_world + away * min(1.0, wanted / float(away.norm().clamp_min(1e-6)))
    return Pose(frame.points(eye), frame.points(center_world))
