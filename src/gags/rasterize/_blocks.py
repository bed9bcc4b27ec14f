"""A tile as 64 blocks of 4 x 4 pixels, each a vector; what a splat does to a block.

Splats are round rather than flat, so squares are filled better than pieces of rows, and a block begins where a cache line
does. The blocks of a tile that a splat reaches are the bits of one number, row by row of the blocks.

Per pixel, front to back, with alpha_i = min(0.999, opacity_i exp(-sigma_i)), skipped below 1/255 (Kerbl et al. 2023,
eq. 2-3, constants of gsplat 1.5.3): weight_i = alpha_i T_i, T_{i+1} = T_i (1 - alpha_i); a pixel is finished by the
splat that would take T to 1e-4 or less, and that splat is not drawn. A finished pixel has its transmittance negated:
nothing can be drawn there any more. What lies outside the image starts finished.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int32, UInt64

from gags.rasterize._projection import ALPHA_CUT
from gags.rasterize._tiles import (
    HALF_HEIGHT,
    LOG2_OPACITY,
    MEAN_X,
    MEAN_Y,
    REACH,
    SHEAR,
    SHRINK,
    SPAN_SLACK_PX,
    TILE_HEIGHT,
    TILE_WIDTH,
    XX,
    XY,
    YY,
)
from gags.simd import (
    LANES,
    Lanes,
    any_lane,
    constant,
    exp2,
    kernel,
    load,
    magnitude,
    maximum,
    minimum,
    multiply_add,
    negative,
    prefetch,
    range_bits,
    select,
    splat,
    square_root,
    store,
)

BLOCK_SIDE = 4
"""Pixels a block is wide and high."""
_ACROSS, _DOWN = TILE_WIDTH // BLOCK_SIDE, TILE_HEIGHT // BLOCK_SIDE
N_BLOCKS = _ACROSS * _DOWN
"""Blocks in a tile: as many as a number has bits."""
PLANE = N_BLOCKS * LANES
"""Pixels in a tile, block by block."""
CHUNK_SPLATS = 64
"""Splats of a tile that are looked for before they are drawn, and between two looks at which blocks are finished."""
_FETCH_AHEAD = 8
"""Splats between the one that is looked at and the one that is asked for: neighbours in a tile's list are not in memory."""

_ZERO, _QUARTER, _HALF, _ONE = np.float32(0.0), np.float32(0.25), np.float32(0.5), np.float32(1.0)
_SLACK_PX, _ALL_ACROSS = np.float32(SPAN_SLACK_PX), np.float32(_ACROSS)
_NO_BLOCK, _ONE_BLOCK = np.uint64(0), np.uint64(1)
BELOW_CUT = np.float32(np.nextafter(np.float32(ALPHA_CUT), np.float32(0.0)))
# alpha > the float before 1/255 is alpha >= 1/255
ALPHA_MAX = np.float32(0.999)
T_STOP = np.float32(1e-4)

_columns_of_block = constant(*(lane % BLOCK_SIDE for lane in range(LANES)))
_rows_of_block = constant(*(lane // BLOCK_SIDE for lane in range(LANES)))
# lanes that are four apart belong to one row of blocks, as ``range_bits`` has it
_rows_of_tile = constant(*(lane % _DOWN * BLOCK_SIDE + lane // _DOWN for lane in range(LANES)))


@kernel
def aligned_zeros(n: int) -> Float32[np.ndarray, " n"]:
    """n floats that begin with a cache line, so that a block is one."""
    floats = np.zeros(n + LANES, np.float32)
    first = (-np.int64(floats.ctypes.data) & (4 * LANES - 1)) // 4
    return floats[first : first + n]


@kernel
def pixel_of(block: int, lane: int) -> tuple[int, int]:
    """Column and row of a pixel in the tile."""
    return (block % _ACROSS) * BLOCK_SIDE + lane % BLOCK_SIDE, (block // _ACROSS) * BLOCK_SIDE + lane // BLOCK_SIDE


@kernel
def pixels_inside(block: int, left: int, top: int, width: int, height: int) -> tuple[np.uint64, np.uint64, np.uint64]:
    """A block's first pixel in the picture, and how many of its columns and rows are inside.

    Unsigned: numba asks of every other index whether it counts from the end.
    """
    column, row = pixel_of(block, 0)
    across, down = min(max(width - left - column, 0), BLOCK_SIDE), min(max(height - top - row, 0), BLOCK_SIDE)
    return np.uint64((top + row) * width + left + column), np.uint64(across), np.uint64(down)


@kernel
def open_tile(transmittance: Float32[np.ndarray, " plane_float"], width: int, height: int) -> None:
    """Set a plane to 1 at the pixels inside the image, which are so many, to -1 (finished) elsewhere."""
    for block in range(N_BLOCKS):
        for lane in range(LANES):
            x, y = pixel_of(block, lane)
            transmittance[block * LANES + lane] = 1.0 if x < width and y < height else -1.0


@kernel
def blocks_above(plane: Float32[np.ndarray, " plane_float"], bound: float) -> np.uint64:
    """The blocks with a pixel above the bound: of transmittances above 0, those that can still be drawn on."""
    blocks = _NO_BLOCK
    for block in range(N_BLOCKS):
        if any_lane(load(plane, block * LANES) > bound):
            blocks |= _ONE_BLOCK << np.uint64(block)
    return blocks


@kernel
def _blocks_reached(splats: Float32[np.ndarray, "splat column"], rank: int, left: int, top: int) -> np.uint64:
    """The blocks of the tile at (left, top) that hold a pixel which the splat covers; a few more where it ends nearby."""
    dy = _rows_of_tile() + (np.float32(top) + _HALF - splats[rank, MEAN_Y])
    half = square_root(maximum(dy * dy * splats[rank, SHRINK] + splats[rank, REACH], splat(_ZERO)))
    middle = dy * splats[rank, SHEAR] + (splats[rank, MEAN_X] - _HALF - np.float32(left))
    # first pixel: middle - half rounded up; a quarter of it rounded down is its block. Rounded down at the end, both
    start = (middle - half) * _QUARTER + _QUARTER * (_ONE - _SLACK_PX)
    stop = (middle + half) * _QUARTER + (_ONE + _QUARTER * _SLACK_PX)
    # clamped as floats: a large float has no integer
    start = minimum(maximum(start, splat(_ZERO)), splat(_ALL_ACROSS))
    stop = minimum(maximum(stop, splat(_ZERO)), splat(_ALL_ACROSS))
    return range_bits(start, select(magnitude(dy) > splats[rank, HALF_HEIGHT] + _SLACK_PX, start, stop))


@kernel
def find_blocks(
    reached: UInt64[np.ndarray, " entry"],
    splats: Float32[np.ndarray, "splat column"],
    colors: Float32[np.ndarray, "splat channel"],
    ranks: Int32[np.ndarray, " tile_entry"],
    first: int,
    corner: tuple[int, int],
    among: np.uint64,
) -> int:
    """Write the blocks (``among`` some) that the tile's splats ranks[first:] reach, of CHUNK_SPLATS at most; return where
    those end. Memory is asked for the colours: they are needed soon."""
    left, top = corner
    stop = min(first + CHUNK_SPLATS, ranks.shape[0])
    for k in range(first, stop):
        prefetch(splats, ranks[min(k + _FETCH_AHEAD, ranks.shape[0] - 1)])
        prefetch(colors, ranks[k])
        reached[k - first] = _blocks_reached(splats, ranks[k], left, top) & among
    return stop


@kernel
def set_centers(centers: Float32[np.ndarray, " center"], left: int, top: int) -> None:
    """Write the x of the pixels' centres in each column of a tile's blocks, then their y in each row of blocks."""
    for column in range(_ACROSS):
        store(centers, column * LANES, _columns_of_block() + (np.float32(left + column * BLOCK_SIDE) + _HALF))
    for row in range(_DOWN):
        store(centers, (_ACROSS + row) * LANES, _rows_of_block() + (np.float32(top + row * BLOCK_SIDE) + _HALF))


N_CENTERS = (_ACROSS + _DOWN) * LANES
"""Floats that ``set_centers`` writes."""


@kernel
def bell(splats: Float32[np.ndarray, "splat column"], rank: int) -> tuple[Lanes, Lanes, Lanes, Lanes, Lanes, Lanes]:
    """What ``falloff`` needs of a splat, in every lane: read once, not block by block. (Kernels are given arrays and where
    to read, not slices: numba counts those who refer to a slice, with atomic instructions.)"""
    mean = splat(splats[rank, MEAN_X]), splat(splats[rank, MEAN_Y])
    form = splat(splats[rank, XX]), splat(splats[rank, XY]), splat(splats[rank, YY])
    return mean[0], mean[1], form[0], form[1], form[2], splat(splats[rank, LOG2_OPACITY])


@kernel
def falloff(
    shape: tuple[Lanes, Lanes, Lanes, Lanes, Lanes, Lanes], centers: Float32[np.ndarray, " center"], block: int
) -> tuple[Lanes, Lanes, Lanes]:
    """(dx, dy, opacity x exp(-sigma)) of a splat, given its ``bell``, at the pixels of a block."""
    mean_x, mean_y, xx, xy, yy, log2_opacity = shape
    dx = load(centers, (block % _ACROSS) * LANES) - mean_x
    dy = load(centers, (_ACROSS + block // _ACROSS) * LANES) - mean_y
    # which products are rounded is said, so that forward and backward see the same numbers
    slope, rest = multiply_add(xx, dx, xy * dy), multiply_add(yy * dy, dy, log2_opacity)
    return dx, dy, exp2(multiply_add(slope, dx, rest))


@kernel
def attenuate(transmittance: Float32[np.ndarray, " plane_float"], block: int, unclamped: Lanes) -> Lanes:
    """The splat's weight alpha x T, above 0 where it is drawn, 0 elsewhere; the block's transmittances go behind the
    splat."""
    alpha = select(unclamped > BELOW_CUT, minimum(unclamped, splat(ALPHA_MAX)), splat(_ZERO))
    before = load(transmittance, block * LANES)
    after = multiply_add(negative(alpha), before, before)
    # where nothing is seen, after is before
    is_open = after > T_STOP
    store(transmittance, block * LANES, select(is_open, after, negative(magnitude(before))))
    return select(is_open, alpha * before, splat(_ZERO))
