"""Gradients of ``_splatting``: a tile's splats from back to front, then the sums of every splat over its tiles."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt64
from numba import prange

from gags.rasterize._blocks import (
    ALPHA_MAX,
    BELOW_CUT,
    BLOCK_SIDE,
    CHUNK_SPLATS,
    N_BLOCKS,
    N_CENTERS,
    PLANE,
    aligned_zeros,
    bell,
    blocks_above,
    falloff,
    find_blocks,
    pixels_inside,
    set_centers,
)
from gags.rasterize._projection import CHUNK
from gags.rasterize._splatting import FEW_CHANNELS, NOTHING_DRAWN
from gags.rasterize._tiles import TILE_HEIGHT, TILE_WIDTH
from gags.simd import (
    LANES,
    TAKERS,
    Lanes,
    any_lane,
    kernel,
    lane_sum,
    load,
    lowest_bit,
    magnitude,
    minimum,
    parallel_kernel,
    select,
    splat,
    store,
    take_next,
)

N_MOMENTS = 8
"""Leading columns of a gradient record: sums over a splat's pixels in a tile of g, g dx, g dy, g dx^2, g dx dy, g dy^2
(g = dL/dsigma), |dL/dx|, |dL/dy|."""

_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_NO_BLOCK, _ONE_BLOCK = np.uint64(0), np.uint64(1)
_LN2 = math.log(2.0)

_Planes = tuple[
    Float32[np.ndarray, " plane_float"],
    Float32[np.ndarray, " plane_float"],
    Float32[np.ndarray, " plane_float"],
    Float32[np.ndarray, " shade_float"],
]
"""Of a tile, block by block: transmittance behind the current splat; what lies behind it, sum_j>i weight_j <colour_j, v> + T_end
<dL/dT_end>; the last drawn splat; then v = dL/dcolour."""


@kernel
def _close_record(
    records: Float32[np.ndarray, "entry column"],
    slot: int,
    sums: tuple[Lanes, ...],
    absolute: tuple[Lanes, Lanes],
    gradient: Float32[np.ndarray, " channel_lane"],
    n_channels: int,
) -> None:
    """Sum the lanes of one splat's accumulators into its record."""
    for j in range(6):
        records[slot, j] = lane_sum(sums[j])
    records[slot, 6], records[slot, 7] = lane_sum(absolute[0]), lane_sum(absolute[1])
    for channel in range(n_channels):
        records[slot, N_MOMENTS + channel] = lane_sum(load(gradient, channel * LANES))


@kernel
def _color_backward(
    upstream: Float32[np.ndarray, " shade_float"],
    at: int,
    colors: Float32[np.ndarray, "splat padded_channel"],
    rank: int,
    weight: Lanes,
    gradient: Float32[np.ndarray, " channel_lane"],
    n_channels: int,
) -> Lanes:
    """<colour, v> at the pixels of a block, v the channels from ``at`` on; weight x v is added to the ``gradient``."""
    shade = splat(_ZERO)
    for channel in range(n_channels):
        v = load(upstream, at + channel * LANES)
        shade = shade + v * colors[rank, channel]
        store(gradient, channel * LANES, load(gradient, channel * LANES) + weight * v)
    return shade


@kernel
def _chunk_backward(
    planes: _Planes,
    centers: Float32[np.ndarray, " center"],
    reached: UInt64[np.ndarray, " entry"],
    first: int,
    stop: int,
    splats: Float32[np.ndarray, "splat column"],
    colors: Float32[np.ndarray, "splat padded_channel"],
    ranks: Int32[np.ndarray, " entry"],
    slots: Int32[np.ndarray, " entry"],
    records: Float32[np.ndarray, "entry column"],
    gradient: Float32[np.ndarray, " channel_lane"],
    absgrad: bool,
) -> None:
    """Take the splats first:stop of a tile's list off their blocks, the last one first, and write their records."""
    transmittances, behinds, last_drawn, upstream = planes
    n_channels, zero = upstream.shape[0] // PLANE, splat(_ZERO)
    for k in range(stop - 1, first - 1, -1):
        rank, blocks, before_position = ranks[k], reached[k - first], np.float32(k) - _HALF
        shape = bell(splats, rank)
        xx, xy, yy = shape[2], shape[3], shape[4]
        g0 = gx = gy = gxx = gxy = gyy = ax = ay = zero
        for channel in range(n_channels):
            store(gradient, channel * LANES, zero)
        while blocks != _NO_BLOCK:
            block = lowest_bit(blocks)
            blocks &= blocks - _ONE_BLOCK
            at = block * LANES
            dx, dy, unclamped = falloff(shape, centers, block)
            alpha = minimum(unclamped, splat(ALPHA_MAX))
            drawn = (alpha > BELOW_CUT) & (load(last_drawn, at) > before_position)
            # to ask takes longer than a few channels
            if n_channels <= FEW_CHANNELS or any_lane(drawn):
                alpha = select(drawn, alpha, zero)
                inverse = splat(_ONE) / (splat(_ONE) - alpha)
                transmittance, behind = load(transmittances, at) * inverse, load(behinds, at)
                weight = alpha * transmittance
                shade = _color_backward(upstream, at * n_channels, colors, rank, weight, gradient, n_channels)
                store(transmittances, at, transmittance)
                store(behinds, at, behind + weight * shade)
                # dL/dalpha = T shade - behind / (1 - alpha); dL/dsigma = -alpha dL/dalpha, none where clamped
                g = select(unclamped > ALPHA_MAX, zero, alpha * (behind * inverse - transmittance * shade))
                gdx, gdy = g * dx, g * dy
                g0, gx, gy = g0 + g, gx + gdx, gy + gdy
                gxx, gxy, gyy = gxx + gdx * dx, gxy + gdx * dy, gyy + gdy * dy
                if absgrad:
                    # up to the factor -log(2): dp/dx and dp/dy
                    ax = ax + magnitude(gdx * (xx + xx) + gdy * xy)
                    ay = ay + magnitude(gdx * xy + gdy * (yy + yy))
        _close_record(records, slots[k], (g0, gx, gy, gxx, gxy, gyy), (ax, ay), gradient, n_channels)


@kernel
def _blend_tile_backward(
    planes: _Planes,
    splats: Float32[np.ndarray, "splat column"],
    colors: Float32[np.ndarray, "splat padded_channel"],
    ranks: Int32[np.ndarray, " entry"],
    slots: Int32[np.ndarray, " entry"],
    records: Float32[np.ndarray, "entry column"],
    left: int,
    top: int,
    absgrad: bool,
) -> None:
    """Go through a tile's splats from back to front and write their records."""
    gradient = aligned_zeros((records.shape[1] - N_MOMENTS) * LANES)
    centers, reached = aligned_zeros(N_CENTERS), np.empty(CHUNK_SPLATS, np.uint64)
    set_centers(centers, left, top)
    deepest = int(np.max(planes[2]))
    for chunk in range(deepest // CHUNK_SPLATS, -1, -1):
        first = chunk * CHUNK_SPLATS
        # blocks whose last splat is nearer are not there yet
        begun = blocks_above(planes[2], np.float32(first) - _HALF)
        stop = min(find_blocks(reached, splats, colors, ranks, first, (left, top), begun), deepest + 1)
        _chunk_backward(planes, centers, reached, first, stop, splats, colors, ranks, slots, records, gradient, absgrad)
    for k in range(deepest + 1, ranks.shape[0]):
        for column in range(records.shape[1]):
            records[slots[k], column] = 0.0


@kernel
def _read_tile(
    planes: _Planes,
    transmittance: Float32[np.ndarray, "height width"],
    last_drawn: Float32[np.ndarray, "height width"],
    v_image: Float32[np.ndarray, "height width channel"],
    v_transmittance: Float32[np.ndarray, "height width"],
    left: int,
    top: int,
) -> None:
    """Fill the planes of ``_blend_tile_backward``. What lies outside the image has no splat, and zeros: they are added."""
    tile_transmittance, behind, tile_last, upstream = planes
    height, width, n_channels = v_image.shape
    values, v_transmittances = v_image.reshape(-1), v_transmittance.reshape(-1)
    transmittances, positions = transmittance.reshape(-1), last_drawn.reshape(-1)
    n = np.uint64(n_channels)
    if left + TILE_WIDTH > width or top + TILE_HEIGHT > height:
        tile_transmittance[:], behind[:], tile_last[:], upstream[:] = _ZERO, _ZERO, NOTHING_DRAWN, _ZERO
    for block in range(N_BLOCKS):
        first, across, down = pixels_inside(block, left, top, width, height)
        for row in range(down):
            for column in range(across):
                pixel, lane = first + row * np.uint64(width) + column, row * np.uint64(BLOCK_SIDE) + column
                at = np.uint64(block * LANES) + lane
                tile_transmittance[at] = transmittances[pixel]
                behind[at] = transmittances[pixel] * v_transmittances[pixel]
                tile_last[at] = positions[pixel]
                for channel in range(n):
                    upstream[(np.uint64(block) * n + channel) * np.uint64(LANES) + lane] = values[pixel * n + channel]


@parallel_kernel
def blend_backward(
    splats: Float32[np.ndarray, "splat column"],
    colors: Float32[np.ndarray, "splat padded_channel"],
    starts: Int64[np.ndarray, " tile_bound"],
    ranks: Int32[np.ndarray, " entry"],
    slots: Int32[np.ndarray, " entry"],
    transmittance: Float32[np.ndarray, "height width"],
    last_drawn: Float32[np.ndarray, "height width"],
    v_image: Float32[np.ndarray, "height width channel"],
    v_transmittance: Float32[np.ndarray, "height width"],
    absgrad: bool,
) -> Float32[np.ndarray, "entry column"]:
    """Gradient records [slot, N_MOMENTS + channel] of all (splat, tile) entries; see N_MOMENTS for the columns."""
    width, n_channels = v_image.shape[1], v_image.shape[2]
    tiles_across = (width + TILE_WIDTH - 1) // TILE_WIDTH
    records = np.empty((ranks.shape[0], N_MOMENTS + n_channels), np.float32)
    n_tiles, counter = starts.shape[0] - 1, np.zeros(1, np.int64)
    for _ in prange(TAKERS):
        tile = take_next(counter)
        if tile < n_tiles:
            planes = (
                aligned_zeros(PLANE), aligned_zeros(PLANE), aligned_zeros(PLANE),
                aligned_zeros(n_channels * PLANE),
            )  # fmt: skip
            while tile < n_tiles:
                left, top = (tile % tiles_across) * TILE_WIDTH, (tile // tiles_across) * TILE_HEIGHT
                _read_tile(planes, transmittance, last_drawn, v_image, v_transmittance, left, top)
                first, stop = starts[tile], starts[tile + 1]
                _blend_tile_backward(
                    planes, splats, colors, ranks[first:stop], slots[first:stop], records, left, top, absgrad
                )
                tile = take_next(counter)
    return records


@parallel_kernel
def gather_gradients(
    order: Int32[np.ndarray, " splat"],
    slot_starts: Int64[np.ndarray, " splat_bound"],
    records: Float32[np.ndarray, "entry column"],
    conics: Float32[np.ndarray, "gaussian 3"],
    opacities: Float32[np.ndarray, " gaussian"],
    v_means2d: Float32[np.ndarray, "gaussian 2"],
    v_conics: Float32[np.ndarray, "gaussian 3"],
    v_opacities: Float32[np.ndarray, " gaussian"],
    v_colors: Float32[np.ndarray, "gaussian channel"],
    v_means2d_abs: Float32[np.ndarray, "gaussian 2"],
) -> None:
    """Add up every splat's records, in the order of its tiles, and write the gradients of Gaussian order[rank].

    With sigma = (a dx^2 + c dy^2) / 2 + b dx dy, conic = (a, b, c): dL/da = sum g dx^2 / 2, dL/db = sum g dx dy,
    dL/dmean = -sum g (a dx + b dy, b dx + c dy), dL/dopacity = -sum g / opacity.
    """
    n = order.shape[0]
    n_columns = records.shape[1]
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        total = np.empty(n_columns, np.float64)
        for rank in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            total[:] = 0.0
            for slot in range(slot_starts[rank], slot_starts[rank + 1]):
                for j in range(n_columns):
                    total[j] += records[slot, j]
            i = order[rank]
            a, b, c = conics[i, 0], conics[i, 1], conics[i, 2]
            v_opacities[i] = -total[0] / opacities[i]
            v_means2d[i, 0], v_means2d[i, 1] = -(a * total[1] + b * total[2]), -(b * total[1] + c * total[2])
            v_conics[i, 0], v_conics[i, 1], v_conics[i, 2] = 0.5 * total[3], total[4], 0.5 * total[5]
            if v_means2d_abs.size > 0:
                v_means2d_abs[i, 0], v_means2d_abs[i, 1] = _LN2 * total[6], _LN2 * total[7]
            for j in range(N_MOMENTS, n_columns):
                v_colors[i, j - N_MOMENTS] = total[j]
