"""The built-in scene: a room hung with photographs, written as a COLMAP scene with labels.

The photographs come with scikit-image, so nothing is downloaded. The room is ray-cast exactly, and so are its labels
and the tracks of its sparse points.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16, UInt8

from gags.errors import GagsError
from gags.geometry import Camera, look_at
from gags.images import write_image
from gags.scene._demo_rays import Face, cast, draw, photo_mask, visible
from gags.scene._demo_room import PHOTOGRAPHS, Painter, build_room, camera_poses
from gags.store import write_text

logger = logging.getLogger(__name__)

CATEGORIES = tuple(photograph.category for photograph in PHOTOGRAPHS)
"""What the photographs show: the phrases that the labels hold."""

_FOCAL_OF_WIDTH = 0.68
_MIN_VISIBLE_SHARE = 0.6


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the built-in scene."""

    n_views: int = 30
    """Photographs taken of the room."""
    width: int = 400
    """Their width in pixels."""
    height: int = 300
    """Their height in pixels."""
    supersampling: int = 2
    """Rays along each side of a pixel."""
    n_points: int = 8000
    """Sparse points, each seen by two views or more."""
    n_labelled: int = 6
    """Views with labels, spread from the widest to the closest."""
    min_label_px: int = 150
    """A photograph that shows fewer pixels is not labelled."""
    texel_m: float = 0.004
    """Size of the texels of walls and furniture in metres."""
    seed: int = 0
    """Of the textures' noise and the sparse points."""


@dataclass(frozen=True)
class _SparsePoints:
    xyz_world: Float[np.ndarray, "point 3"]
    colors: UInt8[np.ndarray, "point 3"]
    xy_px: Float[np.ndarray, "view point 2"]
    seen: Bool[np.ndarray, "view point"]


def make_demo_scene(folder: Path, config: DemoConfig) -> Path:
    """Make the room and write it as ``folder``: images/, sparse/0 (COLMAP text) and labels/ (LERF-OVS).

    The folder appears whole or not at all. Equal configs give equal bytes.

    Returns:
        The folder.

    Raises:
        GagsError: the folder exists and is not empty, may not be written, the disk is full, or scikit-image has
            lost its photographs.
    """
    if min(config.n_views, config.n_labelled, config.supersampling, config.width, config.height, config.n_points) < 1:
        raise GagsError(f"demo scene: expected sizes and counts of at least 1, found {config}; raise the one below 1")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise GagsError(
            f"{folder}: expected no such folder yet, or an empty one, found files; remove it or name another"
        )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for part in ("images", "sparse/0", "labels"):
            (temporary / part).mkdir(parents=True)
        _write_scene(temporary, config)
        os.replace(temporary, folder)
    except OSError as error:
        raise GagsError(
            f"{folder}: the built-in scene could not be written ({error.strerror}); check that its parent is a "
            "writable folder and its disk is not full"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def demo_cameras(config: DemoConfig) -> list[Camera]:
    """The cameras in the order of their images, from the widest view to the closest."""
    focal_px = _FOCAL_OF_WIDTH * config.width
    up_world = torch.tensor([0.0, -1.0, 0.0])
    return [
        Camera(
            look_at(torch.tensor(eye, dtype=torch.float32), torch.tensor(target, dtype=torch.float32), up_world),
            focal_px,
            focal_px,
            config.width / 2,
            config.height / 2,
            config.width,
            config.height,
        )
        for eye, target in camera_poses(config.n_views)
    ]


def _write_scene(folder: Path, config: DemoConfig) -> None:
    rng = np.random.default_rng(config.seed)
    faces = build_room(Painter(rng, config.texel_m))
    cameras = demo_cameras(config)
    names = [f"frame_{i + 1:05d}.jpg" for i in range(len(cameras))]
    for name, camera in zip(names, cameras, strict=True):
        picture = draw(camera, faces, config.supersampling)
        write_image(folder / "images" / name, torch.from_numpy(np.rint(picture).astype(np.uint8)))
    points = _sample_points(rng, faces, cameras, config.n_points)
    _write_model(folder / "sparse/0", cameras, names, points)
    labels = [_label(camera, faces, name, config.min_label_px) for camera, name in zip(cameras, names, strict=True)]
    for label in _choose(labels, config.n_labelled):
        path = (folder / "labels" / label["info"]["name"]).with_suffix(".json")
        write_text(path, json.dumps(label) + "\n")
    logger.info("made %d views, %d sparse points and labels of %s", len(cameras), len(points.xyz_world), CATEGORIES)


def _choose(labels: list[dict[str, Any]], n_chosen: int) -> list[dict[str, Any]]:
    """Of each of ``n_chosen`` runs of views, the one that best evens out how often the categories are labelled."""
    times = dict.fromkeys(CATEGORIES, 0)
    chosen = []
    for views in np.array_split(np.arange(len(labels)), min(n_chosen, len(labels))):
        shown = {i: {entry["category"] for entry in labels[i]["objects"]} for i in views.tolist()}
        best = max(shown, key=lambda i: sum(0.25 ** times[category] for category in shown[i]))
        for category in shown[best]:
            times[category] += 1
        chosen.append(labels[best])
    return chosen


def _label(camera: Camera, faces: list[Face], name: str, min_label_px: int) -> dict[str, Any]:
    """The photographs that a view shows well, in LERF-OVS form; one object for each connected part."""
    from scipy import ndimage

    hits = cast(camera, faces)
    objects: list[dict[str, Any]] = []
    for index, face in enumerate(faces):
        if face.category is None:
            continue
        mask = photo_mask(camera, faces, hits, index)
        if mask.sum() < min_label_px or mask.sum() < _MIN_VISIBLE_SHARE * _whole_area_px(camera, face):
            continue
        parts, n_parts = ndimage.label(mask, structure=np.ones((3, 3)))
        for part in range(1, n_parts + 1):
            rows, columns = np.nonzero(parts == part)
            objects.append(
                {
                    "category": face.category,
                    "segmentation": _outline(parts == part),
                    "bbox": [int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())],
                }
            )
    return {"info": {"name": name, "width": camera.width, "height": camera.height}, "objects": objects}


def _whole_area_px(camera: Camera, face: Face) -> float:
    """Area of the photograph's image if nothing hid or cut it; infinite if it reaches behind the camera."""
    T_camera_world = camera.T_camera_world.double().numpy()
    corners = face.photo_corners_world @ T_camera_world[:3, :3].T + T_camera_world[:3, 3]
    if corners[:, 2].min() <= 0.0:
        return float("inf")
    x, y = corners[:, 0] / corners[:, 2] * camera.fx_px, corners[:, 1] / corners[:, 2] * camera.fy_px
    return float(0.5 * abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def _outline(mask: Bool[np.ndarray, "height width"]) -> list[list[int]]:
    """A polygon (x, y) through the boundary pixels of a mask in one piece: filled, outline included, it is the mask."""
    from skimage.measure import find_contours

    # A level just below the mask's puts the contour on its outermost pixels, not between them and the next.
    contours = find_contours(np.pad(mask, 1).astype(np.float64), 0.999, fully_connected="high")
    points = np.rint(max(contours, key=len) - 1.0).astype(int)[:, ::-1]
    points = points[np.any(points != np.roll(points, 1, axis=0), axis=1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    straight = (before == after).all(axis=1)
    return (points if straight.all() else points[~straight]).tolist()


def _sample_points(rng: np.random.Generator, faces: list[Face], cameras: list[Camera], n_points: int) -> _SparsePoints:
    """Random points of the faces that two views or more see (one, if there is one view only)."""
    areas = np.array([np.linalg.norm(np.cross(face.u_world, face.v_world)) for face in faces])
    # Photographs have more to match than paint, and furniture more corners than walls.
    areas *= [4.0 if face.category else (2.0 if area < 2.0 else 1.0) for face, area in zip(faces, areas, strict=True)]
    least = min(2, len(cameras))
    parts: list[_SparsePoints] = []
    while sum(len(part.xyz_world) for part in parts) < n_points:
        own = rng.choice(len(faces), size=2 * n_points, p=areas / areas.sum()).astype(np.int16)
        uv = rng.uniform(size=(len(own), 2))
        xyz = np.stack([faces[i].point_world(u, v) for i, (u, v) in zip(own, uv, strict=True)])
        views = [visible(camera, faces, xyz, own) for camera in cameras]
        seen = np.stack([view[1] for view in views])
        kept = seen.sum(axis=0) >= least
        colors = _point_colors(faces, own[kept], uv[kept], cameras[0].fx_px)
        parts.append(_SparsePoints(xyz[kept], colors, np.stack([view[0] for view in views])[:, kept], seen[:, kept]))
    return _SparsePoints(
        np.concatenate([part.xyz_world for part in parts])[:n_points],
        np.concatenate([part.colors for part in parts])[:n_points],
        np.concatenate([part.xy_px for part in parts], axis=1)[:, :n_points],
        np.concatenate([part.seen for part in parts], axis=1)[:, :n_points],
    )


def _point_colors(
    faces: list[Face], own: Int16[np.ndarray, " point"], uv: Float[np.ndarray, "point 2"], focal_px: float
) -> UInt8[np.ndarray, "point 3"]:
    """The faces' colours, averaged over what a pixel covers from two metres away."""
    colors = np.zeros((len(own), 3))
    for index in np.unique(own):
        face, here = faces[index], own == index
        texel_m = np.sqrt(
            np.linalg.norm(face.u_world) * np.linalg.norm(face.v_world) / (face.texture.width * face.texture.height)
        )
        colors[here] = face.texture.sample(uv[here], np.full(here.sum(), 2.0 / focal_px / texel_m))
    return np.rint(colors).astype(np.uint8)


def _write_model(folder: Path, cameras: list[Camera], names: list[str], points: _SparsePoints) -> None:
    """COLMAP's three text files."""
    camera = cameras[0]
    intrinsics = f"{camera.fx_px:.6f} {camera.fy_px:.6f} {camera.cx_px:.6f} {camera.cy_px:.6f}"
    header = "# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n"
    write_text(folder / "cameras.txt", f"{header}1 PINHOLE {camera.width} {camera.height} {intrinsics}\n")
    image_lines = [
        "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME",
        "# POINTS2D[] as (X, Y, POINT3D_ID)",
    ]
    tracks: list[list[str]] = [[] for _ in points.xyz_world]
    for i, (camera, name) in enumerate(zip(cameras, names, strict=True)):
        pose = " ".join(f"{value:.9f}" for value in [*_wxyz(camera), *camera.T_camera_world[:3, 3].tolist()])
        image_lines.append(f"{i + 1} {pose} 1 {name}")
        seen = np.nonzero(points.seen[i])[0]
        xy_px = points.xy_px[i, seen]
        image_lines.append(" ".join(f"{x:.3f} {y:.3f} {j + 1}" for (x, y), j in zip(xy_px, seen, strict=True)))
        for position, j in enumerate(seen):
            tracks[j].append(f"{i + 1} {position}")
    write_text(folder / "images.txt", "\n".join(image_lines) + "\n")
    point_lines = ["# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)"]
    for i, track in enumerate(tracks):
        xyz = " ".join(f"{value:.6f}" for value in points.xyz_world[i])
        rgb = " ".join(str(value) for value in points.colors[i])
        point_lines.append(f"{i + 1} {xyz} {rgb} 0 {' '.join(track)}")
    write_text(folder / "points3D.txt", "\n".join(point_lines) + "\n")


def _wxyz(camera: Camera) -> list[float]:
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(camera.T_camera_world[:3, :3].double().numpy()).as_quat()
    return [w, x, y, z]
