"""load_scene: a COLMAP scene or a folder of photographs becomes a Scene, or one clear error."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

from gags.errors import GagsError
from gags.images import image_size, read_image
from gags.progress import track
from gags.scene._colmap import SparseImage, SparseModel, find_model, read_model
from gags.scene._pairs import Matching
from gags.scene._photos import Lens, make_lens, make_model, undistort
from gags.scene._scene import Scene, View
from gags.settings import Count, Side, Within, check_settings

logger = logging.getLogger(__name__)

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")
"""What counts as a photograph in a folder without a model, in any case."""

N_THREADS = min(8, os.cpu_count() or 1)
"""Pictures that are decoded at the same time: bounds the memory, not the speed."""


@dataclass(frozen=True)
class SceneConfig:
    """Which photographs, at which size."""

    max_side_px: Side | None = 1600
    """Longer side of the working resolution in pixels; larger photographs are shrunk to it (None: as they are)."""
    every: Count = 1
    """Keep every n-th photograph in name order."""
    hold_out_every: Annotated[int, Within(2, or_zero=True)] = 0
    """Keep every n-th of the kept views, the first included, for PSNR and SSIM alone (8 is the custom; 0: none)."""
    images_folder: str = "images"
    """Folder of the photographs inside the scene."""
    cameras: Literal["auto", "photographs"] = "auto"
    """auto: those of the scene's COLMAP model; made from the photographs where it has none. photographs: made in any case
    and moved to the model's place, for models that reproduce badly."""
    matching: Matching = "auto"
    """Pairs compared to make cameras: exhaustive (all), sequential (those that follow each other in name order), auto (all
    up to 60 photographs; of more, those that follow each other and those that look alike)."""


def load_scene(path: Path, config: SceneConfig, workspace: Path) -> Scene:
    """Read a COLMAP scene, or make the cameras of a folder of photographs.

    A model lies in sparse/0, sparse or colmap/sparse/0 (.bin or .txt) with its pictures in ``config.images_folder``.
    Without one, or with ``config.cameras`` "photographs", the JPEG and PNG files in ``config.images_folder``, or else in
    ``path`` itself, get their cameras by structure from motion.
    Lenses with distortion are undistorted. Every picture is decoded once, so that a damaged one is found now.

    path: the scene's folder; only read.
    workspace: where made cameras and undistorted pictures go; keep it as long as the scene.
    Raises GagsError for anything missing, damaged or contradictory.
    """
    check_settings(config, "scene.")
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise GagsError(
            f"{path}: expected a folder (a COLMAP scene or photographs), found {found}; check the path for a slip"
        )
    given = find_model(path)
    model_folder = None if config.cameras == "photographs" else given
    if model_folder is None:
        image_folder, photos = _find_photos(path, config)
        names = photos[:: config.every]
        if len(names) < 2:
            raise _too_few(path, len(names), config.every)
        _check_pictures([image_folder / name for name in names])
        model_folder = make_model(image_folder, names, workspace, config.matching, given)
        model = read_model(model_folder)
        images: Sequence[SparseImage] = model.images
    else:
        image_folder = path / config.images_folder
        model = read_model(model_folder)
        photos = [*_photos_in(image_folder, "**/*"), *(image.name for image in model.images)]
        images = model.images[:: config.every]
        if len(images) < 2:
            raise _too_few(model_folder, len(images), config.every)
        _check_present(image_folder, images)
        _check_pictures([image_folder / image.name for image in images])
    if len(model.points) == 0:
        raise GagsError(
            f"{model_folder}: expected sparse 3D points, found none; run COLMAP's mapper or point_triangulator: the "
            "splats start from its points"
        )
    scene = _to_scene(image_folder, images, model, config, workspace)
    return replace(scene, left_out=tuple(sorted(set(photos) - {view.name for view in scene.views})))


def _too_few(path: Path, found: int, every: int) -> GagsError:
    thinned = f" after keeping every {every}th" if every > 1 else ""
    return GagsError(
        f"{path}: expected two or more views, found {found}{thinned}; a scene needs photographs of one place from "
        "several sides"
    )


def _find_photos(path: Path, config: SceneConfig) -> tuple[Path, list[str]]:
    """The folder and the sorted names of a scene's photographs."""
    inside = path / config.images_folder
    folder, pattern = (inside, "**/*") if inside.is_dir() else (path, "*")
    names = _photos_in(folder, pattern)
    if not names:
        raise GagsError(
            f"{folder}: expected photographs ({', '.join(PHOTO_SUFFIXES)}) or a COLMAP scene with sparse/0 and "
            f"{config.images_folder}/, found neither; check the path, or the images folder's name"
        )
    return folder, names


def _photos_in(folder: Path, pattern: str) -> list[str]:
    """Names of the photographs in a folder, sorted."""
    return sorted(
        file.relative_to(folder).as_posix()
        for file in folder.glob(pattern)
        # names that start with a dot are other systems' notes beside the pictures
        if file.suffix.lower() in PHOTO_SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def _check_present(image_folder: Path, images: Sequence[SparseImage]) -> None:
    if not image_folder.is_dir():
        raise GagsError(
            f"{image_folder}: expected the folder with the sparse model's {len(images)} images, found none; put them "
            "there, or give the folder's name with --scene.images-folder"
        )
    missing = [image.name for image in images if not (image_folder / image.name).is_file()]
    if missing:
        raise GagsError(
            f"{image_folder / missing[0]}: expected an image that the sparse model names, found no such file "
            f"({len(missing)} of {len(images)} are missing); restore it, or name another folder with "
            "--scene.images-folder"
        )


def _check_pictures(paths: Sequence[Path]) -> None:
    """Decode every picture once: a truncated one is an error now and not hours later."""
    with ThreadPoolExecutor(N_THREADS) as pool:
        for _ in track(pool.map(_decode, paths), "check", total=len(paths)):
            pass


def _decode(path: Path) -> None:
    read_image(path)


def _image_sizes(image_folder: Path, images: Sequence[SparseImage]) -> list[tuple[int, int]]:
    """(width, height) of every picture; a GagsError unless all are their cameras' size, or one scale of it.

    People keep pictures at a quarter of the size beside the model of the full size: the cameras shrink with them.
    """
    sizes = [image_size(image_folder / image.name) for image in images]
    if all(size == (image.camera.width, image.camera.height) for size, image in zip(sizes, images, strict=True)):
        return sizes
    ranges = [_scale_range(image, size) for image, size in zip(images, sizes, strict=True)]
    low, high = max(low for low, _ in ranges), min(high for _, high in ranges)
    # a scale of 1 with sizes that differ is not rounding: something was cropped
    if low <= high and not low <= 1.0 <= high:
        logger.info("the pictures are %.4g times the size of their cameras: cameras rescaled", (low + high) / 2)
        return sizes
    scale = median((low + high) / 2 for low, high in ranges)
    wrong = [i for i, (low, high) in enumerate(ranges) if not low <= scale <= high]
    differing = [i for i, image in enumerate(images) if sizes[i] != (image.camera.width, image.camera.height)]
    first = (wrong or differing)[0]
    image, (width, height) = images[first], sizes[first]
    raise GagsError(
        f"{image_folder / image.name}: expected {image.camera.width}x{image.camera.height} pixels as its camera in the "
        f"sparse model has (or all images scaled alike), found {width}x{height}; give the images that the model "
        "was made from"
    )


def _scale_range(image: SparseImage, size: tuple[int, int]) -> tuple[float, float]:
    """Scales that lead from the camera's size to the picture's, give or take a pixel; low > high if none does."""
    sides = list(zip(size, (image.camera.width, image.camera.height), strict=True))
    return max((found - 1) / full for found, full in sides), min((found + 1) / full for found, full in sides)


def _to_scene(
    image_folder: Path, images: Sequence[SparseImage], model: SparseModel, config: SceneConfig, workspace: Path
) -> Scene:
    sizes = _image_sizes(image_folder, images)
    keys = [(image.camera, size) for image, size in zip(images, sizes, strict=True)]
    lenses = {(camera, size): make_lens(camera, *size) for camera, size in dict.fromkeys(keys)}
    undistorted = workspace / "undistorted"

    def make_view(index: int) -> View:
        image, lens = images[index], lenses[keys[index]]
        camera = lens.camera(image.T_camera_world).limited(config.max_side_px)
        source = image_folder / image.name
        held_out = config.hold_out_every > 0 and index % config.hold_out_every == 0
        if lens.bends:
            source = _undistorted_picture(source, undistorted / image.name, lens, camera.width, camera.height)
        return View(image.name, camera, source, held_out, image.camera if lens.bends else None)

    bent = sum(lenses[key].bends for key in keys)
    if bent:
        logger.info("undistorting %d of %d photographs", bent, len(images))
    with ThreadPoolExecutor(N_THREADS) as pool:
        views = tuple(
            track(pool.map(make_view, range(len(images))), "undistort" if bent else "views", total=len(images))
        )
    logger.info("%d views, %d points", len(views), len(model.points))
    return Scene(views, model.points, model.point_colors)


def _undistorted_picture(source: Path, target: Path, lens: Lens, width: int, height: int) -> Path:
    if target.suffix.lower() not in PHOTO_SUFFIXES:
        target = target.with_name(target.name + ".png")
    undistort(source, target, lens, width, height)
    return target
