"""COLMAP's sparse models, binary and text: cameras, poses and points, every byte checked.

The files are read here and not by pycolmap (4.2), which takes some files that are cut off for whole, never returns from
others, and insists on tracks that this program does not use. rigs.bin and frames.bin of COLMAP 4 are not needed:
images.bin holds every pose. Layout: https://colmap.github.io/format.html
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.spatial.transform import Rotation
from torch import Tensor

from gags.errors import GagsError

PARTS = ("cameras", "images", "points3D")
"""The files of a model, without their suffix."""

_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0")
_N_RECORDS = re.compile(r"# Number of (?:cameras|images|points): (\d+)")
"""What COLMAP writes at the top of a text file."""
_POINT = struct.Struct("<Q3d3BdQ")
_AGAIN = "copy the whole model again, or export it anew from COLMAP"

Record = TypeVar("Record")


@dataclass(frozen=True)
class SparseCamera:
    """Intrinsics as COLMAP has them, lens distortion included."""

    model: str
    """COLMAP's name of the camera model."""
    width: int
    """Image width in pixels."""
    height: int
    """Image height in pixels."""
    params: tuple[float, ...]
    """The model's parameters in COLMAP's order."""


@dataclass(frozen=True)
class SparseImage:
    """One registered photograph."""

    name: str
    """Path inside the images folder."""
    camera: SparseCamera
    """What took it."""
    T_camera_world: Float[Tensor, "4 4"]
    """World to camera, float32."""


@dataclass(frozen=True)
class SparseModel:
    """Cameras, poses and points of one reconstruction."""

    images: tuple[SparseImage, ...]
    """Sorted by name."""
    points: Float[Tensor, "point 3"]
    """Points in the world, float32."""
    point_colors: UInt8[Tensor, "point 3"]
    """Their colours, RGB."""


def find_model(scene: Path) -> Path | None:
    """The folder of a scene's sparse model; None where the scene has no such folder at all.

    Raises GagsError when there is a place for a model and no model in it.
    """
    for folder in (scene / name for name in _FOLDERS):
        if any((folder / f"{part}{suffix}").is_file() for part in PARTS for suffix in (".bin", ".txt")):
            return folder
    for folder in (scene / "sparse", scene / "colmap"):
        if folder.is_dir():
            raise GagsError(
                f"{folder}: expected a COLMAP model (cameras, images and points3D, .bin or .txt) in "
                f"{', '.join(_FOLDERS)}, found none; run COLMAP's mapper, or remove {folder.name}/ to have the cameras "
                "made from the photographs"
            )
    return None


def read_model(folder: Path) -> SparseModel:
    """The model in a folder, from its .bin files or else its .txt files.

    Raises GagsError when a file is missing, cut off, or says something that cannot be.
    """
    suffix = ".bin" if any((folder / f"{part}.bin").is_file() for part in PARTS) else ".txt"
    paths = [folder / f"{part}{suffix}" for part in PARTS]
    for path in paths:
        if not path.is_file():
            raise GagsError(
                f"{path}: expected the sparse model's three files ({', '.join(p.name for p in paths)}), found no "
                f"{path.name}; {_AGAIN}"
            )
    if suffix == ".bin":
        cameras = dict(_read_binary(paths[0], _binary_camera))
        poses = _read_binary(paths[1], _binary_image)
        points = _read_binary(paths[2], _binary_point)
    else:
        cameras = dict(_read_text(paths[0], _text_camera))
        poses = _read_text(paths[1], _text_image)
        points = _read_text(paths[2], _text_point)
    images = tuple(_to_image(paths[1], pose, cameras) for pose in sorted(poses, key=lambda pose: pose.name))
    _check_names(paths[1], images)
    table = np.array(points, dtype=np.float64).reshape(-1, 6)
    if not np.isfinite(table).all():
        raise GagsError(f"{paths[2]}: expected finite coordinates, found points at infinity or not a number; {_AGAIN}")
    return SparseModel(
        images, torch.from_numpy(table[:, :3].astype(np.float32)), torch.from_numpy(table[:, 3:].astype(np.uint8))
    )


@dataclass(frozen=True)
class _Pose:
    name: str
    camera_id: int
    wxyz: tuple[float, ...]
    translation: tuple[float, ...]


def _to_image(path: Path, pose: _Pose, cameras: dict[int, SparseCamera]) -> SparseImage:
    if pose.camera_id not in cameras:
        raise GagsError(
            f"{path}: image {pose.name!r} was taken by camera {pose.camera_id}, expected one of the "
            f"{len(cameras)} in {path.with_stem('cameras').name}, found no such camera; {_AGAIN}"
        )
    w, x, y, z = pose.wxyz
    if not all(map(math.isfinite, (*pose.wxyz, *pose.translation))) or math.hypot(w, x, y, z) == 0.0:
        raise GagsError(
            f"{path}: image {pose.name!r}: expected a rotation and a position, found {pose.wxyz}, {pose.translation}; "
            f"{_AGAIN}"
        )
    T_camera_world = np.eye(4)
    T_camera_world[:3, :3] = Rotation.from_quat([x, y, z, w]).as_matrix()
    T_camera_world[:3, 3] = pose.translation
    return SparseImage(pose.name, cameras[pose.camera_id], torch.from_numpy(T_camera_world.astype(np.float32)))


def _check_names(path: Path, images: tuple[SparseImage, ...]) -> None:
    names = [image.name for image in images]
    for before, name in zip(["", *names], names, strict=False):
        if name == before:
            raise GagsError(f"{path}: expected every image once, found {name!r} twice; {_AGAIN}")
        pure = PurePosixPath(name)
        # a model from elsewhere must not make this program read or write outside its folders
        if not name or pure.is_absolute() or ".." in pure.parts:
            raise GagsError(
                f"{path}: expected names of files inside the images folder, found {name!r}; rename that image"
            )


def _camera(path: Path, model: int | str, width: int, height: int) -> tuple[str, int]:
    """The camera model's name and number of parameters."""
    import pycolmap

    known = {name: kind for name, kind in pycolmap.CameraModelId.__members__.items() if kind.value >= 0}
    name = next((name for name, kind in known.items() if model in (name, kind.value)), None)
    if name is None:
        raise GagsError(
            f"{path}: expected a camera model that COLMAP knows ({', '.join(known)}), found {model!r}; the file is "
            f"damaged or of a newer COLMAP: {_AGAIN}, with PINHOLE cameras"
        )
    if not (0 < width < 2**31 and 0 < height < 2**31):
        raise GagsError(f"{path}: expected a camera with a size in pixels, found {width}x{height}; {_AGAIN}")
    return name, len(pycolmap.Camera.create_from_model_name(1, name, 1.0, 2, 2).params)


def _checked_camera(path: Path, name: str, width: int, height: int, params: tuple[float, ...]) -> SparseCamera:
    if not all(map(math.isfinite, params)) or params[0] <= 0.0:
        raise GagsError(
            f"{path}: expected finite camera parameters and a focal length above 0, found {params}; {_AGAIN}"
        )
    return SparseCamera(name, width, height, params)


class _Bytes:
    """A file's bytes, taken from front to back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.read_bytes()
        self.offset = 0

    def take(self, layout: str | struct.Struct) -> tuple[Any, ...]:
        """The next values of this layout."""
        layout = struct.Struct(layout) if isinstance(layout, str) else layout
        start = self.offset
        self.skip(layout.size)
        return layout.unpack_from(self.data, start)

    def skip(self, size: int) -> None:
        """Pass over bytes that must be there."""
        if self.offset + size > len(self.data):
            raise self.cut_off()
        self.offset += size

    def take_name(self) -> str:
        """The next zero-terminated name."""
        end = self.data.find(b"\0", self.offset)
        if end < 0:
            raise self.cut_off()
        name, self.offset = self.data[self.offset : end], end + 1
        return name.decode("utf-8", errors="replace")

    def cut_off(self) -> GagsError:
        """What to raise when the file ends too soon."""
        return GagsError(
            f"{self.path}: expected a whole COLMAP file, found one that is cut off after {len(self.data)} bytes; "
            f"{_AGAIN}"
        )


def _read_binary(path: Path, read: Callable[[_Bytes], Record]) -> list[Record]:
    data = _Bytes(path)
    (count,) = data.take("<Q")
    records: list[Record] = []
    while len(records) < count:
        records.append(read(data))
    if data.offset != len(data.data):
        raise GagsError(
            f"{path}: expected {data.offset} bytes for its {count} records, found {len(data.data)} bytes; {_AGAIN}"
        )
    return records


def _binary_camera(data: _Bytes) -> tuple[int, SparseCamera]:
    camera_id, model, width, height = data.take("<IiQQ")
    name, n_params = _camera(data.path, model, width, height)
    return camera_id, _checked_camera(data.path, name, width, height, data.take(f"<{n_params}d"))


def _binary_image(data: _Bytes) -> _Pose:
    _, *pose, camera_id = data.take("<I7dI")
    name = data.take_name()
    (n_observations,) = data.take("<Q")
    data.skip(24 * n_observations)
    return _Pose(name, camera_id, tuple(pose[:4]), tuple(pose[4:]))


def _binary_point(data: _Bytes) -> tuple[float, ...]:
    _, *xyz_rgb, _, track_length = data.take(_POINT)
    data.skip(8 * track_length)
    return tuple(xyz_rgb)


def _read_text(path: Path, read: Callable[[Path, str, Iterator[str]], Record]) -> list[Record]:
    records: list[Record] = []
    try:
        *whole, last = path.read_text(encoding="utf-8").split("\n")
        if last:
            raise GagsError(
                f"{path}: expected a line end after the last line, found {last[:100]!r}; the file is cut off: {_AGAIN}"
            )
        promised = None
        lines = iter(whole)
        for line in lines:
            if header := _N_RECORDS.match(line):
                promised = int(header[1])
            elif line.strip() and not line.startswith("#"):
                try:
                    records.append(read(path, line, lines))
                except (ValueError, IndexError, OverflowError, StopIteration) as error:
                    raise GagsError(
                        f"{path}: expected a line of COLMAP's text format, found {line[:100]!r}; the file is cut off "
                        f"or damaged: {_AGAIN}"
                    ) from error
    except UnicodeDecodeError as error:
        raise GagsError(f"{path}: expected text, found something else ({error}); {_AGAIN}") from error
    if promised not in (None, len(records)):
        raise GagsError(
            f"{path}: expected {promised} records, as its header says, found {len(records)}; the file is cut off: {_AGAIN}"
        )
    return records


def _text_camera(path: Path, line: str, lines: Iterator[str]) -> tuple[int, SparseCamera]:
    camera_id, model, width, height, *numbers = line.split()
    name, n_params = _camera(path, model, int(width), int(height))
    if len(numbers) != n_params:
        raise ValueError(f"{n_params} parameters")
    return int(camera_id), _checked_camera(path, name, int(width), int(height), tuple(map(float, numbers)))


def _text_image(path: Path, line: str, lines: Iterator[str]) -> _Pose:
    _, *numbers, camera_id, name = line.rstrip().split(maxsplit=9)
    pose = tuple(map(float, numbers))
    if len(pose) != 7:
        raise ValueError("7 numbers")
    # the line of (x, y, point) triples, which may be empty but must be there and not be another image
    if len(next(lines).split()) % 3:
        raise ValueError("triples")
    return _Pose(name, int(camera_id), pose[:4], pose[4:])


def _text_point(path: Path, line: str, lines: Iterator[str]) -> tuple[float, ...]:
    values = line.split()
    if len(values) < 8 or len(values) % 2:
        raise ValueError("8 values and pairs")
    rgb = tuple(map(int, values[4:7]))
    if not all(0 <= value <= 255 for value in rgb):
        raise ValueError("a colour")
    return (*map(float, values[1:4]), *rgb)
