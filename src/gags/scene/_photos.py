"""From photographs to pinhole cameras with pycolmap: structure from motion, and undistortion of lenses."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from gags.errors import GagsError
from gags.geometry import Camera
from gags.images import read_image, resize_image, write_image
from gags.progress import track
from gags.scene._colmap import SparseCamera, read_model
from gags.scene._pairs import Matching, pairs_to_compare
from gags.scene._scene import View
from gags.store import fingerprint, read_json, write_json

if TYPE_CHECKING:
    import pycolmap

logger = logging.getLogger(__name__)

_STRAIGHT = ("PINHOLE", "SIMPLE_PINHOLE")
_FEATURE_SIDE_PX = 1600
"""Longer side at which features are sought: the working resolution; time grows with its square."""
_DATABASE_MB_PER_PHOTO, _DATABASE_MB_PER_PAIR = 2.5, 0.02
"""Estimate, on the safe side, of what COLMAP's database takes. A photograph's 8192 features (pycolmap's most) are 1.25 MB;
with matches and SQLite's log, six photographs (1600x1200, detail everywhere, 15 pairs) took 2.53 MB each."""
_PHOTOS_A_STEP, _PAIRS_A_STEP = 8, 100
"""Between two steps of the progress bar."""


def make_model(
    image_folder: Path, names: Sequence[str], workspace: Path, matching: Matching, like: Path | None = None
) -> Path:
    """Find the cameras of photographs by structure from motion: the folder of a COLMAP model.

    SIFT, matching of the pairs worth comparing, incremental mapping (Schönberger and Frahm 2016); the largest model
    counts, moved to where the cameras of the model in the folder ``like`` are. Work goes into ``workspace``; a model that
    is there and was made of the same photographs is not made again. Photographs that found no place are named in a
    warning. Raises GagsError when no two find one, or when the disk of ``workspace`` has no room.
    """
    ingredients = {name: (image_folder / name).stat().st_size for name in names}
    made_of = fingerprint(
        {"folder": image_folder.resolve(), "photos": ingredients, "matching": matching, "like": like and like.resolve()}
    )
    model, record = workspace / "model", workspace / "model.json"
    if record.exists() and read_json(record) == made_of:
        return model
    shutil.rmtree(workspace / "sfm", ignore_errors=True)
    shutil.rmtree(model, ignore_errors=True)
    models = _map(image_folder, names, workspace / "sfm", matching)
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
    if like is not None:
        _move(largest, {image.name: image.T_camera_world for image in read_model(like).images})
    model.mkdir()
    largest.write_binary(model)
    write_json(record, made_of)
    shutil.rmtree(workspace / "sfm")
    return model


def _map(
    image_folder: Path, names: Sequence[str], folder: Path, matching: Matching
) -> dict[int, pycolmap.Reconstruction]:
    """COLMAP's reconstructions of the photographs; its database and output fill ``folder``."""
    import pycolmap

    _quieten()
    try:
        folder.mkdir(parents=True)
        database = folder / "database.db"
        _check_space(folder, len(names), 0)
        _find_features(database, image_folder, names)
        _match(database, names, matching)
        logger.info("finding the cameras of %d photographs", len(names))
        options = pycolmap.IncrementalPipelineOptions()
        options.random_seed = 0
        # threads add the bundle adjustment's terms in any order: one gives the same cameras every time
        options.num_threads = 1
        return pycolmap.incremental_mapping(database, image_folder, folder, options)
    except (OSError, RuntimeError) as error:
        raise GagsError(
            f"{folder}: expected a folder to make cameras in, found that COLMAP could not go on ({error}); check that "
            "the folder is writable and its disk is not full, and run the same command again"
        ) from error


def _check_space(folder: Path, n_photos: int, n_pairs: int) -> None:
    """A GagsError when the disk may fill: SQLite inside pycolmap (4.2) then ends the whole process."""
    needed_mb = 10.0 + n_photos * _DATABASE_MB_PER_PHOTO + n_pairs * _DATABASE_MB_PER_PAIR
    free_mb = shutil.disk_usage(folder).free / 1e6
    if free_mb < needed_mb:
        raise GagsError(
            f"{folder}: expected {needed_mb:.0f} MB of free space to make the cameras of {n_photos} photographs, found "
            f"{free_mb:.1f} MB; free some space, or choose another folder"
        )


def _find_features(database: Path, image_folder: Path, names: Sequence[str]) -> None:
    """Fill COLMAP's database with the SIFT features of the photographs."""
    import pycolmap

    options = pycolmap.FeatureExtractionOptions()
    options.max_image_size = _FEATURE_SIDE_PX
    pycolmap.Database.open(database).close()
    for group in _lens_groups(image_folder, names):
        # entered in name order first: the extraction would number them as its threads finish, and results hang on numbers
        pycolmap.import_images(database, image_folder, pycolmap.CameraMode.SINGLE, image_names=group)
    for start in track(range(0, len(names), _PHOTOS_A_STEP), "features"):
        chunk = list(names[start : start + _PHOTOS_A_STEP])
        pycolmap.extract_features(
            database, image_folder, image_names=chunk, extraction_options=options, device=pycolmap.Device.cpu
        )


def _match(database: Path, names: Sequence[str], matching: Matching) -> None:
    """Fill COLMAP's database with the verified matches of the pairs worth comparing."""
    import pycolmap

    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = 0
    with pycolmap.Database.open(database) as opened:
        id_of = {image.name: image.image_id for image in opened.read_all_images()}
        ids = [id_of[name] for name in names]
        pairs = pairs_to_compare([opened.read_descriptors(image_id).data for image_id in ids], matching)
    _check_space(database.parent, 0, len(pairs))
    _rename(database, {image_id: str(image_id) for image_id in ids})
    listed = database.with_name("pairs.txt")
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = listed
    for start in track(range(0, len(pairs), _PAIRS_A_STEP), "match"):
        listed.write_text("".join(f"{ids[i]} {ids[j]}\n" for i, j in pairs[start : start + _PAIRS_A_STEP]))
        pycolmap.match_image_pairs(
            database, pairing_options=pairing, verification_options=verification, device=pycolmap.Device.cpu
        )
    _rename(database, dict(zip(ids, names, strict=True)))


def _rename(database: Path, names: Mapping[int, str]) -> None:
    """Give photographs other names: COLMAP's lists of pairs allow no blanks in theirs."""
    import pycolmap

    with pycolmap.Database.open(database) as opened:
        for image_id, name in names.items():
            image = opened.read_image(image_id)
            image.name = name
            opened.update_image(image)


def _move(model: pycolmap.Reconstruction, T_camera_world: Mapping[str, Float[Tensor, "4 4"]]) -> None:
    """Bring a model into the frame and scale that others found for the same photographs.

    The similarity that fits the camera centres best, by least squares (Umeyama 1991).
    """
    import pycolmap

    common = [image for image in model.images.values() if image.has_pose and image.name in T_camera_world]
    theirs = [torch.linalg.inv(T_camera_world[image.name])[:3, 3].double().numpy() for image in common]
    T_theirs_ours = pycolmap.estimate_sim3d([image.projection_center() for image in common], theirs) if common else None
    if T_theirs_ours is None:
        logger.warning("the given model's frame is not kept: it shares too few photographs, or they lie in one line")
        return
    model.transform(T_theirs_ours)


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


def positions_in_photograph(view: View, width: int, height: int) -> Float[Tensor, "view_height view_width 2"]:
    """Where each pixel of a view lies in the photograph that it was undistorted from, ``width`` x ``height`` pixels large.

    Positions are x, y in pixels with pixel centres at +0.5. The view's pixels are those of its camera at the scale of the
    photograph, so that nothing is lost. The view must have a lens.
    """
    if view.lens is None:
        raise ValueError(f"{view.name}: was not undistorted")
    lens = make_lens(view.lens, width, height)
    camera = view.camera.resized(lens.pinhole.width, lens.pinhole.height)
    v, u = torch.meshgrid(torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5, indexing="ij")
    rays = torch.stack(
        [(u - camera.cx_px) / camera.fx_px, (v - camera.cy_px) / camera.fy_px, torch.ones_like(u)], dim=-1
    )
    xy_px = torch.from_numpy(lens.distorted.img_from_cam(rays.reshape(-1, 3).double().numpy()))
    return xy_px.float().reshape(camera.height, camera.width, 2)


def undistort(source: Path, target: Path, lens: Lens, width: int, height: int) -> None:
    """Write the photograph that the lens's pinhole camera, resized to ``width`` x ``height``, would have taken."""
    import pycolmap

    bitmap = pycolmap.Bitmap.from_array(read_image(source).numpy())
    straight, camera = pycolmap.undistort_image(pycolmap.UndistortCameraOptions(), bitmap, lens.distorted)
    if (camera.width, camera.height) != (lens.pinhole.width, lens.pinhole.height):
        raise RuntimeError(f"{source}: undistorted to {camera.width}x{camera.height}")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_image(target, resize_image(torch.from_numpy(straight.to_array()), width, height))
