"""Exact ray casting of textured rectangles: what the built-in scene is drawn with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int16

from gags.geometry import Camera

NOTHING = -1
"""In a map of faces: the ray hits none."""


class Texture:
    """A picture with its pre-filtered pyramid; level l has texels 2^l times as wide as level 0's."""

    def __init__(self, colors: Float[np.ndarray, "height width 3"]) -> None:
        self.height, self.width = colors.shape[:2]
        self.levels = [colors.astype(np.float32)]
        while max(self.levels[-1].shape[:2]) > 1:
            level = self.levels[-1]
            # Odd sizes repeat their last texel, so that texel i always covers 2 i and 2 i + 1 of the level below.
            level = np.pad(level, [(0, level.shape[0] % 2), (0, level.shape[1] % 2), (0, 0)], mode="edge")
            self.levels.append(0.25 * (level[::2, ::2] + level[1::2, ::2] + level[::2, 1::2] + level[1::2, 1::2]))

    def sample(
        self, uv: Float[np.ndarray, "sample 2"], footprint_texels: Float[np.ndarray, " sample"]
    ) -> Float[np.ndarray, "sample 3"]:
        """Colours at ``uv`` (0..1 over the picture), averaged over about ``footprint_texels`` texels (trilinear)."""
        # At least one texel: level 0 is as fine as it gets.
        level = np.minimum(np.log2(np.maximum(footprint_texels, 1.0)), len(self.levels) - 1)
        lower = np.floor(level).astype(np.int64)
        share = (level - lower).astype(np.float32)[:, None]
        colors = np.zeros((len(uv), 3), np.float32)
        for index in np.unique(lower):
            here = lower == index
            colors[here] = self._bilinear(uv[here], index)
        # Where the texture is seen from near, level 0 is all there is to it.
        between = share[:, 0] > 0.0
        for index in np.unique(lower[between]):
            here = between & (lower == index)
            coarse = self._bilinear(uv[here], min(index + 1, len(self.levels) - 1))
            colors[here] += share[here] * (coarse - colors[here])
        return colors

    def _bilinear(self, uv: Float[np.ndarray, "sample 2"], level: int) -> Float[np.ndarray, "sample 3"]:
        picture = self.levels[level]
        height, width = picture.shape[:2]
        x = np.clip(uv[:, 0] * (self.width / 2**level) - 0.5, 0.0, width - 1.0)
        y = np.clip(uv[:, 1] * (self.height / 2**level) - 0.5, 0.0, height - 1.0)
        column, row = x.astype(np.int64), y.astype(np.int64)
        right, below = np.minimum(column + 1, width - 1), np.minimum(row + 1, height - 1)
        fx, fy = (x - column).astype(np.float32)[:, None], (y - row).astype(np.float32)[:, None]
        flat = picture.reshape(-1, 3)
        row, below = row * width, below * width
        above = flat.take(row + column, axis=0)
        above += (flat.take(row + right, axis=0) - above) * fx
        under = flat.take(below + column, axis=0)
        under += (flat.take(below + right, axis=0) - under) * fx
        above += (under - above) * fy
        return above


@dataclass(frozen=True)
class Face:
    """A textured rectangle, seen from one side. As seen from there, u runs to the right and v downwards."""

    corner_world: Float[np.ndarray, " 3"]
    """Where u = v = 0."""
    u_world: Float[np.ndarray, " 3"]
    """From u = 0 to u = 1, in metres."""
    v_world: Float[np.ndarray, " 3"]
    """From v = 0 to v = 1, in metres; at right angles to ``u_world``."""
    texture: Texture
    """Colours in 0..255, light included."""
    category: str | None = None
    """What the photograph on it shows; None: there is none."""
    photo_uv: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """The photograph's part of the face: u and v of its first corner, u and v of its last."""

    @property
    def normal_world(self) -> Float[np.ndarray, " 3"]:
        """Unit vector to the side that it is seen from."""
        normal = np.cross(self.v_world, self.u_world)
        return normal / np.linalg.norm(normal)

    @property
    def photo_corners_world(self) -> Float[np.ndarray, "4 3"]:
        """The photograph's corners, in order around it."""
        u0, v0, u1, v1 = self.photo_uv
        return np.stack([self.point_world(u, v) for u, v in ((u0, v0), (u1, v0), (u1, v1), (u0, v1))])

    def point_world(self, u: float, v: float) -> Float[np.ndarray, " 3"]:
        """The point at (u, v)."""
        return self.corner_world + u * self.u_world + v * self.v_world


@dataclass(frozen=True)
class _Projection:
    """A face in a camera's image, where 1 / depth, u / depth and v / depth are affine in x and y: rows of (1, x, y)."""

    inverse_depth: Float[np.ndarray, " 3"]
    u_over_depth: Float[np.ndarray, " 3"]
    v_over_depth: Float[np.ndarray, " 3"]


@dataclass(frozen=True)
class Hits:
    """What the rays through the pixel centres of an image hit first."""

    face: Int16[np.ndarray, "height width"]
    """Index of the face; NOTHING where there is none."""
    inverse_depth: Float[np.ndarray, "height width"]
    """1 / depth there; 0 where there is nothing."""


def cast(camera: Camera, faces: Sequence[Face]) -> Hits:
    """The nearest face along the ray through each pixel's centre."""
    face_map = np.full((camera.height, camera.width), NOTHING, np.int16)
    nearest = np.zeros((camera.height, camera.width))
    for index, face in enumerate(faces):
        if not _faces_camera(face, camera):
            continue
        rows, columns = _bounds(face, camera)
        x, y = (np.arange(part.start, part.stop) + 0.5 for part in (columns, rows))
        projection = _project_face(face, camera)
        w, u, v = (
            (a + c * y)[:, None] + (b * x)[None, :]
            for a, b, c in (projection.inverse_depth, projection.u_over_depth, projection.v_over_depth)
        )
        hit = (w > nearest[rows, columns]) & (u >= 0.0) & (u <= w) & (v >= 0.0) & (v <= w)
        face_map[rows, columns][hit] = index
        nearest[rows, columns][hit] = w[hit]
    return Hits(face_map, nearest)


def draw(camera: Camera, faces: Sequence[Face], supersampling: int) -> Float[np.ndarray, "height width 3"]:
    """The camera's picture in 0..255: ``supersampling`` squared rays a pixel, each of a filtered texture."""
    fine = camera.resized(camera.width * supersampling, camera.height * supersampling)
    face_map = cast(fine, faces).face.ravel()
    colors = np.zeros((len(face_map), 3), np.float32)
    order = np.argsort(face_map, kind="stable")
    present, starts = np.unique(face_map[order], return_index=True)
    for index, samples in zip(present, np.split(order, starts[1:]), strict=True):
        if index != NOTHING:
            row, column = np.divmod(samples, fine.width)
            uv, footprint = _texture_position(faces[index], fine, column + 0.5, row + 0.5)
            colors[samples] = faces[index].texture.sample(uv, footprint)
    blocks = colors.reshape(camera.height, supersampling, camera.width, supersampling, 3)
    return blocks.mean(axis=(1, 3))


def photo_mask(camera: Camera, faces: Sequence[Face], hits: Hits, index: int) -> Bool[np.ndarray, "height width"]:
    """The pixels whose centre sees the photograph on face ``index``."""
    mask = hits.face == index
    row, column = np.nonzero(mask)
    uv, _ = _texture_position(faces[index], camera, column + 0.5, row + 0.5)
    u0, v0, u1, v1 = faces[index].photo_uv
    mask[row, column] = (uv[:, 0] >= u0) & (uv[:, 0] <= u1) & (uv[:, 1] >= v0) & (uv[:, 1] <= v1)
    return mask


def visible(
    camera: Camera, faces: Sequence[Face], points_world: Float[np.ndarray, "point 3"], own: Int16[np.ndarray, " point"]
) -> tuple[Float[np.ndarray, "point 2"], Bool[np.ndarray, " point"]]:
    """Where points on the faces ``own`` appear (x, y in pixels), and whether they are in the image and not hidden."""
    points = points_world @ _rotation(camera).T + _translation(camera)
    depth = points[:, 2]
    # What is not in front of the camera is sorted out below; 1 keeps its division quiet.
    safe = np.where(depth > 1e-6, depth, 1.0)
    x = points[:, 0] / safe * camera.fx_px + camera.cx_px
    y = points[:, 1] / safe * camera.fy_px + camera.cy_px
    seen = (depth > 1e-6) & (x >= 0.0) & (x < camera.width) & (y >= 0.0) & (y < camera.height)
    for index, face in enumerate(faces):
        if not _faces_camera(face, camera):
            seen &= own != index
            continue
        projection = _project_face(face, camera)
        w, u, v = (
            a + b * x + c * y
            for a, b, c in (projection.inverse_depth, projection.u_over_depth, projection.v_over_depth)
        )
        # A millionth nearer, so that faces that meet at the point do not hide it.
        hides = (w * safe > 1.0 + 1e-6) & (u >= 0.0) & (u <= w) & (v >= 0.0) & (v <= w)
        seen &= ~(hides & (own != index))
    return np.stack([x, y], axis=1), seen


def _texture_position(
    face: Face, camera: Camera, x: Float[np.ndarray, " sample"], y: Float[np.ndarray, " sample"]
) -> tuple[Float[np.ndarray, "sample 2"], Float[np.ndarray, " sample"]]:
    """(u, v) of the face at image positions, and the side in texels of a square as large as a pixel's footprint."""
    projection = _project_face(face, camera)
    rows = (projection.inverse_depth, projection.u_over_depth, projection.v_over_depth)
    w, u, v = (a + b * x + c * y for a, b, c in rows)
    u, v = u / w, v / w
    (_, w_x, w_y), (_, u_x, u_y), (_, v_x, v_y) = rows
    # Quotient rule: d(u) / dx = (d(u / depth) / dx - u d(1 / depth) / dx) depth.
    along_x = (u_x - u * w_x) / w, (v_x - v * w_x) / w
    along_y = (u_y - u * w_y) / w, (v_y - v * w_y) / w
    area = np.abs(along_x[0] * along_y[1] - along_x[1] * along_y[0]) * face.texture.width * face.texture.height
    return np.stack([u, v], axis=1), np.sqrt(area)


def _project_face(face: Face, camera: Camera) -> _Projection:
    R_camera_world = _rotation(camera)
    corner = R_camera_world @ face.corner_world + _translation(camera)
    u, v = R_camera_world @ face.u_world, R_camera_world @ face.v_world
    normal = np.cross(u, v)
    u, v = u / (u @ u), v / (v @ v)
    inverse_depth = _affine(normal, camera) / (normal @ corner)
    return _Projection(
        inverse_depth,
        _affine(u, camera) - (u @ corner) * inverse_depth,
        _affine(v, camera) - (v @ corner) * inverse_depth,
    )


def _affine(vector: Float[np.ndarray, " 3"], camera: Camera) -> Float[np.ndarray, " 3"]:
    """Coefficients of (1, x, y) in the product of ``vector`` and the ray of depth 1 through (x, y)."""
    a, b, c = vector[0] / camera.fx_px, vector[1] / camera.fy_px, vector[2]
    return np.array([c - a * camera.cx_px - b * camera.cy_px, a, b])


def _faces_camera(face: Face, camera: Camera) -> bool:
    center_world = -_rotation(camera).T @ _translation(camera)
    # A face seen edge-on has no area; its projection would divide by zero.
    return bool((center_world - face.corner_world) @ face.normal_world > 1e-6)


def _bounds(face: Face, camera: Camera) -> tuple[slice, slice]:
    """Rows and columns that hold the face's image; all of them when a corner is not well before the camera."""
    corners = np.stack([face.point_world(u, v) for u, v in ((0, 0), (1, 0), (1, 1), (0, 1))])
    points = corners @ _rotation(camera).T + _translation(camera)
    if points[:, 2].min() < 1e-3:
        return slice(0, camera.height), slice(0, camera.width)
    x = points[:, 0] / points[:, 2] * camera.fx_px + camera.cx_px
    y = points[:, 1] / points[:, 2] * camera.fy_px + camera.cy_px
    left, top = max(int(np.floor(x.min())), 0), max(int(np.floor(y.min())), 0)
    right, bottom = min(int(np.ceil(x.max())), camera.width), min(int(np.ceil(y.max())), camera.height)
    return slice(top, max(bottom, top)), slice(left, max(right, left))


def _rotation(camera: Camera) -> Float[np.ndarray, "3 3"]:
    return camera.T_camera_world[:3, :3].double().numpy()


def _translation(camera: Camera) -> Float[np.ndarray, " 3"]:
    return camera.T_camera_world[:3, 3].double().numpy()
