"""Alpha blending of depth-sorted splats, tile by tile, in numba: forward and gradients.

Output: sum_i weight_i colour_i of ``_blocks``, and the transmittance that is left. A tile keeps its pixels block by block, a
vector a quantity. Splats are drawn in chunks: first looked for, then weighed, each on all its blocks. A few channels are
added at once, a vector a channel; of more, a block's weights wait until it is its turn, and the channels are vectors, one
pixel after the other.
"""

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
    attenuate,
    bell,
    blocks_above,
    falloff,
    find_blocks,
    open_tile,
    pixels_inside,
    set_centers,
)
from gags.rasterize._projection import CHUNK
from gags.rasterize._simd import (
    LANES,
    TAKERS,
    Lanes,
    any_lane,
    kernel,
    lane_sum,
    load,
    load_splat,
    lowest_bit,
    magnitude,
    minimum,
    parallel_kernel,
    select,
    splat,
    store,
    take_next,
)
from gags.rasterize._tiles import TILE_HEIGHT, TILE_WIDTH

N_MOMENTS = 8
"""Leading columns of a gradient record: sums over a splat's pixels in a tile of g, g dx, g dy, g dx^2, g dx dy, g dy^2
(g = dL/dsigma), |dL/dx|, |dL/dy|."""
FEW_CHANNELS = 4
"""So many are added where they are drawn."""
_GROUP = 8
"""Of more channels, a vector of them is added to so many pixels in one go: sums in registers, p0 to p7 of ``_draw_group``."""

_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_NO_BLOCK, _ONE_BLOCK = np.uint64(0), np.uint64(1)
_NOTHING_DRAWN = np.float32(-1.0)
_LN2 = math.log(2.0)


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
    planes: tuple[
        Float32[np.ndarray, " plane_float"], Float32[np.ndarray, " plane_float"], Float32[np.ndarray, " shade_float"]
    ],
    waiting: tuple[Float32[np.ndarray, " weight"], Int64[np.ndarray, " waiting"], Int64[np.ndarray, " block"]],
    splats: Float32[np.ndarray, "splat column"],
    colors: Float32[np.ndarray, "splat channel"],
    ranks: Int32[np.ndarray, " entry"],
    left: int,
    top: int,
) -> None:
    """Blend the splats of one tile into ``planes``: transmittance, each pixel's last splat (empty: not noted), channels.

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
    planes: tuple[
        Float32[np.ndarray, " plane_float"], Float32[np.ndarray, " plane_float"], Float32[np.ndarray, " shade_float"]
    ],
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
                planes[1][:] = _NOTHING_DRAWN
                planes[2][:] = _ZERO
                _blend_tile(planes, waiting, splats, colors, ranks[starts[tile] : starts[tile + 1]], left, top)
                _write_tile(image, transmittance, last_drawn, planes, left, top)
                tile = take_next(counter)
    return image, transmittance, last_drawn


def padded(n_channels: int) -> int:
    """Columns of the colours that ``blend`` takes: one at least, which is drawn without asking."""
    return max(n_channels, 1) if n_channels <= FEW_CHANNELS else -(-n_channels // LANES) * LANES


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
    planes: tuple[
        Float32[np.ndarray, " plane_float"],
        Float32[np.ndarray, " plane_float"],
        Float32[np.ndarray, " plane_float"],
        Float32[np.ndarray, " shade_float"],
    ],
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
    planes: tuple[
        Float32[np.ndarray, " plane_float"],
        Float32[np.ndarray, " plane_float"],
        Float32[np.ndarray, " plane_float"],
        Float32[np.ndarray, " shade_float"],
    ],
    splats: Float32[np.ndarray, "splat column"],
    colors: Float32[np.ndarray, "splat padded_channel"],
    ranks: Int32[np.ndarray, " entry"],
    slots: Int32[np.ndarray, " entry"],
    records: Float32[np.ndarray, "entry column"],
    left: int,
    top: int,
    absgrad: bool,
) -> None:
    """Go through a tile's splats from back to front and write their records.

    ``planes``: transmittance behind the current splat; what lies behind it, sum_j>i weight_j <colour_j, v> + T_end
    <dL/dT_end>; the last drawn splat; then v = dL/dcolour.
    """
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
    planes: tuple[
        Float32[np.ndarray, " plane_float"],
        Float32[np.ndarray, " plane_float"],
        Float32[np.ndarray, " plane_float"],
        Float32[np.ndarray, " shade_float"],
    ],
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
        tile_transmittance[:], behind[:], tile_last[:], upstream[:] = _ZERO, _ZERO, _NOTHING_DRAWN, _ZERO
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
