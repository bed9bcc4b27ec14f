"""GaS, granularity-aware prompts: far surfaces get denser prompts, so that they are cut as finely as seen from near.

Source: the GAGS paper (arXiv 2412.13654), granularity-aware segmentation. A Gaussian's nearest depth says how close any
camera comes to it; where a view is much farther away than that, its patches get more prompt points. From how far cameras
usually see it tells a segmenter of what size to expect things in a view (``relative_depth_map``).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gags.gaussians import Gaussians
from gags.geometry import Camera, transform
from gags.rasterize import render_values

PATCHES_PER_SIDE = 8
CELLS_PER_SIDE = 10
"""A patch is split into this many cells along each side to place its prompts."""
_LEAST_KNOWN = 0.1
"""Pixels of which Gaussians with a usual depth make up less (blend weight, 0..1) have none: too little to speak for them."""


@dataclass(frozen=True)
class Patch:
    """A rectangle of pixels, ends exclusive."""

    x0: int
    y0: int
    width: int
    height: int

    def of(self, image: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "rows columns"]:
        """This rectangle of an image."""
        return image[self.y0 : self.y0 + self.height, self.x0 : self.x0 + self.width]


def visible_pixels(
    means_world: Float[Tensor, "gaussian 3"],
    camera: Camera,
    depth: Float[Tensor, "height width"],
    occlusion_tolerance: float = 0.25,
) -> tuple[Int[Tensor, "gaussian 2"], Bool[Tensor, " gaussian"]]:
    """The nearest pixel (row, column) of each centre, and whether the view sees it there; (0, 0) where it does not.

    Seen: inside the image and within ``occlusion_tolerance`` times the rendered depth of the surface, before or behind it.
    The position is rounded half to even, without half a pixel of shift, as the reference has it.
    """
    points_camera = transform(camera.T_camera_world, means_world)
    z = points_camera[:, 2]
    in_front = z > 0
    # Points at or behind the camera have no pixel: any positive divisor will do, they are masked out below.
    z_safe = torch.where(in_front, z, torch.ones_like(z))
    u = torch.round(points_camera[:, 0] / z_safe * camera.fx_px + camera.cx_px)
    v = torch.round(points_camera[:, 1] / z_safe * camera.fy_px + camera.cy_px)
    inside = in_front & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    zero = torch.zeros_like(u)
    vu = torch.stack([torch.where(inside, v, zero), torch.where(inside, u, zero)], dim=1).long()
    rendered = depth[vu[:, 0], vu[:, 1]]
    visible = inside & (rendered > 0) & ((rendered - z).abs() <= occlusion_tolerance * rendered)
    return vu * visible[:, None], visible


def nearest_depths(
    gaussians: Gaussians,
    cameras: Sequence[Camera],
    depths: Sequence[Float[Tensor, "height width"]],
    occlusion_tolerance: float = 0.25,
) -> Float[Tensor, " gaussian"]:
    """How near any camera comes to each Gaussian: the least rendered depth at its pixel over the views that see it.

    ``depths`` are the expected depths of the views in scene units, 0 where empty, each of its camera's size. Gaussians
    that no view sees get infinity.
    """
    nearest = torch.full((len(gaussians),), torch.inf)
    for seen, seen_depth in _sightings(gaussians, cameras, depths, occlusion_tolerance):
        nearest = torch.minimum(nearest, torch.where(seen, seen_depth, torch.inf))
    return nearest


def usual_depths(
    gaussians: Gaussians,
    cameras: Sequence[Camera],
    depths: Sequence[Float[Tensor, "height width"]],
    occlusion_tolerance: float = 0.25,
) -> Float[Tensor, " gaussian"]:
    """From how far the views that see a Gaussian do so: the geometric mean of what ``nearest_depths`` takes the least of; 0 for
    Gaussians that no view sees."""
    log_sum, count = torch.zeros(len(gaussians)), torch.zeros(len(gaussians))
    for seen, seen_depth in _sightings(gaussians, cameras, depths, occlusion_tolerance):
        # what is not seen may be at depth 0
        log_sum += torch.where(seen, seen_depth, 1.0).log()
        count += seen
    return torch.where(count > 0, (log_sum / count.clamp(min=1)).exp(), 0.0)


def _sightings(
    gaussians: Gaussians,
    cameras: Sequence[Camera],
    depths: Sequence[Float[Tensor, "height width"]],
    occlusion_tolerance: float,
) -> Iterator[tuple[Bool[Tensor, " gaussian"], Float[Tensor, " gaussian"]]]:
    """Of each view, which Gaussians it sees and the rendered depth at their pixels (of those it does not see: any)."""
    for camera, depth in zip(cameras, depths, strict=True):
        vu, visible = visible_pixels(gaussians.means, camera, depth, occlusion_tolerance)
        yield visible, depth[vu[:, 0], vu[:, 1]]


def relative_depth_map(
    gaussians: Gaussians, camera: Camera, depth: Float[Tensor, "height width"], usual: Float[Tensor, " gaussian"]
) -> Float[Tensor, "height width"]:
    """The depth of each pixel over the usual depth of what it shows (of the blended Gaussians, the geometric mean): below 1
    where the view is nearer than others; 1 where nothing is known."""
    known = (usual > 0).float()
    logs = torch.where(usual > 0, usual, 1.0).log()
    log_usual, weight = render_values(gaussians, camera, torch.stack([logs, known], dim=1)).unbind(dim=-1)
    told = (depth > 0) & (weight > _LEAST_KNOWN)
    return torch.where(told, depth / (log_usual / weight.clamp(min=_LEAST_KNOWN)).exp(), 1.0)


def nearest_depth_map(
    gaussians: Gaussians,
    camera: Camera,
    depth: Float[Tensor, "height width"],
    nearest: Float[Tensor, " gaussian"],
    occlusion_tolerance: float = 0.25,
    reference_quirks: bool = False,
) -> Float[Tensor, "height width"]:
    """M_v: the nearest depth of each Gaussian that the view sees, written at its pixel; 0 where there is none.

    Where several share a pixel the smallest stays; with ``reference_quirks`` the last in order.
    """
    vu, visible = visible_pixels(gaussians.means, camera, depth, occlusion_tolerance)
    pixel = (vu[visible, 0] * camera.width + vu[visible, 1]).numpy()
    value = nearest[visible].numpy()
    if not reference_quirks:
        # Of repeated indices numpy keeps the last assignment, so the smallest has to come last.
        order = np.argsort(-value, kind="stable")
        pixel, value = pixel[order], value[order]
    sparse = np.zeros(camera.height * camera.width, dtype=np.float32)
    sparse[pixel] = value
    return torch.from_numpy(sparse.reshape(camera.height, camera.width))


def patches(width: int, height: int) -> list[Patch]:
    """The 8 x 8 patches of an image, column by column.

    Starts are floor(i (side - 1) / 8) and sizes floor(side / 8) as in the reference: patches may leave or share a line of
    pixels and need not reach the right and bottom ends.
    """
    size_x, size_y = max(1, width // PATCHES_PER_SIDE), max(1, height // PATCHES_PER_SIDE)
    starts_x = [i * (width - 1) // PATCHES_PER_SIDE for i in range(PATCHES_PER_SIDE)]
    starts_y = [i * (height - 1) // PATCHES_PER_SIDE for i in range(PATCHES_PER_SIDE)]
    return [Patch(x, y, size_x, size_y) for x in starts_x for y in starts_y]


def patch_means(
    depth: Float[np.ndarray, "height width"],
    min_depth_map: Float[np.ndarray, "height width"],
    patch: Patch,
    reference_quirks: bool = False,
) -> tuple[float, float]:
    """Mean rendered depth and mean non-zero nearest depth of a patch; nan where there is nothing to average.

    Pixels without a rendered depth are left out; with ``reference_quirks`` they count as depth 0.
    """
    patch_depth = patch.of(depth).astype(np.float64)
    patch_nearest = patch.of(min_depth_map).astype(np.float64)
    rendered = patch_depth if reference_quirks else patch_depth[patch_depth > 0]
    nearest = patch_nearest[patch_nearest != 0]
    return (
        float(rendered.mean()) if rendered.size else float("nan"),
        float(nearest.mean()) if nearest.size else float("nan"),
    )


def prompts_per_side(
    mean_depth: float, mean_nearest_depth: float, min_per_side: int = 4, max_per_side: int = 20
) -> int:
    """n of a patch, which gets n^2 prompts: floor(4 x depth ratio) up to 20, and 1 where the ratio is below 1 or undefined."""
    ratio = mean_depth / mean_nearest_depth if mean_nearest_depth != 0 else float("nan")
    # Written so that nan takes this branch.
    if not ratio >= 1:
        return 1
    return int(min(np.floor(min_per_side * ratio), max_per_side))


def cell_origins(width: int, height: int) -> Int[np.ndarray, "cell 2"]:
    """First pixel (x, y) of the 10 x 10 cells of a patch, relative to it, x fastest."""
    xs = [i * (width - 1) // CELLS_PER_SIDE for i in range(CELLS_PER_SIDE)]
    ys = [i * (height - 1) // CELLS_PER_SIDE for i in range(CELLS_PER_SIDE)]
    return np.array([(x, y) for y in ys for x in xs], dtype=np.int64)


def cell_counts(min_depth_map: Float[np.ndarray, "height width"], patch: Patch) -> Int[np.ndarray, " cell"]:
    """Number of pixels with a Gaussian in each cell of a patch (its last row and column never count)."""
    occupied = patch.of(min_depth_map) != 0
    origins = cell_origins(patch.width, patch.height)
    ends_x = np.minimum(origins[:, 0] + patch.width // CELLS_PER_SIDE, patch.width - 1)
    ends_y = np.minimum(origins[:, 1] + patch.height // CELLS_PER_SIDE, patch.height - 1)
    # Summed-area table: the count of every cell is four look-ups.
    table = np.zeros((patch.height + 1, patch.width + 1), dtype=np.int64)
    table[1:, 1:] = occupied.cumsum(axis=0).cumsum(axis=1)
    x0, y0 = origins[:, 0], origins[:, 1]
    return table[ends_y, ends_x] - table[y0, ends_x] - table[ends_y, x0] + table[y0, x0]


def cell_weights(counts: Int[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """Probability of drawing each cell: its share of the Gaussians, or all equal where there are none."""
    total = counts.sum()
    return counts / total if total > 0 else np.full(counts.shape, 1 / counts.size)


def draw_reference(
    patch: Patch, count: int, weights: Float[np.ndarray, " cell"], generator: random.Random
) -> tuple[Int[np.ndarray, "prompt 2"], Int[np.ndarray, " prompt"]]:
    """The reference's draw in a patch: pixels (x, y) in the image and the cell of each.

    Cells overlap by a pixel here, since a position runs up to and including the start of the next cell.
    """
    origins = cell_origins(patch.width, patch.height)
    size_x, size_y = patch.width // CELLS_PER_SIDE, patch.height // CELLS_PER_SIDE
    cells = generator.choices(range(len(origins)), weights=weights.tolist(), k=count)
    points = []
    for cell in cells:
        x0, y0 = (int(c) for c in origins[cell])
        x = generator.randint(x0, min(x0 + size_x, patch.width - 1))
        y = generator.randint(y0, min(y0 + size_y, patch.height - 1))
        points.append((patch.x0 + x, patch.y0 + y))
    return np.array(points, dtype=np.int64).reshape(-1, 2), np.array(cells, dtype=np.int64)


def draw(
    patch: Patch, count: int, weights: Float[np.ndarray, " cell"], generator: np.random.Generator
) -> Int[np.ndarray, "prompt 2"]:
    """Pixels (x, y) in the image: a cell by its weight, then a pixel uniformly inside it."""
    origins = cell_origins(patch.width, patch.height)
    cells = origins[generator.choice(len(origins), size=count, p=weights)]
    # A cell of a patch under ten pixels wide still holds its first pixel.
    size = (max(1, patch.width // CELLS_PER_SIDE), max(1, patch.height // CELLS_PER_SIDE))
    return cells + generator.integers(0, size, size=(count, 2)) + (patch.x0, patch.y0)


def _patch_counts(
    depth: Float[np.ndarray, "height width"],
    min_depth_map: Float[np.ndarray, "height width"],
    min_per_side: int,
    max_per_side: int,
    reference_quirks: bool,
) -> list[tuple[Patch, int]]:
    counted = []
    for patch in patches(depth.shape[1], depth.shape[0]):
        means = patch_means(depth, min_depth_map, patch, reference_quirks)
        counted.append((patch, prompts_per_side(*means, min_per_side, max_per_side) ** 2))
    return counted


def depth_prompts(
    depth: Float[Tensor, "height width"],
    min_depth_map: Float[Tensor, "height width"],
    seed: Sequence[int],
    min_per_side: int = 4,
    max_per_side: int = 20,
    reference_quirks: bool = False,
) -> Float[Tensor, "prompt 2"]:
    """Prompt points (x, y in pixels, at pixel centres) for one view, denser where other views come closer.

    ``seed`` feeds our own generator. With ``reference_quirks`` its first number seeds a Mersenne Twister, and the points are
    those of the reference, which then draws the same sequence for every view.
    """
    depth_map, nearest = depth.numpy(), min_depth_map.numpy()
    twister, generator = random.Random(seed[0]), np.random.default_rng(seed)
    points = []
    for patch, count in _patch_counts(depth_map, nearest, min_per_side, max_per_side, reference_quirks):
        weights = cell_weights(cell_counts(nearest, patch))
        if reference_quirks:
            points.append(draw_reference(patch, count, weights, twister)[0])
        else:
            points.append(draw(patch, count, weights, generator))
    return torch.from_numpy(np.concatenate(points)).float() + 0.5


def uniform_prompts(
    depth: Float[Tensor, "height width"],
    min_depth_map: Float[Tensor, "height width"],
    min_per_side: int = 4,
    max_per_side: int = 20,
) -> Float[Tensor, "prompt 2"]:
    """As many prompt points as ``depth_prompts`` gives the view, evenly spread: the ablation without GaS.

    Rows of equal height; the points of a row are evenly spaced, and rows differ by one point at most so that the numbers are equal.
    """
    height, width = depth.shape
    total = sum(n for _, n in _patch_counts(depth.numpy(), min_depth_map.numpy(), min_per_side, max_per_side, False))
    n_rows = min(total, max(1, round((total * height / width) ** 0.5)))
    bounds = torch.arange(n_rows + 1) * total // n_rows
    sizes = bounds.diff()
    place = torch.arange(total) - bounds[:-1].repeat_interleave(sizes)
    x = (place + 0.5) * width / sizes.repeat_interleave(sizes)
    y = ((torch.arange(n_rows) + 0.5) * height / n_rows).repeat_interleave(sizes)
    return torch.stack([x, y], dim=1)
