"""The built-in scene's room: walls, furniture, the photographs on them, and where the cameras stand.

Metres; y points down and the floor is at y = 0. Light is constant over a face, but for soft shadows painted into its
texture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files

import numpy as np
from jaxtyping import Float
from PIL import Image

from gags.errors import GagsError
from gags.images import read_image
from gags.scene._demo_rays import Face, Texture

ROOM_MIN = np.array([-2.4, -2.6, -2.6])
ROOM_MAX = np.array([2.4, 0.0, 2.0])
_LIGHT = np.array([-0.45, -0.75, -0.5]) / np.linalg.norm([-0.45, -0.75, -0.5])
_FRAME_M, _PANEL_DEPTH_M = 0.028, 0.03

Rgb = tuple[int, int, int]
Material = Callable[["Painter", float, float], Float[np.ndarray, "height width 3"]]


@dataclass(frozen=True)
class Photograph:
    """A photograph that comes with scikit-image, and where it hangs."""

    category: str
    """What it shows."""
    file_name: str
    """In scikit-image's data folder."""
    crop_xyxy_px: tuple[int, int, int, int] | None
    """The part that is shown; None: all."""
    center_world: tuple[float, float, float]
    """Centre, on the surface that it hangs on."""
    yaw_degrees: float
    """0 hangs on the back wall and looks at -z; 90 looks at +x (left wall), -90 at -x."""
    height_m: float
    """Of the photograph alone."""
    mat: Rgb
    """The border around the photograph."""
    mat_m: float
    """Its width."""
    frame: Rgb
    """The rim around the border."""


_WHITE, _TEAL, _OAK, _WALNUT = (243, 240, 232), (28, 84, 88), (186, 140, 88), (74, 48, 34)

PEDESTALS = {"left": ((-1.38, 0.42), (0.78, 0.5), 0.82, 22.0), "right": ((1.34, 0.5), (0.56, 0.5), 1.02, -24.0)}
"""Centre (x, z), size (x, z), height and yaw in degrees."""


PHOTOGRAPHS = (
    Photograph("cat", "chelsea.png", None, (-1.02, -1.66, 2.0), 0.0, 0.72, _WHITE, 0.07, _WALNUT),
    Photograph(
        "motorcycle", "motorcycle_left.png", (90, 60, 690, 460),
        (1.02, -1.66, 2.0), 0.0, 0.72, _WHITE, 0.07, _WALNUT,
    ),
    Photograph("tripod", "camera.png", None, (-2.4, -1.5, 0.5), 90.0, 0.95, _TEAL, 0.08, _OAK),
    Photograph("rocket", "rocket.jpg", (220, 90, 420, 427), (2.4, -1.5, 0.5), -90.0, 1.0, _WHITE, 0.08, _WALNUT),
    Photograph("coffee cup", "coffee.png", None, (0.0, -1.05, 0.62), 0.0, 0.46, _WHITE, 0.045, _WALNUT),
)  # fmt: skip


@dataclass(frozen=True)
class _Block:
    """A box that stands upright, turned about the vertical."""

    center_xz: tuple[float, float]
    size_xz: tuple[float, float]
    bottom_m: float
    """Height of its underside above the floor."""
    top_m: float
    yaw_degrees: float
    material: Material

    @property
    def axes_world(self) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
        return _axes(self.yaw_degrees)

    def distance_m(self, x: Float[np.ndarray, "*n"], z: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """From points of a horizontal plane to its outline there; 0 inside."""
        right, back = self.axes_world
        dx, dz = x - self.center_xz[0], z - self.center_xz[1]
        beyond_x = np.abs(dx * right[0] + dz * right[2]) - 0.5 * self.size_xz[0]
        beyond_z = np.abs(dx * back[0] + dz * back[2]) - 0.5 * self.size_xz[1]
        return np.hypot(np.maximum(beyond_x, 0.0), np.maximum(beyond_z, 0.0))


def _axes(yaw_degrees: float) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """To the right and away, as seen by somebody before it."""
    sin, cos = np.sin(np.deg2rad(yaw_degrees)), np.cos(np.deg2rad(yaw_degrees))
    return np.array([cos, 0.0, sin]), np.array([-sin, 0.0, cos])


class Painter:
    """Makes textures: noise from one generator, texels of one size."""

    def __init__(self, rng: np.random.Generator, texel_m: float) -> None:
        self.rng, self.texel_m = rng, texel_m

    def shape(self, width_m: float, height_m: float) -> tuple[int, int]:
        """Rows and columns of a texture."""
        return max(round(height_m / self.texel_m), 2), max(round(width_m / self.texel_m), 2)

    def noise(
        self, width_m: float, height_m: float, grain_x_m: float, grain_y_m: float
    ) -> Float[np.ndarray, "height width"]:
        """Smooth noise of deviation about 1 whose blobs have the given size."""
        rows, columns = self.shape(width_m, height_m)
        coarse = max(round(height_m / grain_y_m), 2), max(round(width_m / grain_x_m), 2)
        values = self.rng.normal(size=(min(coarse[0], rows), min(coarse[1], columns))).astype(np.float32)
        return np.asarray(Image.fromarray(values).resize((columns, rows), Image.Resampling.BICUBIC))

    def centers(self, width_m: float, height_m: float) -> tuple[np.ndarray, np.ndarray]:
        """x and y in metres of the texels' centres, as a column and a row that broadcast."""
        rows, columns = self.shape(width_m, height_m)
        x, y = (np.arange(columns) + 0.5) / columns * width_m, (np.arange(rows) + 0.5) / rows * height_m
        return x[None, :], y[:, None]


def plaster(color: Rgb, strength: float = 1.0) -> Material:
    """Paint on a wall: clouds, trowel marks, fine grain."""

    def paint(painter: Painter, width_m: float, height_m: float) -> Float[np.ndarray, "height width 3"]:
        tone = sum(
            weight * painter.noise(width_m, height_m, grain, grain)
            for weight, grain in ((0.014, 0.7), (0.014, 0.16), (0.022, 0.045), (0.03, 0.015))
        )
        warmth = 0.012 * painter.noise(width_m, height_m, 0.4, 0.4)
        tint = np.stack([1.0 + warmth, np.ones_like(warmth), 1.0 - warmth], axis=-1)
        return np.array(color) * (1.0 + strength * np.asarray(tone))[..., None] * tint

    return paint


def wood(color: Rgb, plank_m: float = 0.0) -> Material:
    """Wood with its grain along u; ``plank_m`` above 0 makes boards of that width."""

    def paint(painter: Painter, width_m: float, height_m: float) -> Float[np.ndarray, "height width 3"]:
        tone = sum(
            weight * painter.noise(width_m, height_m, along, across)
            for weight, along, across in ((0.035, 0.5, 0.03), (0.05, 0.18, 0.009), (0.03, 0.03, 0.03))
        )
        tone = 1.0 + np.asarray(tone)
        if plank_m > 0.0:
            x, y = painter.centers(width_m, height_m)
            plank = np.floor(y / plank_m).astype(int)
            n_planks = int(plank.max()) + 1
            offsets = painter.rng.uniform(0.0, 1.4, n_planks)
            board = np.floor((x + offsets[plank]) / 1.4).astype(int)
            tones = painter.rng.normal(0.0, 0.075, (n_planks, int(board.max()) + 1))
            tone = tone + tones[plank, board]
            across_gap = np.abs(y / plank_m - np.round(y / plank_m)) * plank_m
            along_gap = np.abs((x + offsets[plank]) / 1.4 - np.round((x + offsets[plank]) / 1.4)) * 1.4
            tone = tone * (1.0 - 0.42 * np.exp(-((np.minimum(across_gap, along_gap) / 0.005) ** 2)))
        return np.array(color) * tone[..., None]

    return paint


def rug(painter: Painter, width_m: float, height_m: float) -> Float[np.ndarray, "height width 3"]:
    """Woven bands around a field of diamonds."""
    x, y = painter.centers(width_m, height_m)
    edge = np.minimum(np.minimum(x, width_m - x), np.minimum(y, height_m - y))
    diamond = (np.floor((x + y) / 0.16) + np.floor((x - y) / 0.16)) % 2
    field = np.where(diamond[..., None] > 0, np.array([156, 62, 54]), np.array([140, 52, 48]))
    bands = np.where((edge < 0.05)[..., None], np.array([52, 58, 84]), np.array([214, 190, 148]))
    colors = np.where((edge < 0.1)[..., None], bands, field)
    weave = 0.05 * painter.noise(width_m, height_m, 0.02, 0.006) + 0.05 * painter.noise(width_m, height_m, 0.05, 0.05)
    return colors * (1.0 + weave)[..., None]


def furniture() -> tuple[_Block, ...]:
    """Table, what lies on it, and the pedestals."""
    oak, slate = wood((176, 124, 78)), plaster((96, 116, 128), 1.2)
    legs = [_Block((x, z), (0.07, 0.07), 0.0, 0.70, 0.0, oak) for x in (-0.72, 0.72) for z in (0.42, 1.18)]
    left, right = (
        _Block(center, size, 0.0, top, yaw, plaster(color, 1.2))
        for (center, size, top, yaw), color in zip(PEDESTALS.values(), ((112, 132, 112), (190, 160, 96)), strict=True)
    )
    return (
        *legs,
        _Block((0.0, 0.80), (1.64, 0.96), 0.70, 0.75, 0.0, oak),
        _Block((0.0, 0.84), (0.88, 0.44), 0.75, 1.35, 0.0, slate),
        _Block((0.62, 0.62), (0.24, 0.17), 0.75, 0.79, 18.0, plaster((44, 92, 128), 2.0)),
        _Block((0.625, 0.62), (0.20, 0.15), 0.79, 0.825, 34.0, plaster((204, 150, 52), 2.0)),
        _Block((-0.63, 0.60), (0.15, 0.15), 0.75, 0.90, 30.0, plaster((168, 66, 50), 2.0)),
        left,
        right,
    )


def build_room(painter: Painter) -> list[Face]:
    """Every face of the room, photographs included."""
    blocks = furniture()
    faces = [*_shell(painter, blocks)]
    for block in blocks:
        faces += _block_faces(painter, block)
    for photograph in PHOTOGRAPHS:
        faces += _panel_faces(painter, photograph)
    return faces


def camera_poses(n_views: int) -> list[tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]]:
    """(eye, target) of each view: a wide and a narrow arc at two heights, then close-ups of each photograph in turn."""
    n_wide, n_middle = round(0.3 * n_views), int(0.25 * n_views)
    poses = []
    for n, reach_x, reach_z, target_z in ((n_wide, 2.1, 2.9, 1.0), (n_middle, 1.45, 1.75, 1.1)):
        for i in range(n):
            angle = np.deg2rad(-70.0 + 140.0 * (i + 0.5) / n)
            height = 1.75 if i % 2 else 1.25
            eye = np.array([reach_x * np.sin(angle), -height, 0.55 - reach_z * np.cos(angle)])
            poses.append((eye, np.array([-0.35 * eye[0], -1.1, target_z])))
    for i in range(n_views - len(poses)):
        photograph = PHOTOGRAPHS[i % len(PHOTOGRAPHS)]
        lap = i // len(PHOTOGRAPHS)
        right, back = _axes(photograph.yaw_degrees)
        center = np.array(photograph.center_world)
        side, distance = (-1.0 if (i + lap) % 2 else 1.0), (1.05 if lap % 2 == 0 else 1.5)
        distance *= 0.55 + 0.6 * photograph.height_m
        eye = center - distance * back + side * (0.3 + 0.08 * lap) * right
        eye[1] = min(eye[1] - 0.12, -0.55)
        poses.append((eye, center))
    return poses


def _shell(painter: Painter, blocks: tuple[_Block, ...]) -> list[Face]:
    """Floor, ceiling and four walls, seen from inside."""
    x0, y0, z0 = ROOM_MIN
    x1, y1, z1 = ROOM_MAX
    wide, high, deep = ROOM_MAX - ROOM_MIN
    floor = _floor(painter, blocks, wide, deep)
    ceiling = plaster((226, 226, 222))(painter, wide, deep)
    rectangles = [
        ((x0, y1, z1), (wide, 0, 0), (0, 0, -deep), floor),
        ((x0, y0, z0), (wide, 0, 0), (0, 0, deep), ceiling),
    ]
    walls = (
        ((x0, y0, z1), (wide, 0, 0), (178, 190, 196)),
        ((x1, y0, z0), (-wide, 0, 0), (196, 190, 178)),
        ((x0, y0, z0), (0, 0, deep), (206, 194, 170)),
        ((x1, y0, z1), (0, 0, -deep), (186, 196, 178)),
    )
    for corner, along, color in walls:
        length = float(np.abs(along).sum())
        texture = _wall(painter, np.array(corner), np.array(along) / length, length, high, color)
        rectangles.append((corner, along, (0, high, 0), texture))
    return [_lit_face(np.array(corner), np.array(u), np.array(v), colors) for corner, u, v, colors in rectangles]


def _floor(
    painter: Painter, blocks: tuple[_Block, ...], wide: float, deep: float
) -> Float[np.ndarray, "height width 3"]:
    colors = wood((172, 134, 96), plank_m=0.15)(painter, wide, deep)
    x, y = painter.centers(wide, deep)
    inside = (np.abs(x - 2.4) < 1.25) & (np.abs(y - 2.55) < 0.75)
    rows, columns = np.nonzero(inside.any(axis=1))[0], np.nonzero(inside.any(axis=0))[0]
    woven = rug(painter, len(columns) * painter.texel_m, len(rows) * painter.texel_m)
    colors[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = woven[: len(rows), : len(columns)]
    x_world, z_world = np.broadcast_arrays(x + ROOM_MIN[0], ROOM_MAX[2] - y)
    light = 1.0 - 0.2 * np.exp(-np.minimum(np.minimum(x, wide - x), np.minimum(y, deep - y)) / 0.22)
    for block in blocks:
        # The higher the underside, the softer its shadow.
        reach, depth = (0.10, 0.42) if block.bottom_m == 0.0 else (0.35, 0.30)
        if block.bottom_m < 0.72:
            light = light * (1.0 - depth * np.exp(-block.distance_m(x_world, z_world) / reach))
    return colors * light[..., None]


def _wall(
    painter: Painter,
    corner: Float[np.ndarray, " 3"],
    along: Float[np.ndarray, " 3"],
    length: float,
    high: float,
    color: Rgb,
) -> Float[np.ndarray, "height width 3"]:
    colors = plaster(color)(painter, length, high)
    x, y = painter.centers(length, high)
    skirting = plaster((236, 232, 222))(painter, length, high)
    colors = np.where((y > high - 0.11)[..., None], skirting, colors)
    light = 1.0 - 0.35 * np.exp(-(((y - (high - 0.115)) / 0.008) ** 2)) * np.ones_like(x)
    light = light * (1.0 - 0.2 * np.exp(-np.minimum(np.minimum(x, length - x), np.minimum(y, high - y)) / 0.2))
    for photograph in PHOTOGRAPHS:
        center = np.array(photograph.center_world) - corner
        outwards = np.cross([0.0, 1.0, 0.0], along)
        if abs(center @ outwards) > 1e-6:
            continue
        half = 0.5 * _panel_size_m(photograph)
        # Lit from above: the shadow lies a little below the frame.
        beyond_x = np.maximum(np.abs(x - center @ along) - half[0], 0.0)
        beyond_y = np.maximum(np.abs(y - center[1] - 0.025) - half[1], 0.0)
        light = light * (1.0 - 0.34 * np.exp(-np.hypot(beyond_x, beyond_y) / 0.045))
    return colors * light[..., None]


def _block_faces(painter: Painter, block: _Block) -> list[Face]:
    right, back = block.axes_world
    wide, deep = block.size_xz
    high = block.top_m - block.bottom_m
    center = np.array([block.center_xz[0], -block.top_m, block.center_xz[1]])
    down = np.array([0.0, high, 0.0])
    corners = {(i, j): center + 0.5 * i * wide * right + 0.5 * j * deep * back for i in (-1, 1) for j in (-1, 1)}
    sides = (
        (corners[-1, -1], wide * right),
        (corners[1, -1], deep * back),
        (corners[1, 1], -wide * right),
        (corners[-1, 1], -deep * back),
    )
    faces = [
        _lit_face(corners[-1, 1], wide * right, -deep * back, block.material(painter, wide, deep)),
        _lit_face(corners[-1, -1] + down, wide * right, deep * back, 0.6 * block.material(painter, wide, deep)),
    ]
    for corner, along in sides:
        length = float(np.linalg.norm(along))
        _, y = painter.centers(length, high)
        light = 1.0 - 0.25 * np.exp(-(high - y) / 0.08)
        faces.append(_lit_face(corner, along, down, block.material(painter, length, high) * light[..., None]))
    return faces


def _panel_faces(painter: Painter, photograph: Photograph) -> list[Face]:
    """A framed photograph: a shallow box without a back."""
    photo = _read_photograph(photograph)
    wide, high = _panel_size_m(photograph)
    right, back = _axes(photograph.yaw_degrees)
    depth, down = _PANEL_DEPTH_M * back, np.array([0.0, high, 0.0])
    corner = np.array(photograph.center_world) - depth - 0.5 * wide * right - 0.5 * down
    # Texels of the photograph's own size, so that it is resampled once only, when it is seen.
    texel_m = photograph.height_m / photo.shape[0]
    mat, frame = round(photograph.mat_m / texel_m), round(_FRAME_M / texel_m)
    picture = photo
    for border, color, grain in ((mat, photograph.mat, 0.012), (frame, photograph.frame, 0.06)):
        rows, columns = picture.shape[0] + 2 * border, picture.shape[1] + 2 * border
        framed = np.array(color) * (1.0 + grain * painter.rng.normal(size=(rows, columns, 1)))
        framed[border:-border, border:-border] = picture
        picture = framed
    rows, columns = picture.shape[:2]
    border = mat + frame
    photo_uv = (border / columns, border / rows, 1.0 - border / columns, 1.0 - border / rows)
    front = _lit_face(corner, wide * right, down, picture, photograph.category, photo_uv)
    rim = wood(photograph.frame)
    edges = (
        (corner + depth, wide * right, -depth),
        (corner + down, wide * right, depth),
        (corner + depth, -depth, down),
        (corner + wide * right, depth, down),
    )
    sides = [_lit_face(c, u, v, rim(painter, float(np.linalg.norm(u)), float(np.linalg.norm(v)))) for c, u, v in edges]
    return [front, *sides]


def _panel_size_m(photograph: Photograph) -> Float[np.ndarray, " 2"]:
    """Width and height of the framed photograph."""
    columns, rows = _photograph_size_px(photograph)
    border_m = 2.0 * (photograph.mat_m + _FRAME_M)
    return np.array([photograph.height_m * columns / rows + border_m, photograph.height_m + border_m])


def _photograph_size_px(photograph: Photograph) -> tuple[int, int]:
    if photograph.crop_xyxy_px is not None:
        x0, y0, x1, y1 = photograph.crop_xyxy_px
        return x1 - x0, y1 - y0
    rows, columns = _read_photograph(photograph).shape[:2]
    return columns, rows


def _read_photograph(photograph: Photograph) -> Float[np.ndarray, "height width 3"]:
    with as_file(files("skimage") / "data" / photograph.file_name) as path:
        if not path.is_file():
            raise GagsError(
                f"{path}: expected a photograph that comes with scikit-image, found none; "
                "install it again: pip install --force-reinstall scikit-image"
            )
        image = read_image(path).numpy()
    x0, y0, x1, y1 = photograph.crop_xyxy_px or (0, 0, image.shape[1], image.shape[0])
    return image[y0:y1, x0:x1].astype(np.float32)


def _lit_face(
    corner: Float[np.ndarray, " 3"],
    u: Float[np.ndarray, " 3"],
    v: Float[np.ndarray, " 3"],
    colors: Float[np.ndarray, "height width 3"],
    category: str | None = None,
    photo_uv: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
) -> Face:
    """A face whose texture is darkened by how far it turns from the light."""
    normal = np.cross(v, u) / np.linalg.norm(np.cross(v, u))
    light = 0.84 + 0.16 * max(float(normal @ _LIGHT), 0.0)
    return Face(corner, u, v, Texture(np.clip(colors * light, 0.0, 255.0)), category, photo_uv)
