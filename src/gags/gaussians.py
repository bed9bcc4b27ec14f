"""Gaussians: the raw parameters of a 3DGS scene, their activations, and splat files in and out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import gags.devices  # noqa: F401 (before the first exp of a scene: it has MKL choose its kernels)
from gags.errors import GagsError
from gags.store import write_atomically

SH_C0 = 0.28209479177387814
"""Value of the constant spherical harmonic, 1 / (2 sqrt(pi)): colour = 0.5 + SH_C0 * sh[:, 0]."""


@dataclass(frozen=True)
class Gaussians:
    """A scene of N anisotropic Gaussians in 3DGS's raw parametrisation (Kerbl et al. 2023)."""

    means: Float[Tensor, "gaussian 3"]
    """Centres in the world, scene units."""
    quats: Float[Tensor, "gaussian 4"]
    """Rotations, wxyz, of any length."""
    log_scales: Float[Tensor, "gaussian 3"]
    """Natural logarithm of the standard deviations along the local axes."""
    opacity_logits: Float[Tensor, " gaussian"]
    """Opacity before the sigmoid."""
    sh: Float[Tensor, "gaussian band 3"]
    """Spherical-harmonic colour coefficients, 1, 4, 9 or 16 bands."""

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def scales(self) -> Float[Tensor, "gaussian 3"]:
        """Standard deviations along the local axes, scene units."""
        return self.log_scales.exp()

    @property
    def opacities(self) -> Float[Tensor, " gaussian"]:
        """Opacity in 0..1."""
        return torch.sigmoid(self.opacity_logits)

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return round(self.sh.shape[1] ** 0.5) - 1

    def subset(self, which: Bool[Tensor, " gaussian"] | Int[Tensor, " chosen"]) -> Gaussians:
        """The Gaussians where a mask is true, or with these ids in this order."""
        return Gaussians(
            means=self.means[which],
            quats=self.quats[which],
            log_scales=self.log_scales[which],
            opacity_logits=self.opacity_logits[which],
            sh=self.sh[which],
        )

    def check(self, source: str) -> None:
        """Raise a GagsError naming ``source`` unless this is a scene that can be rendered.

        That is: one Gaussian or more, matching shapes, 1, 4, 9 or 16 bands, finite numbers, no rotation of length zero.
        """
        number = len(self)
        if number == 0:
            raise GagsError(f"{source}: expected at least one Gaussian, found none; is the file an empty export?")
        bands = self.sh.shape[1] if self.sh.dim() == 3 else 0
        expected = {"means": (3,), "quats": (4,), "log_scales": (3,), "opacity_logits": (), "sh": (bands, 3)}
        for name, shape in expected.items():
            values: Tensor = getattr(self, name)
            if tuple(values.shape) != (number, *shape):
                raise GagsError(
                    f"{source}: expected {name} of shape {(number, *shape)}, found {tuple(values.shape)}; "
                    "all parameters need one row a Gaussian"
                )
            broken = int((~torch.isfinite(values.reshape(number, -1)).all(dim=1)).sum())
            if broken:
                raise GagsError(
                    f"{source}: expected finite numbers, found {broken} of {number} Gaussians with NaN or infinite "
                    f"{name}; remove them in a splat editor or train the scene again"
                )
        if bands not in (1, 4, 9, 16):
            raise GagsError(f"{source}: expected 1, 4, 9 or 16 colour bands (degree 0 to 3), found {bands}")
        flat = int((self.quats.norm(dim=1) == 0).sum())
        if flat:
            raise GagsError(f"{source}: expected rotations, found {flat} of {number} quaternions of length zero")


def read_splats(path: Path | str) -> Gaussians:
    """Read a scene from .ply (Inria layout or PlayCanvas's compressed one), .spz or .splat.

    Positions are taken as they stand in the file: the frame must be that of the cameras it is used with. Colours of a
    .splat file are of degree 0. Raises GagsError if the file is missing, of another kind, truncated, empty or has NaNs.
    """
    path = Path(path)
    if not path.is_file():
        raise GagsError(f"{path}: expected a splat file (.ply, .spz, .splat), found no such file; check the path")
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise GagsError(f"{path}: expected a name ending in .ply, .spz or .splat, found {suffix or 'no ending'}")
    gaussians = _READERS[suffix](path)
    gaussians.check(str(path))
    return gaussians


def read_semantic(path: Path | str) -> Float[Tensor, "gaussian d"] | None:
    """The features in the vertex properties ``semantic_0 ... semantic_{d-1}`` of a .ply; None where it has none."""
    path = Path(path)
    if path.suffix.lower() != ".ply" or not path.is_file():
        raise GagsError(
            f"{path}: expected a .ply file with semantic_* properties, found none; .spz and .splat hold none"
        )
    header = _read_ply_header(path)
    names = _numbered(header.dtype, "semantic_")
    if not names:
        return None
    return _columns(_read_ply_vertices(path, header), names)


def write_splats(
    path: Path | str, gaussians: Gaussians, *, semantic: Float[Tensor, "gaussian d"] | None = None
) -> None:
    """Write a scene as .ply (Inria layout, lossless), .spz or .splat (both quantised; .splat keeps degree 0 only).

    ``semantic`` adds vertex properties ``semantic_0 ... semantic_{d-1}`` to a .ply. The file appears whole or not at
    all (``store.write_atomically``). Raises GagsError if it cannot be written.
    """
    path = Path(path)
    check_splat_name(path)
    suffix = path.suffix.lower()
    gaussians.check(str(path))
    if semantic is not None and suffix != ".ply":
        raise GagsError(f"{path}: semantic features need a .ply file, found {suffix}; write a .ply or leave them out")
    if semantic is not None and semantic.shape[0] != len(gaussians):
        raise GagsError(
            f"{path}: expected semantic features for {len(gaussians)} Gaussians, found {semantic.shape[0]} rows"
        )

    def write(partial: Path) -> None:
        if suffix == ".ply":
            _write_ply(partial, gaussians, semantic)
        elif suffix == ".spz":
            _write_spz(partial, gaussians)
        else:
            _write_splat(partial, gaussians)

    write_atomically(path, write)


def check_splat_name(path: Path) -> None:
    """Raise a GagsError for a name that ``write_splats`` has no format for, or that is a folder's."""
    if path.suffix.lower() not in _READERS or path.is_dir():
        found = "a folder" if path.is_dir() else path.suffix or "no ending"
        raise GagsError(f"{path}: expected a file's name ending in .ply, .spz or .splat, found {found}; rename it")


class _PlyHeader(NamedTuple):
    """What the text part of a binary PLY says of its first element, the vertices."""

    dtype: np.dtype
    number: int
    data_offset: int


# PLY's type names, old and new.
_PLY_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4", "uint32": "<u4"},
    **{"float": "<f4", "double": "<f8", "float32": "<f4", "float64": "<f8"},
}

# A longer header is no header: some binary file that happens to begin with "ply".
_MAX_HEADER_BYTES = 65536


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_HEADER_BYTES)


def _read_ply_header(path: Path) -> _PlyHeader:
    start = _read_start(path)
    end = start.find(b"end_header")
    data_offset = start.find(b"\n", end) + 1
    if not start.startswith(b"ply") or end < 0 or data_offset == 0:
        raise GagsError(f"{path}: expected a PLY file of Gaussians, found something else; is it a .ply splat export?")
    lines = start[:end].decode("ascii", errors="replace").split("\n")
    words = [line.split() for line in lines if line.strip()]
    formats = [line[1] for line in words if line[0] == "format" and len(line) > 1]
    if formats != ["binary_little_endian"]:
        raise GagsError(
            f"{path}: expected format binary_little_endian, found {' '.join(formats) or 'none'}; "
            "export the splats as binary PLY"
        )
    elements = [index for index, line in enumerate(words) if line[0] == "element"]
    if not elements or words[elements[0]][1:2] != ["vertex"]:
        raise GagsError(f"{path}: expected a PLY whose first element is 'vertex', found none; is it a splat file?")
    vertex = elements[0]
    last = elements[1] if len(elements) > 1 else len(words)
    properties = [line[1:] for line in words[vertex:last] if line[0] == "property"]
    if any(len(entry) != 2 or entry[0] not in _PLY_TYPES for entry in properties):
        raise GagsError(f"{path}: expected number properties at each vertex, found lists or unknown types")
    names = [name for _, name in properties]
    if len(set(names)) < len(names) or len(words[vertex]) != 3 or not words[vertex][2].isdigit():
        raise GagsError(
            f"{path}: expected a number of vertices and properties of different names, found a broken header"
        )
    dtype = np.dtype([(name, _PLY_TYPES[kind]) for kind, name in properties])
    return _PlyHeader(dtype, int(words[vertex][2]), data_offset)


def _read_ply_vertices(path: Path, header: _PlyHeader) -> np.ndarray:
    """The vertices as a structured array, or a GagsError if the file is too short."""
    expected = header.data_offset + header.number * header.dtype.itemsize
    found = path.stat().st_size
    if found < expected:
        raise GagsError(
            f"{path}: expected {expected} bytes for {header.number} Gaussians, found {found}: the file is truncated; "
            "copy or export it again"
        )
    return np.fromfile(path, dtype=header.dtype, count=header.number, offset=header.data_offset)


def _numbered(dtype: np.dtype, prefix: str) -> list[str]:
    """The properties ``prefix0, prefix1, ...`` in the order of their numbers."""
    names = [name for name in dtype.names or () if name.startswith(prefix) and name[len(prefix) :].isdigit()]
    return sorted(names, key=lambda name: int(name[len(prefix) :]))


def _columns(vertices: np.ndarray, names: list[str]) -> Float[Tensor, "gaussian column"]:
    table = np.empty((len(vertices), len(names)), dtype=np.float32)
    for column, name in enumerate(names):
        table[:, column] = vertices[name]
    return torch.from_numpy(table)


_POSITION = ["x", "y", "z"]
_SCALE = [f"scale_{axis}" for axis in range(3)]
_ROTATION = [f"rot_{part}" for part in range(4)]
_BASE_COLOR = [f"f_dc_{channel}" for channel in range(3)]


def _read_ply(path: Path) -> Gaussians:
    # PlayCanvas's compressed layout: quantised vertices in chunks of 256.
    if b"element chunk" in _read_start(path).split(b"end_header")[0]:
        return _read_with_gsply(path)
    header = _read_ply_header(path)
    names = set(header.dtype.names or ())
    missing = [name for name in [*_POSITION, *_BASE_COLOR, "opacity", *_SCALE, *_ROTATION] if name not in names]
    if missing:
        raise GagsError(
            f"{path}: expected the vertex properties of a Gaussian splat, missing {', '.join(missing)}; "
            "is it a plain point cloud?"
        )
    rest_names = _numbered(header.dtype, "f_rest_")
    if len(rest_names) not in (0, 9, 24, 45):
        raise GagsError(f"{path}: expected 0, 9, 24 or 45 f_rest_* properties (degree 0 to 3), found {len(rest_names)}")
    vertices = _read_ply_vertices(path, header)
    base = _columns(vertices, _BASE_COLOR)[:, None, :]
    # f_rest is channel-major: all bands of red, then of green, then of blue.
    rest = _columns(vertices, rest_names).reshape(len(vertices), 3, len(rest_names) // 3).transpose(1, 2)
    return Gaussians(
        means=_columns(vertices, _POSITION),
        quats=_columns(vertices, _ROTATION),
        log_scales=_columns(vertices, _SCALE),
        opacity_logits=_columns(vertices, ["opacity"])[:, 0],
        sh=torch.cat([base, rest], dim=1).contiguous(),
    )


def _write_ply(path: Path, gaussians: Gaussians, semantic: Float[Tensor, "gaussian d"] | None) -> None:
    number = len(gaussians)
    rest = gaussians.sh[:, 1:].transpose(1, 2).reshape(number, -1)
    width = 0 if semantic is None else semantic.shape[1]
    # The normals mean nothing, but readers of Inria's layout count on their place.
    names = [*_POSITION, "nx", "ny", "nz", *_BASE_COLOR, *(f"f_rest_{index}" for index in range(rest.shape[1]))]
    names += ["opacity", *_SCALE, *_ROTATION, *(f"semantic_{index}" for index in range(width))]
    columns = [gaussians.means, torch.zeros(number, 3), gaussians.sh[:, 0], rest, gaussians.opacity_logits[:, None]]
    columns += [gaussians.log_scales, gaussians.quats] + ([] if semantic is None else [semantic])
    table = torch.cat([column.detach().to("cpu", torch.float32) for column in columns], dim=1)
    properties = "".join(f"property float {name}\n" for name in names)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {number}\n{properties}end_header\n"
    with path.open("wb") as file:
        file.write(header.encode("ascii"))
        file.write(np.ascontiguousarray(table.numpy(), dtype="<f4").data)


def _read_with_gsply(path: Path) -> Gaussians:
    """.spz and compressed .ply through gsply."""
    import gsply

    try:
        data = gsply.read_spz(path) if path.suffix.lower() == ".spz" else gsply.plyread(path)
    except (ValueError, IndexError, EOFError, OSError) as error:
        raise GagsError(
            f"{path}: expected a splat file, found one that cannot be read ({error}); copy or export it again"
        ) from error

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(values, dtype=np.float32))

    number = len(data.means)
    base = tensor(data.sh0).reshape(number, 1, 3)
    bands = 0 if data.shN is None else np.asarray(data.shN).size // (3 * max(number, 1))
    rest = tensor(data.shN).reshape(number, bands, 3) if bands else base[:, :0]
    return Gaussians(
        means=tensor(data.means),
        quats=tensor(data.quats),
        log_scales=tensor(data.scales),
        opacity_logits=tensor(data.opacities).reshape(number),
        sh=torch.cat([base, rest], dim=1),
    )


# Positions in .spz are 24-bit fixed-point numbers; this many values lie on each side of zero.
_SPZ_STEPS = 2**23 - 1


def _write_spz(path: Path, gaussians: Gaussians) -> None:
    import gsply

    def array(values: Tensor) -> np.ndarray:
        return np.ascontiguousarray(values.detach().to("cpu", torch.float32).numpy())

    # 1e-6: where all sit at the origin, any number of bits fits
    farthest = max(float(gaussians.means.abs().max()), 1e-6)
    fitting_bits = int(np.floor(np.log2(_SPZ_STEPS / farthest)))
    if fitting_bits < 1:
        raise GagsError(f"{path}: .spz cannot hold positions beyond 4 194 303, found {farthest:g}; write a .ply")
    data = gsply.GSData(
        means=array(gaussians.means),
        scales=array(gaussians.log_scales),
        quats=array(torch.nn.functional.normalize(gaussians.quats, dim=1)),
        opacities=array(gaussians.opacity_logits),
        sh0=array(gaussians.sh[:, 0]),
        shN=array(gaussians.sh[:, 1:]),
    )
    # 12 bits after the point suit metres; scenes of other scales use what the 24 bits allow.
    gsply.write_spz(path, data, fractional_bits=min(fitting_bits, 24))


# The record of a .splat file: 32 bytes a Gaussian.
_SPLAT_RECORD = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])


def _read_splat(path: Path) -> Gaussians:
    size = path.stat().st_size
    if size % _SPLAT_RECORD.itemsize:
        raise GagsError(
            f"{path}: expected records of {_SPLAT_RECORD.itemsize} bytes, found {size} bytes: "
            "the file is truncated or no .splat file"
        )
    records = np.fromfile(path, dtype=_SPLAT_RECORD)
    rgba = torch.from_numpy(records["rgba"].astype(np.float32)) / 255
    # Opacity 0 and 1 have no logit: half a quantisation step away from the ends is as exact as the file.
    opacities = rgba[:, 3].clamp(0.5 / 255, 1 - 0.5 / 255)
    # A scale of 0 has no logarithm.
    scales = torch.from_numpy(records["scales"].copy()).clamp_min(1e-12)
    return Gaussians(
        means=torch.from_numpy(records["means"].copy()),
        quats=(torch.from_numpy(records["quats"].astype(np.float32)) - 128) / 128,
        log_scales=scales.log(),
        opacity_logits=torch.logit(opacities),
        sh=((rgba[:, :3] - 0.5) / SH_C0)[:, None, :],
    )


def _write_splat(path: Path, gaussians: Gaussians) -> None:
    records = np.zeros(len(gaussians), dtype=_SPLAT_RECORD)
    colors = 0.5 + SH_C0 * gaussians.sh[:, 0]
    rgba = torch.cat([colors, gaussians.opacities[:, None]], dim=1).clamp(0, 1)
    quats = torch.nn.functional.normalize(gaussians.quats, dim=1)
    records["means"] = gaussians.means.detach().cpu().numpy()
    records["scales"] = gaussians.scales.detach().cpu().numpy()
    records["rgba"] = (rgba * 255).round().detach().cpu().numpy()
    records["quats"] = (quats * 128 + 128).round().clamp(0, 255).detach().cpu().numpy()
    with path.open("wb") as file:
        file.write(records.tobytes())


_READERS = {".ply": _read_ply, ".spz": _read_with_gsply, ".splat": _read_splat}
