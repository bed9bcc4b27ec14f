"""Cameras and projection: the home of every frame and unit convention of the project.

Conventions (docs/conventions.md says the same in more words):

- ``T_a_b`` maps coordinates of frame b to frame a: ``x_a = T_a_b @ x_b`` (column vectors, 4 x 4).
- Cameras are OpenCV's: x right, y down, z forward; ``depth`` is z in the camera frame, in scene units.
- Pixel (row v, column u) covers [u, u + 1) x [v, v + 1): its centre is at (u + 0.5, v + 0.5), as COLMAP and gsplat have it.
- Quaternions are ``wxyz``. Names end in their unit or order where it is not plain: ``_px``, ``_xyxy``, ``_wxyz``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with a pose: everything needed to render a view."""

    T_camera_world: Float[Tensor, "4 4"]
    """World to camera, float32."""
    fx_px: float
    """Focal length along x."""
    fy_px: float
    """Focal length along y."""
    cx_px: float
    """Principal point along x; the image centre is at width / 2."""
    cy_px: float
    """Principal point along y."""
    width: int
    """Image width in pixels."""
    height: int
    """Image height in pixels."""

    @property
    def K(self) -> Float[Tensor, "3 3"]:
        """Intrinsic matrix, float32."""
        return torch.tensor(
            [[self.fx_px, 0.0, self.cx_px], [0.0, self.fy_px, self.cy_px], [0.0, 0.0, 1.0]], dtype=torch.float32
        )

    @property
    def center_world(self) -> Float[Tensor, " 3"]:
        """The camera's position in the world."""
        R_camera_world = self.T_camera_world[:3, :3]
        return -R_camera_world.T @ self.T_camera_world[:3, 3]

    def resized(self, width: int, height: int) -> Camera:
        """The same camera taking a picture of ``width`` x ``height`` pixels (the field of view stays)."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self,
            fx_px=self.fx_px * sx,
            fy_px=self.fy_px * sy,
            cx_px=self.cx_px * sx,
            cy_px=self.cy_px * sy,
            width=width,
            height=height,
        )

    def limited(self, max_side_px: int | None) -> Camera:
        """The same camera with its longer side at most ``max_side_px`` (None: unchanged)."""
        longer = max(self.width, self.height)
        if max_side_px is None or longer <= max_side_px:
            return self
        scale = max_side_px / longer
        return self.resized(max(1, round(self.width * scale)), max(1, round(self.height * scale)))


def transform(T_a_b: Float[Tensor, "4 4"], points_b: Float[Tensor, "point 3"]) -> Float[Tensor, "point 3"]:
    """Coordinates in frame a of points given in frame b."""
    return points_b @ T_a_b[:3, :3].T + T_a_b[:3, 3]


def project(
    camera: Camera, points_world: Float[Tensor, "point 3"]
) -> tuple[Float[Tensor, "point 2"], Float[Tensor, " point"]]:
    """Image position (x, y; pixel centres at +0.5) and depth of world points.

    Points with depth <= 0 are behind the camera: their position means nothing, check the depth.
    """
    points_camera = transform(camera.T_camera_world, points_world)
    depth = points_camera[:, 2]
    focal_px = points_camera.new_tensor([camera.fx_px, camera.fy_px])
    center_px = points_camera.new_tensor([camera.cx_px, camera.cy_px])
    return points_camera[:, :2] / depth[:, None] * focal_px + center_px, depth


def unproject(
    camera: Camera, xy_px: Float[Tensor, "point 2"], depth: Float[Tensor, " point"]
) -> Float[Tensor, "point 3"]:
    """World points from image positions and depths: the inverse of ``project``."""
    focal_px = xy_px.new_tensor([camera.fx_px, camera.fy_px])
    center_px = xy_px.new_tensor([camera.cx_px, camera.cy_px])
    xy_camera = (xy_px - center_px) / focal_px * depth[:, None]
    points_camera = torch.cat([xy_camera, depth[:, None]], dim=1)
    R_camera_world, t_camera_world = camera.T_camera_world[:3, :3], camera.T_camera_world[:3, 3]
    return (points_camera - t_camera_world) @ R_camera_world


def look_at(
    eye_world: Float[Tensor, " 3"], target_world: Float[Tensor, " 3"], up_world: Float[Tensor, " 3"]
) -> Float[Tensor, "4 4"]:
    """``T_camera_world`` of a camera at ``eye_world`` that looks at ``target_world`` with ``up_world`` upwards in the image."""
    forward = torch.nn.functional.normalize(target_world - eye_world, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up_world), dim=0)
    down = torch.linalg.cross(forward, right)
    R_camera_world = torch.stack([right, down, forward])
    T_camera_world = torch.eye(4)
    T_camera_world[:3, :3] = R_camera_world
    T_camera_world[:3, 3] = -R_camera_world @ eye_world
    return T_camera_world
