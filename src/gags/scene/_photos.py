"""From photographs to pinhole cameras with pycolmap: structure from motion, and undistortion of lenses."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gags.errors import GagsError
from gags.geometry import Camera
from gags.images import read_image, resize_image, write_image
from gags.scene._colmap import SparseCamera
from gags.store import fingerprint, read_json, write_json

if TYPE_CHECKING:
    import pycolmap

logger = logging.getLogger(__name__)

Matching = Literal["auto", "exhaustive", "sequential"]

_STRAIGHT = ("PINHOLE", "SIMPLE_PINHOLE")
_EXHAUSTIVE_LIMIT = 60
"""Photographs up to which "auto" compares every pair: their number grows with the square."""
_FEATURE_SIDE_PX = 1600
"""Longer side at which features are sought: the working resolution; time grows with its square."""


def make_model(image_folder: Path, names: Sequence[str], workspace: Path, matching: Matching) -> Path:
    """Find the cameras of photographs by structure from motion: the folder of a COLMAP model.

    SIFT, matching of all pairs or of neighbours in name order, incremental mapping (Schönberger and Frahm 2016); the
    largest model counts. Work goes into ``workspace``; a model that is there and was made of the same photographs is
    not made again. Photographs that found no place are named in a warning. Raises GagsError when no two find one.
    """
    import pycolmap

    ingredients = {name: (image_folder / name).stat().st_size for name in names}
    made_of = fingerprint({"folder": image_folder.resolve(), "photos": ingredients, "matching": matching})
    model, record = workspace / "model", workspace / "model.json"
    if record.exists() and read_json(record) == made_of:
        return model
    shutil.rmtree(workspace / "sfm", ignore_errors=True)
    shutil.rmtree(model, ignore_errors=True)
    (workspace / "sfm").mkdir(parents=True)
    _quieten()
    database = workspace / "sfm" / "database.db"
    _match(database, image_folder, names, matching)
    logger.info("finding the cameras of %d photographs", len(names))
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = 0
    # threads add the bundle adjustment's terms in any order: one gives the same cameras every time
    options.num_threads = 1
    models = pycolmap.incremental_mapping(database, image_folder, workspace / "sfm", options)
    if not models or max(found.num_reg_images() for found in models.values()) < 2:
        raise GagsError(
            f"{image_folder}: expected {len(names)} photographs of one place that overlap, found no two whose cameras "
            "could be placed; take more photographs, moving sideways in small steps, sharp and of a textured scene, or "
            "bring a COLMAP model in sparse/0"
        )
    largest = max(models.values(), key=lambda found: (found.num_reg_images(), found.num_points3D()))
    lost = sorted(set(names) - {image.name for image in largest.images.values() if image.has_pose})
    if lost:
        logger.warning(
            "%d of %d photographs could not be placed and are left out: %s", len(lost), len(names), ", ".join(lost)
        )
    model.mkdir()
    largest.write_binary(model)
    write_json(record, made_of)
    shutil.rmtree(workspace / "sfm")
    return model


def _match(database: Path, image_folder: Path, names: Sequence[str], matching: Matching) -> None:
    """Fill COLMAP's database with features and verified matches."""
    import pycolmap

    logger.info("finding features in %d photographs", len(names))
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.max_image_size = _FEATURE_SIDE_PX
    pycolmap.Database.open(database).close()
    for group in _lens_groups(image_folder, names):
        # entered in name order first: the extraction would number them as its threads finish, and results hang on numbers
        pycolmap.import_images(database, image_folder, pycolmap.CameraMode.SINGLE, image_names=group)
    pycolmap.extract_features(
        database, image_folder, image_names=list(names), extraction_options=extraction, device=pycolmap.Device.cpu
    )
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = 0
    exhaustive = matching == "exhaustive" or (matching == "auto" and len(names) <= _EXHAUSTIVE_LIMIT)
    logger.info("matching %s", "all pairs" if exhaustive else "neighbours in name order")
    match = pycolmap.match_exhaustive if exhaustive else pycolmap.match_sequential
    match(database, verification_options=verification, device=pycolmap.Device.cpu)


def _lens_groups(image_folder: Path, names: Sequence[str]) -> list[list[str]]:
    """Photographs of the same size and EXIF focal length: they share one lens."""
    import pycolmap

    groups: dict[tuple[int, int, float], list[str]] = {}
    for name in names:
        camera = pycolmap.infer_camera_from_image(image_folder / name)
        groups.setdefault((camera.width, camera.height, camera.mean_focal_length()), []).append(name)
    return list(groups.values())


def _quieten() -> None:
    """pycolmap's own log tells of every iteration: keep its errors."""
    import pycolmap

    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value


@dataclass(frozen=True)
class Lens:
    """A camera of any of COLMAP's models beside the pinhole camera that takes its place."""

    distorted: pycolmap.Camera
    """At the size of the photograph on disk."""
    pinhole: pycolmap.Camera
    """Sees only what the photograph shows: no blank borders."""

    @property
    def bends(self) -> bool:
        """Whether photographs must be resampled to fit the pinhole camera."""
        return self.distorted.model.name not in _STRAIGHT

    def camera(self, T_camera_world: Float[Tensor, "4 4"]) -> Camera:
        """The pinhole camera at a pose."""
        K = self.pinhole.calibration_matrix()
        return Camera(
            T_camera_world,
            float(K[0, 0]),
            float(K[1, 1]),
            float(K[0, 2]),
            float(K[1, 2]),
            self.pinhole.width,
            self.pinhole.height,
        )


def make_lens(camera: SparseCamera, width: int, height: int) -> Lens:
    """The lens of a camera whose photographs are ``width`` x ``height`` pixels."""
    import pycolmap

    if camera.model == "EQUIRECTANGULAR":
        raise GagsError(
            "camera model EQUIRECTANGULAR: expected photographs of a lens, found panoramas, which no pinhole camera "
            "can show; cut them into perspective views first"
        )
    distorted = pycolmap.Camera(model=camera.model, width=camera.width, height=camera.height, params=camera.params)
    if (width, height) != (camera.width, camera.height):
        distorted.rescale(width, height)
    if camera.model in _STRAIGHT:
        return Lens(distorted, distorted)
    return Lens(distorted, pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), distorted))


def undistort(source: Path, target: Path, lens: Lens, width: int, height: int) -> None:
    """Write the photograph that the lens's pinhole camera, resized to ``width`` x ``height``, would have taken."""
    import pycolmap

    bitmap = pycolmap.Bitmap.from_array(read_image(source).numpy())
    straight, camera = pycolmap.undistort_image(pycolmap.UndistortCameraOptions(), bitmap, lens.distorted)
    if (camera.width, camera.height) != (lens.pinhole.width, lens.pinhole.height):
        raise RuntimeError(f"{source}: undistorted to {camera.width}x{camera.height}")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_image(target, resize_image(torch.from_numpy(straight.to_array()), width, height))
