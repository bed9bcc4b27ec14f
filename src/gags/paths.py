"""Camera paths for moving pictures: a spline through cameras, an ellipse through their cloud."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline

from gags.errors import GagsError
from gags.geometry import Camera, look_at

_INTRINSICS = ("fx_px", "fy_px", "cx_px", "cy_px")


def interpolated_path(cameras: Sequence[Camera], n_frames: int) -> list[Camera]:
    """A smooth flight that visits the cameras in order, from the first to the last.

    Positions run along a cubic spline, rotations along scipy's ``RotationSpline`` (both have continuous
    acceleration), intrinsics along straight lines. Time runs with the length of the way, so that the speed is even
    whatever the spacing of the cameras; turning counts as way too, at the radius of the cloud of cameras. All frames
    have the size of the first camera.

    Raises:
        GagsError: there is no camera, or no frame is asked for.
    """
    _check(cameras, n_frames)
    size = cameras[0].width, cameras[0].height
    cameras = [camera.resized(*size) for camera in cameras]
    centers, rotations = _poses(cameras)
    times = np.concatenate([[0.0], np.cumsum(_way(centers, rotations))])
    # equal neighbours have no way between them, and a spline no use for them
    kept = np.concatenate([[True], np.diff(times) > 1e-9 * max(times[-1], 1.0)])
    cameras = [camera for camera, keep in zip(cameras, kept, strict=True) if keep]
    if len(cameras) == 1:
        return cameras * n_frames
    times, centers, rotations = times[kept], centers[kept], rotations[kept]
    at = np.linspace(0.0, times[-1], n_frames)
    # without a third point there is no bend
    bend = "natural" if len(cameras) > 2 else "not-a-knot"
    path_centers = CubicSpline(times, centers, bc_type=bend)(at)
    path_rotations = RotationSpline(times, Rotation.from_matrix(rotations))(at).as_matrix()
    intrinsics = {name: np.interp(at, times, [getattr(camera, name) for camera in cameras]) for name in _INTRINSICS}
    return [
        _camera(path_centers[i], path_rotations[i], size, {name: float(intrinsics[name][i]) for name in _INTRINSICS})
        for i in range(n_frames)
    ]


def ellipse_path(cameras: Sequence[Camera], n_frames: int) -> list[Camera]:
    """One round on the level ellipse that fits the cloud of cameras, looking at what they look at.

    The ellipse lies across the cameras' common up direction at their mean height; its half axes are sqrt(2) standard
    deviations of their positions along the principal directions, which is the circle itself for cameras evenly on a
    circle. The target is the point nearest to all optical axes; where the cameras look away from it (a room seen from
    its middle) so does the path. Intrinsics and size are those of the first camera. The last frame is one step before
    the first.

    Raises:
        GagsError: fewer than three cameras, or no frame is asked for.
    """
    _check(cameras, n_frames)
    if len(cameras) < 3:
        raise GagsError(f"camera path ellipse: expected 3 cameras or more, found {len(cameras)}; use interpolate")
    centers, rotations = _poses(cameras)
    forward = rotations[:, 2]
    up = -rotations[:, 1].sum(axis=0)
    up /= np.linalg.norm(up)
    middle = centers.mean(axis=0)
    level = centers - middle
    level = level - np.outer(level @ up, up)
    # the third direction of a level cloud is up: its extent is 0
    _, extents, axes = np.linalg.svd(level, full_matrices=False)
    half_axes = math.sqrt(2 / len(cameras)) * extents[:2]
    target = _nearest_to_axes(centers, forward)
    inward = float(np.median(((target - centers) * forward).sum(axis=1))) >= 0
    frames = []
    for angle in np.linspace(0.0, 2 * np.pi, n_frames, endpoint=False):
        eye = middle + half_axes[0] * math.cos(angle) * axes[0] + half_axes[1] * math.sin(angle) * axes[1]
        seen = target if inward else 2 * eye - target
        T_camera_world = look_at(*(torch.from_numpy(point).float() for point in (eye, seen, up)))
        frames.append(dataclasses.replace(cameras[0], T_camera_world=T_camera_world))
    return frames


def _check(cameras: Sequence[Camera], n_frames: int) -> None:
    if not cameras or n_frames < 1:
        raise GagsError(
            f"camera path: expected at least one camera and one frame, found {len(cameras)} and {n_frames}; "
            "choose views, or a longer video"
        )


def _poses(
    cameras: Sequence[Camera],
) -> tuple[Float[np.ndarray, "camera 3"], Float[np.ndarray, "camera 3 3"]]:
    """Positions in the world and R_camera_world, float64."""
    poses = np.stack([camera.T_camera_world.double().numpy() for camera in cameras])
    rotations = poses[:, :3, :3]
    return -np.einsum("cji,cj->ci", rotations, poses[:, :3, 3]), rotations


def _way(
    centers: Float[np.ndarray, "camera 3"], rotations: Float[np.ndarray, "camera 3 3"]
) -> Float[np.ndarray, " step"]:
    """How far it is from each camera to the next, in scene units: distance, and angle times the cloud's radius."""
    radius = float(np.linalg.norm(centers - centers.mean(axis=0), axis=1).mean()) or 1.0
    turns = Rotation.from_matrix(rotations[1:] @ rotations[:-1].transpose(0, 2, 1)).magnitude()
    return np.linalg.norm(np.diff(centers, axis=0), axis=1) + radius * turns


def _camera(
    center: Float[np.ndarray, " 3"],
    R_camera_world: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
    intrinsics: dict[str, float],
) -> Camera:
    T_camera_world = np.eye(4)
    T_camera_world[:3, :3] = R_camera_world
    T_camera_world[:3, 3] = -R_camera_world @ center
    return Camera(torch.from_numpy(T_camera_world).float(), **intrinsics, width=size[0], height=size[1])


def _nearest_to_axes(
    centers: Float[np.ndarray, "camera 3"], forward: Float[np.ndarray, "camera 3"]
) -> Float[np.ndarray, " 3"]:
    """The point with the least mean squared distance to all optical axes."""
    # the projector onto the plane across an axis: what is left of an offset once the axis is taken out
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]
    # parallel axes have no nearest point; a little of "near the cameras, one step ahead" decides there and nowhere else
    weight = 1e-6
    ahead = centers.mean(axis=0) + forward.mean(axis=0)
    matrix = across.mean(axis=0) + weight * np.eye(3)
    return np.linalg.solve(matrix, np.einsum("cij,cj->i", across, centers) / len(centers) + weight * ahead)
