"""Alpha blending of depth-sorted splats, tile by tile, in numba: forward and gradients.

Per pixel, front to back, with alpha_i = min(0.999, opacity_i exp(-sigma_i)), skipped below 1/255 (Kerbl et al. 2023,
eq. 2-3, constants of gsplat 1.5.3): weight_i = alpha_i T_i, T_{i+1} = T_i (1 - alpha_i); a pixel is finished by the
splat that would take T to 1e-4 or less, and that splat is not drawn. Output: sum_i weight_i colour_i, and the T that is
left.

A tile keeps its pixels as planes of float32 (transmittance, then channels) with LANES spare columns at the right, so
that a vector may begin at any pixel. A finished pixel has its transmittance negated: nothing can be drawn there any
more. The spare columns and what lies outside the image start finished.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64
from numba import prange

from gags.rasterize._projection import ALPHA_CUT, CHUNK
from gags.rasterize._simd import (
    LANES,
    TAKERS,
    Lanes,
    Mask,
    any_lane,
    exp2,
    kernel,
    lane_sum,
    load,
    magnitude,
    minimum,
    parallel_kernel,
    prefetch,
    ramp,
    select,
    splat,
    store,
    take_next,
)
from gags.rasterize._tiles import (
    LOG2_OPACITY,
    MEAN_X,
    MEAN_Y,
    TILE_HEIGHT,
    TILE_WIDTH,
    XX,
    XY,
    YY,
    row_range,
    row_spans,
)

STRIDE = TILE_WIDTH + LANES
"""Floats in a row of a tile's plane."""
PLANE = TILE_HEIGHT * STRIDE + LANES
"""Floats in a tile's plane: an odd number of vectors, so that one pixel's channels spread over all sets of the cache."""
N_MOMENTS = 8
"""Leading columns of a gradient record: sums over a splat's pixels in a tile of g, g dx, g dy, g dx^2, g dx dy, g dy^2
(g = dL/dsigma), |dL/dx|, |dL/dy|."""

_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
BELOW_CUT = np.float32(np.nextafter(np.float32(ALPHA_CUT), np.float32(0.0)))
# alpha > the float before 1/255 is alpha >= 1/255
ALPHA_MAX = np.float32(0.999)
T_STOP = np.float32(1e-4)
_NOTHING_DRAWN = np.float32(-1.0)
_LN2 = math.log(2.0)
CHECK_EVERY = 32
FETCH_AHEAD = 4
"""Splats between the one that is drawn and the one that is asked for: neighbours in a tile's list are not in memory."""
_FEW_CHANNELS = 4


@kernel
def open_tile(state: Float32[np.ndarray, " plane_float"], left: int, top: int, right: int, bottom: int) -> None:
    """Set the plane at the start of ``state`` to 1 inside the image, to -1 (finished) elsewhere."""
    state[:PLANE] = -1.0
    for y in range(bottom - top):
        for x in range(right - left):
            state[y * STRIDE + x] = 1.0


@kernel
def _row_is_open(state: Float32[np.ndarray, " plane_float"], row: int) -> bool:
    """Whether a pixel of the row (of the tile) can still be drawn on."""
    is_open = False
    for j in range(row * STRIDE, row * STRIDE + TILE_WIDTH, LANES):
        is_open |= any_lane(load(state, j) > _ZERO)
    return is_open


@kernel
def falloff(s: Float32[np.ndarray, " column"], x: int, dy: float) -> tuple[Lanes, Lanes]:
    """(dx, opacity x exp(-sigma)) of splat ``s`` at LANES pixels from column x on, on the row at dy from its mean."""
    dx = ramp() + (np.float32(x) + _HALF - s[MEAN_X])
    return dx, exp2((s[XX] * dx + s[XY] * dy) * dx + (s[YY] * dy * dy + s[LOG2_OPACITY]))


@kernel
def attenuate(state: Float32[np.ndarray, " plane_float"], at: int, unclamped: Lanes) -> tuple[Mask, Lanes]:
    """(where the splat is drawn, its weight alpha x T, 0 elsewhere); the transmittances at ``at`` go behind the
    splat."""
    alpha = minimum(unclamped, splat(ALPHA_MAX))
    before = load(state, at)
    weight = alpha * before
    after = before - weight
    seen = alpha > BELOW_CUT
    drawn = seen & (after > T_STOP)
    store(state, at, select(drawn, after, select(seen, splat(_ZERO) - magnitude(before), before)))
    return drawn, select(drawn, weight, splat(_ZERO))


@kernel
def open_rows_of(state: Float32[np.ndarray, " plane_float"], open_rows: Bool[np.ndarray, " row"]) -> bool:
    """Note which rows of a tile can still be drawn on; return whether any can."""
    any_open = False
    for row in range(TILE_HEIGHT):
        open_rows[row] = _row_is_open(state, row)
        any_open |= open_rows[row]
    return any_open


@kernel
def _add(state: Float32[np.ndarray, " plane_float"], at: int, value: Lanes) -> None:
    store(state, at, load(state, at) + value)


@kernel
def _blend_tile(
    state: Float32[np.ndarray, " plane_float"],
    last_drawn: Float32[np.ndarray, " plane_float"],
    splats: Float32[np.ndarray, "splat column"],
    colors: Float32[np.ndarray, "splat channel"],
    ranks: Int32[np.ndarray, " entry"],
    left: int,
    top: int,
    right: int,
    bottom: int,
) -> None:
    """Blend the splats of one tile into ``state``: plane 0 transmittance, then a plane a channel; note each pixel's
    last splat, unless ``last_drawn`` is empty."""
    n_channels = colors.shape[1]
    # to ask whether anything is drawn takes longer than to add nothing to a few channels
    is_rgb, is_wide, notes_last = n_channels == 3, n_channels > _FEW_CHANNELS, last_drawn.size > 0
    open_rows = np.ones(TILE_HEIGHT, np.bool_)
    spans = np.empty(2 * TILE_HEIGHT, np.int32)
    for k in range(ranks.shape[0]):
        if k % CHECK_EVERY == CHECK_EVERY - 1 and not open_rows_of(state, open_rows):
            break
        later = ranks[min(k + FETCH_AHEAD, ranks.shape[0] - 1)]
        prefetch(splats, later)
        prefetch(colors, later)
        s, color = splats[ranks[k]], colors[ranks[k]]
        first_row, stop_row = row_range(s, bottom)
        row_spans(s, top, left, right, spans)
        index = splat(np.float32(k))
        for y in range(max(first_row, top), stop_row):
            if not open_rows[y - top]:
                continue
            dy = np.float32(y) + _HALF - s[MEAN_Y]
            x, stop = int(spans[y - top]), int(spans[TILE_HEIGHT + y - top])
            while x < stop:
                at = (y - top) * STRIDE + x - left
                drawn, weight = attenuate(state, at, falloff(s, x, dy)[1])
                x += LANES
                if is_wide and not any_lane(drawn):
                    continue
                if notes_last:
                    store(last_drawn, at, select(drawn, index, load(last_drawn, at)))
                if is_rgb:
                    # a loop over three takes longer than what is in it
                    _add(state, at + PLANE, weight * color[0])
                    _add(state, at + 2 * PLANE, weight * color[1])
                    _add(state, at + 3 * PLANE, weight * color[2])
                else:
                    for channel in range(n_channels):
                        _add(state, at + (channel + 1) * PLANE, weight * color[channel])


@parallel_kernel
def blend(
    splats: Float32[np.ndarray, "splat column"],
    colors: Float32[np.ndarray, "splat channel"],
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

    colors [splat, channel] in the order of ``splats``; ``last drawn`` is the position in the tile's list, -1 for none,
    [0, 0] unless it is needed (for gradients).
    """
    width, height = size
    n_channels = colors.shape[1]
    tiles_across = (width + TILE_WIDTH - 1) // TILE_WIDTH
    image = np.empty((height, width, n_channels), np.float32)
    transmittance = np.empty((height, width), np.float32)
    last_drawn = np.empty((height, width) if needs_last else (0, 0), np.float32)
    n_tiles, counter = starts.shape[0] - 1, np.zeros(1, np.int64)
    for _ in prange(TAKERS):
        tile = take_next(counter)
        while tile < n_tiles:
            left, top = (tile % tiles_across) * TILE_WIDTH, (tile // tiles_across) * TILE_HEIGHT
            right, bottom = min(width, left + TILE_WIDTH), min(height, top + TILE_HEIGHT)
            state = np.zeros((n_channels + 1) * PLANE, np.float32)
            last = np.full(PLANE if needs_last else 0, _NOTHING_DRAWN, np.float32)
            open_tile(state, left, top, right, bottom)
            _blend_tile(state, last, splats, colors, ranks[starts[tile] : starts[tile + 1]], left, top, right, bottom)
            for y in range(top, bottom):
                for x in range(left, right):
                    at = (y - top) * STRIDE + x - left
                    transmittance[y, x] = abs(state[at])
                    if needs_last:
                        last_drawn[y, x] = last[at]
                    for channel in range(n_channels):
                        image[y, x, channel] = state[(channel + 1) * PLANE + at]
            tile = take_next(counter)
    return image, transmittance, last_drawn


@kernel
def _close_record(
    record: Float32[np.ndarray, " column"],
    sums: tuple[Lanes, ...],
    absolute: tuple[Lanes, Lanes],
    gradient: Float32[np.ndarray, " channel_lane"],
    n_channels: int,
) -> None:
    """Sum the lanes of one splat's accumulators into its record."""
    for j in range(6):
        record[j] = lane_sum(sums[j])
    record[6], record[7] = lane_sum(absolute[0]), lane_sum(absolute[1])
    for channel in range(n_channels):
        record[N_MOMENTS + channel] = lane_sum(load(gradient, channel * LANES))


@kernel
def _deepest_of_rows(state: Float32[np.ndarray, " plane_float"], row_last: Int64[np.ndarray, " row"]) -> int:
    """Write the position of the last splat drawn on each row of a tile (-1: none); return the last of all."""
    deepest = -1
    for row in range(TILE_HEIGHT):
        row_last[row] = np.int64(np.max(state[2 * PLANE + row * STRIDE : 2 * PLANE + (row + 1) * STRIDE]))
        deepest = max(deepest, row_last[row])
    return deepest


@kernel
def _color_backward(
    state: Float32[np.ndarray, " plane_float"],
    plane: int,
    color: Float32[np.ndarray, " channel"],
    weight: Lanes,
    gradient: Float32[np.ndarray, " channel_lane"],
) -> Lanes:
    """<colour, v> at LANES pixels, v the planes from ``plane`` on; weight x v is added to the colour's ``gradient``."""
    shade = splat(_ZERO)
    for channel in range(color.shape[0]):
        v = load(state, plane)
        shade = shade + v * color[channel]
        store(gradient, channel * LANES, load(gradient, channel * LANES) + weight * v)
        plane += PLANE
    return shade


@kernel
def _blend_tile_backward(
    state: Float32[np.ndarray, " plane_float"],
    splats: Float32[np.ndarray, "splat column"],
    colors: Float32[np.ndarray, "splat channel"],
    ranks: Int32[np.ndarray, " entry"],
    slots: Int32[np.ndarray, " entry"],
    records: Float32[np.ndarray, "entry column"],
    left: int,
    top: int,
    right: int,
    bottom: int,
    absgrad: bool,
) -> None:
    """Go through a tile's splats from back to front and write their records.

    ``state`` holds four kinds of planes: transmittance behind the current splat; what lies behind it, sum_j>i weight_j
    <colour_j, v> + T_end <dL/dT_end>; the last drawn splat; then v = dL/dcolour, a plane a channel.
    """
    n_channels = colors.shape[1]
    gradient = np.empty(n_channels * LANES, np.float32)
    row_last = np.empty(TILE_HEIGHT, np.int64)
    spans = np.empty(2 * TILE_HEIGHT, np.int32)
    deepest = _deepest_of_rows(state, row_last)
    zero = splat(_ZERO)
    for k in range(deepest, -1, -1):
        later = ranks[max(k - FETCH_AHEAD, 0)]
        prefetch(splats, later)
        prefetch(colors, later)
        s, color = splats[ranks[k]], colors[ranks[k]]
        first_row, stop_row = row_range(s, bottom)
        row_spans(s, top, left, right, spans)
        before_index = np.float32(k) - _HALF
        g0 = gx = gy = gxx = gxy = gyy = ax = ay = zero
        gradient[:] = _ZERO
        for y in range(max(first_row, top), stop_row):
            if row_last[y - top] < k:
                continue
            dy = np.float32(y) + _HALF - s[MEAN_Y]
            x, stop = int(spans[y - top]), int(spans[TILE_HEIGHT + y - top])
            while x < stop:
                at = (y - top) * STRIDE + x - left
                dx, unclamped = falloff(s, x, dy)
                alpha = minimum(unclamped, splat(ALPHA_MAX))
                drawn = (alpha > BELOW_CUT) & (load(state, at + 2 * PLANE) > before_index)
                if any_lane(drawn):
                    alpha = select(drawn, alpha, zero)
                    inverse = splat(_ONE) / (splat(_ONE) - alpha)
                    transmittance, behind = load(state, at) * inverse, load(state, at + PLANE)
                    weight = alpha * transmittance
                    shade = _color_backward(state, at + 3 * PLANE, color, weight, gradient)
                    store(state, at, transmittance)
                    store(state, at + PLANE, behind + weight * shade)
                    # dL/dalpha = T shade - behind / (1 - alpha); dL/dsigma = -alpha dL/dalpha, none where clamped
                    g = select(unclamped > ALPHA_MAX, zero, alpha * (behind * inverse - transmittance * shade))
                    gdx, gdy = g * dx, g * dy
                    g0, gx, gy = g0 + g, gx + gdx, gy + gdy
                    gxx, gxy, gyy = gxx + gdx * dx, gxy + gdx * dy, gyy + gdy * dy
                    if absgrad:
                        # up to the factor -log(2): dp/dx and dp/dy
                        ax = ax + magnitude(gdx * (s[XX] + s[XX]) + g * (s[XY] * dy))
                        ay = ay + magnitude(gdx * s[XY] + gdy * (s[YY] + s[YY]))
                x += LANES
        _close_record(records[slots[k]], (g0, gx, gy, gxx, gxy, gyy), (ax, ay), gradient, n_channels)
    for k in range(deepest + 1, ranks.shape[0]):
        records[slots[k]] = 0.0


@parallel_kernel
def blend_backward(
    splats: Float32[np.ndarray, "splat column"],
    colors: Float32[np.ndarray, "splat channel"],
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
    height, width = transmittance.shape
    n_channels = colors.shape[1]
    tiles_across = (width + TILE_WIDTH - 1) // TILE_WIDTH
    records = np.empty((ranks.shape[0], N_MOMENTS + n_channels), np.float32)
    n_tiles, counter = starts.shape[0] - 1, np.zeros(1, np.int64)
    for _ in prange(TAKERS):
        tile = take_next(counter)
        while tile < n_tiles:
            left, top = (tile % tiles_across) * TILE_WIDTH, (tile // tiles_across) * TILE_HEIGHT
            right, bottom = min(width, left + TILE_WIDTH), min(height, top + TILE_HEIGHT)
            state = np.zeros((n_channels + 3) * PLANE, np.float32)
            state[2 * PLANE : 3 * PLANE] = _NOTHING_DRAWN
            for y in range(top, bottom):
                for x in range(left, right):
                    at = (y - top) * STRIDE + x - left
                    state[at] = transmittance[y, x]
                    state[PLANE + at] = transmittance[y, x] * v_transmittance[y, x]
                    state[2 * PLANE + at] = last_drawn[y, x]
                    for channel in range(n_channels):
                        state[(3 + channel) * PLANE + at] = v_image[y, x, channel]
            first, stop = starts[tile], starts[tile + 1]
            _blend_tile_backward(
                state, splats, colors, ranks[first:stop], slots[first:stop], records, left, top, right, bottom, absgrad
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
