"""The scene in a run folder, self-contained: pictures at the working resolution, cameras, points."""

from __future__ import annotations

import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from gags.errors import GagsError
from gags.geometry import Camera
from gags.images import image_size, read_image, resize_image, write_image
from gags.progress import track
from gags.scene._colmap import SparseCamera
from gags.scene._load import N_THREADS, PHOTO_SUFFIXES
from gags.scene._scene import Scene, View
from gags.store import read_json, read_tensors, write_atomically, write_json, write_tensors

_CAMERA_REMEDY = "save one from the page of 'gags view'"


def save_scene(scene: Scene, folder: Path) -> None:
    """Write ``views.json``, ``points.safetensors``, ``images/`` and ``left_out.json``, if photographs were left out.

    Equal scenes give equal bytes. A picture that has its camera's size already is copied byte by byte. Pictures that are
    there are kept: an interrupted ``save_scene`` goes on where it stopped, and ``views.json`` comes last.
    """
    with ThreadPoolExecutor(N_THREADS) as pool:
        files = list(
            track(pool.map(lambda view: _save_picture(view, folder), scene.views), "pictures", total=len(scene.views))
        )
    write_tensors(folder / "points.safetensors", {"points": scene.points, "point_colors": scene.point_colors})
    if scene.left_out:
        write_json(folder / "left_out.json", scene.left_out)
    views = [
        {"name": view.name, "camera": camera_to_json(view.camera), "image": file, "held_out": view.held_out}
        | ({} if view.lens is None else {"lens": view.lens})
        for view, file in zip(scene.views, files, strict=True)
    ]
    write_json(folder / "views.json", views)


def read_scene(folder: Path) -> Scene:
    """The scene that ``save_scene`` wrote; a GagsError if it is not there or not whole."""
    path = folder / "views.json"
    try:
        views = tuple(_view_from_json(folder, entry) for entry in read_json(path))
    except (KeyError, TypeError, ValueError) as error:
        raise GagsError(
            f"{path}: expected the views that gags wrote, found something else ({error!r}); delete {folder} and run "
            "again"
        ) from error
    tensors, _ = read_tensors(folder / "points.safetensors")
    for view in views:
        if not view.image_path.is_file():
            raise GagsError(
                f"{view.image_path}: expected the picture of view {view.name!r}, found no such file; delete {folder} "
                "and run again"
            )
    left_out = folder / "left_out.json"
    names = tuple(read_json(left_out)) if left_out.exists() else ()
    return Scene(views, tensors["points"], tensors["point_colors"], names)


def _save_picture(view: View, folder: Path) -> str:
    """Write a view's picture unless it is there; its path inside the folder."""
    copied = image_size(view.image_path) == (view.camera.width, view.camera.height)
    file = f"images/{view.name}"
    if Path(file).suffix.lower() not in PHOTO_SUFFIXES:
        # a .tif, say: its name must end as its bytes do, which are another format's when it was resized or undistorted
        suffix = view.image_path.suffix if copied else ".jpg"
        file += suffix if suffix != Path(file).suffix else ""
    target = folder / file
    if target.exists():
        return file
    target.parent.mkdir(parents=True, exist_ok=True)
    if copied:
        write_atomically(target, lambda temporary: _copy(view.image_path, temporary))
    else:
        write_image(target, resize_image(read_image(view.image_path), view.camera.width, view.camera.height))
    return file


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _view_from_json(folder: Path, entry: dict[str, Any]) -> View:
    camera, lens = _camera_from_json(entry["camera"]), entry.get("lens")
    if lens is not None:
        lens = SparseCamera(lens["model"], lens["width"], lens["height"], tuple(lens["params"]))
    return View(entry["name"], camera, folder / entry["image"], entry["held_out"], lens)


def camera_to_json(camera: Camera) -> dict[str, Any]:
    """A camera as ``views.json`` and the files of ``read_camera`` have it."""
    return {
        # float32 as double: every digit that is needed to get the same number back
        "T_camera_world": camera.T_camera_world.tolist(),
        "fx_px": camera.fx_px,
        "fy_px": camera.fy_px,
        "cx_px": camera.cx_px,
        "cy_px": camera.cy_px,
        "width": camera.width,
        "height": camera.height,
    }


def read_camera(path: Path) -> Camera:
    """The camera in a JSON file, as ``camera_to_json`` describes it (the page of ``gags view`` saves them).

    Raises:
        GagsError: no such file, or no camera in it.
    """
    return _checked_camera(path, read_json(path, _CAMERA_REMEDY))


def read_cameras(path: Path) -> list[Camera]:
    """The cameras in a JSON file: a list of what ``read_camera`` reads, or one alone.

    Raises:
        GagsError: no such file, or something else than cameras in it.
    """
    content = read_json(path, _CAMERA_REMEDY)
    return [_checked_camera(path, entry) for entry in (content if isinstance(content, list) and content else [content])]


def _checked_camera(path: Path, entry: Any) -> Camera:
    try:
        camera = _camera_from_json(entry)
        if _is_camera(camera):
            return camera
    except (KeyError, TypeError, ValueError):
        pass
    raise GagsError(
        f"{path}: expected a camera (rigid T_camera_world, positive fx_px, fy_px, width and height, cx_px, cy_px), found something "
        f"else; {_CAMERA_REMEDY}"
    )


def _is_camera(camera: Camera) -> bool:
    """Whether the numbers are those of a pinhole camera."""
    if camera.T_camera_world.shape != (4, 4):
        return False
    rotation, last_row = camera.T_camera_world[:3, :3], camera.T_camera_world[3]
    # a NaN or infinity is close to nothing; 1e-3: files round
    is_rigid = torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-3) and float(rotation.det()) > 0
    intrinsics = (camera.fx_px, camera.fy_px, camera.cx_px, camera.cy_px)
    return (
        is_rigid
        and last_row.tolist() == [0, 0, 0, 1]
        and bool(camera.T_camera_world.isfinite().all())
        and all(math.isfinite(value) for value in intrinsics)
        and min(camera.fx_px, camera.fy_px, camera.width, camera.height) > 0
    )


def _camera_from_json(entry: dict[str, Any]) -> Camera:
    return Camera(**{**entry, "T_camera_world": torch.tensor(entry["T_camera_world"], dtype=torch.float32)})
