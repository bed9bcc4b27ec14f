"""Alpha blending of depth-sorted splats, tile by tile, in numba.

Output: sum_i weight_i colour_i of ``_blocks``, and the transmittance that is left. A tile keeps its pixels block by block, a
vector a quantity. Splats are drawn in chunks: first looked for, then weighed, each on all its blocks. A few channels are
added at once, a vector a channel; of more, a block's weights wait until it is its turn, and the channels are vectors, one
pixel after the other.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int32, Int64
from numba import prange

from gags.rasterize._blocks import (
    BLOCK_SIDE,
    CHUNK_SPLATS,
    N_BLOCKS,
    N_CENTERS,
    PLANE,
    aligned_zeros,
    attenuate,
    bell,
    blocks_above,
    falloff,
    find_blocks,
    open_tile,
    pixels_inside,
    set_centers,
)
from gags.rasterize._tiles import TILE_HEIGHT, TILE_WIDTH
from gags.simd import (
    LANES,
    TAKERS,
    Lanes,
    any_lane,
    kernel,
    load,
    load_splat,
    lowest_bit,
    parallel_kernel,
    select,
    splat,
    store,
    take_next,
)

FEW_CHANNELS = 4
"""So many are added where they are drawn."""
_GROUP = 8
"""Of more channels, a vector of them is added to so many pixels in one go: sums in registers, p0 to p7 of ``_draw_group``."""

_ZERO = np.float32(0.0)
_Planes = tuple[
    Float32[np.ndarray, " plane_float"], Float32[np.ndarray, " plane_float"], Float32[np.ndarray, " shade_float"]
]
"""Of a tile, block by block: transmittance, each pixel's last splat (empty: not noted), channels."""
_NO_BLOCK, _ONE_BLOCK = np.uint64(0), np.uint64(1)
NOTHING_DRAWN = np.float32(-1.0)
"""Stands for the position of a pixel's last splat where it has none."""


@kernel
def _add(
    shades: Float32[np.ndarray, " shade_float"],
    at: int,
    colors: Float32[np.ndarray, " color_float"],
    channel: int,
    weight: Lanes,
) -> None:
    """Add a splat to one channel of a block."""
    store(shades, at, load(shades, at) + weight * load_splat(colors, channel))


@kernel
def _draw_few(
    shades: Float32[np.ndarray, " shade_float"],
    at: int,
    colors: Float32[np.ndarray, " color_float"],
    row: int,
    n_channels: int,
    weight: Lanes,
) -> None:
    """Add a splat to the channels of a block. A loop over three would take longer than what is in it."""
    _add(shades, at, colors, row, weight)
    if n_channels > 1:
        _add(shades, at + LANES, colors, row + 1, weight)
    if n_channels > 2:
        _add(shades, at + 2 * LANES, colors, row + 2, weight)
    if n_channels > 3:
        _add(shades, at + 3 * LANES, colors, row + 3, weight)


@kernel
def _draw_group(
    shades: Float32[np.ndarray, " shade_float"],
    at: int,
    stride: int,
    colors: Float32[np.ndarray, " color_float"],
    channel: int,
    weights: Float32[np.ndarray, " weight"],
    lane: int,
    rows: Int64[np.ndarray, " waiting"],
    first: int,
    stop: int,
) -> None:
    """Add the splats that wait at first:stop to LANES channels of _GROUP pixels, from a channel and a lane on."""
    p0 = load(shades, at)
    p1 = load(shades, at + stride)
    p2 = load(shades, at + 2 * stride)
    p3 = load(shades, at + 3 * stride)
    p4 = load(shades, at + 4 * stride)
    p5 = load(shades, at + 5 * stride)
    p6 = load(shades, at + 6 * stride)
    p7 = load(shades, at + 7 * stride)
    for entry in range(first, stop):
        color, weight = load(colors, rows[entry] + channel), entry * LANES + lane
        p0 = p0 + color * load_splat(weights, weight)
        p1 = p1 + color * load_splat(weights, weight + 1)
        p2 = p2 + color * load_splat(weights, weight + 2)
        p3 = p3 + color * load_splat(weights, weight + 3)
        p4 = p4 + color * load_splat(weights, weight + 4)
        p5 = p5 + color * load_splat(weights, weight + 5)
        p6 = p6 + color * load_splat(weights, weight + 6)
        p7 = p7 + color * load_splat(weights, weight + 7)
    store(shades, at, p0)
    store(shades, at + stride, p1)
    store(shades, at + 2 * stride, p2)
    store(shades, at + 3 * stride, p3)
    store(shades, at + 4 * stride, p4)
    store(shades, at + 5 * stride, p5)
    store(shades, at + 6 * stride, p6)
    store(shades, at + 7 * stride, p7)


@kernel
def _draw_waiting(
    shades: Float32[np.ndarray, " shade_float"],
    colors: Float32[np.ndarray, " color_float"],
    n_channels: int,
    weights: Float32[np.ndarray, " weight"],
    rows: Int64[np.ndarray, " waiting"],
    counts: Int64[np.ndarray, " block"],
) -> None:
    """Add what waits for each block to all its channels."""
    for block in range(N_BLOCKS):
        first, stop = block * CHUNK_SPLATS, block * CHUNK_SPLATS + counts[block]
        for channel in range(0, n_channels if stop > first else 0, LANES):
            for lane in range(0, LANES, _GROUP):
                at = (block * LANES + lane) * n_channels + channel
                _draw_group(shades, at, n_channels, colors, channel, weights, lane, rows, first, stop)
        counts[block] = 0


@kernel
def _blend_tile(
    planes: _Planes,
    waiting: tuple[Float32[np.ndarray, " weight"], Int64[np.ndarray, " waiting"], Int64[np.ndarray, " block"]],
    splats: Float32[np.ndarray, "splat column"],
    colors: Float32[np.ndarray, "splat padded_channel"],
    ranks: Int32[np.ndarray, " entry"],
    left: int,
    top: int,
) -> None:
    """Blend the splats of one tile into ``planes``.

    ``waiting`` holds weights, where their colours begin, CHUNK_SPLATS of each block, and how many they are; nothing if
    there are few channels.
    """
    transmittance, last_drawn, shades = planes
    weights, rows, counts = waiting
    n_channels = colors.shape[1]
    flat, is_few, notes_last = colors.reshape(-1), n_channels <= FEW_CHANNELS, last_drawn.size > 0
    centers, reached = aligned_zeros(N_CENTERS), np.empty(CHUNK_SPLATS, np.uint64)
    set_centers(centers, left, top)
    first = 0
    while first < ranks.shape[0]:
        is_open = blocks_above(transmittance, _ZERO)
        if is_open == _NO_BLOCK:
            break
        stop = find_blocks(reached, splats, colors, ranks, first, (left, top), is_open)
        for k in range(first, stop):
            rank, blocks = ranks[k], reached[k - first]
            shape, row, index = bell(splats, rank), np.int64(rank) * n_channels, splat(np.float32(k))
            while blocks != _NO_BLOCK:
                block = lowest_bit(blocks)
                blocks &= blocks - _ONE_BLOCK
                weight = attenuate(transmittance, block, falloff(shape, centers, block)[2])
                if notes_last:
                    at = block * LANES
                    store(last_drawn, at, select(weight > _ZERO, index, load(last_drawn, at)))
                if is_few:
                    _draw_few(shades, block * n_channels * LANES, flat, row, n_channels, weight)
                else:
                    # what is drawn nowhere is written, but not counted: quicker than to ask
                    entry = block * CHUNK_SPLATS + counts[block]
                    store(weights, entry * LANES, weight)
                    rows[entry] = row
                    counts[block] += any_lane(weight > _ZERO)
        if not is_few:
            _draw_waiting(shades, flat, n_channels, weights, rows, counts)
        first = stop


@kernel
def _write_tile(
    image: Float32[np.ndarray, "height width channel"],
    transmittance: Float32[np.ndarray, "height width"],
    last_drawn: Float32[np.ndarray, "height width"],
    planes: _Planes,
    left: int,
    top: int,
) -> None:
    """Copy a tile's shades, transmittances and last splats to their places in the picture."""
    tile_transmittance, tile_last, shades = planes
    height, width, n_channels = image.shape
    values, transmittances, positions = image.reshape(-1), transmittance.reshape(-1), last_drawn.reshape(-1)
    n, n_padded = np.uint64(n_channels), shades.shape[0] // PLANE
    pixel_step, channel_step = (1, LANES) if n_channels <= FEW_CHANNELS else (n_padded, 1)
    for block in range(N_BLOCKS):
        first, across, down = pixels_inside(block, left, top, width, height)
        for row in range(down):
            for column in range(across):
                pixel, lane = first + row * np.uint64(width) + column, row * np.uint64(BLOCK_SIDE) + column
                at = np.uint64(block * LANES) + lane
                transmittances[pixel] = abs(tile_transmittance[at])
                if tile_last.size > 0:
                    positions[pixel] = tile_last[at]
                shade = np.uint64(block * n_padded * LANES) + lane * np.uint64(pixel_step)
                for channel in range(n):
                    values[pixel * n + channel] = shades[shade + channel * np.uint64(channel_step)]


@parallel_kernel
def blend(
    splats: Float32[np.ndarray, "splat column"],
    colors: Float32[np.ndarray, "splat padded_channel"],
    n_channels: int,
    starts: Int64[np.ndarray, " tile_bound"],
    ranks: Int32[np.ndarray, " entry"],
    size: tuple[int, int],
    needs_last: bool,
) -> tuple[
    Float32[np.ndarray, "height width channel"],
    Float32[np.ndarray, "height width"],
    Float32[np.ndarray, "height width"],
]:
    """(image [height, width, channel], transmittance [height, width], last drawn [height, width]) of packed splats.

    colors [splat, channel] in the order of ``splats``, ``padded`` columns; ``last drawn`` is the position in the tile's
    list, -1 for none, [0, 0] unless it is needed (for gradients).
    """
    width, height = size
    n_padded = colors.shape[1]
    tiles_across = (width + TILE_WIDTH - 1) // TILE_WIDTH
    image = np.empty((height, width, n_channels), np.float32)
    transmittance = np.empty((height, width), np.float32)
    last_drawn = np.empty((height, width) if needs_last else (0, 0), np.float32)
    n_tiles, counter = starts.shape[0] - 1, np.zeros(1, np.int64)
    for _ in prange(TAKERS):
        tile = take_next(counter)
        if tile < n_tiles:
            planes = (
                aligned_zeros(PLANE),
                aligned_zeros(PLANE if needs_last else 0),
                aligned_zeros(n_padded * PLANE),
            )
            n_waiting = N_BLOCKS * CHUNK_SPLATS if n_padded > FEW_CHANNELS else 0
            waiting = (
                aligned_zeros(n_waiting * LANES),
                np.empty(n_waiting, np.int64),
                np.zeros(N_BLOCKS, np.int64),
            )
            while tile < n_tiles:
                left, top = (tile % tiles_across) * TILE_WIDTH, (tile // tiles_across) * TILE_HEIGHT
                open_tile(planes[0], width - left, height - top)
                planes[1][:] = NOTHING_DRAWN
                planes[2][:] = _ZERO
                _blend_tile(planes, waiting, splats, colors, ranks[starts[tile] : starts[tile + 1]], left, top)
                _write_tile(image, transmittance, last_drawn, planes, left, top)
                tile = take_next(counter)
    return image, transmittance, last_drawn


def padded(n_channels: int) -> int:
    """Columns of the colours that ``blend`` takes: one at least, which is drawn without asking."""
    return max(n_channels, 1) if n_channels <= FEW_CHANNELS else -(-n_channels // LANES) * LANES
