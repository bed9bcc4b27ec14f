"""Which Gaussians touch which tile, front to back: depth order, packing, tile lists.

A splat is drawn where alpha = opacity * exp(-sigma) >= 1/255, an ellipse. With p(dx, dy) = log2(opacity) - log2(e)
sigma(dx, dy) that is p >= -log2(255), and on one pixel row an interval, known in closed form: tiles and blocks of pixels
that a splat does not reach are never visited.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32, Int32, Int64
from numba import prange

from gags.rasterize._projection import ALPHA_CUT, CHUNK
from gags.simd import LANES, ceiling, floor, kernel, parallel_kernel

TILE_WIDTH = 64
"""Pixels a tile is wide. Tiles bound the working memory of the blending loop; results do not depend on them."""
TILE_HEIGHT = LANES
"""Pixels a tile is high: a vector holds a number for each of its rows."""

MEAN_X, MEAN_Y, XX, XY, YY, LOG2_OPACITY, SHEAR, REACH, SHRINK, HALF_HEIGHT, HALF_WIDTH = range(11)
"""Columns of a packed splat: centre (px); p = XX dx^2 + XY dx dy + YY dy^2 + LOG2_OPACITY; on row dy the splat covers
dx = SHEAR dy +- sqrt(REACH + SHRINK dy^2); |dy| <= HALF_HEIGHT, |dx| <= HALF_WIDTH."""
N_COLUMNS = 11

_LOG2E = math.log2(math.e)
SPAN_SLACK_PX = 2e-3
# the interval is a bound, the test of alpha decides: a little more than float32 rounding of a position in a large image


@kernel
def depth_order(
    depths: Float32[np.ndarray, " gaussian"], radii: Int32[np.ndarray, "gaussian 2"]
) -> Int32[np.ndarray, " splat"]:
    """Indices of the seen Gaussians, near to far, ties in index order: a radix sort of the bits of positive floats."""
    n = depths.shape[0]
    count = 0
    for i in range(n):
        count += radii[i, 0] > 0
    ids, other_ids = np.empty(count, np.int32), np.empty(count, np.int32)
    keys, other_keys = np.empty(count, np.uint32), np.empty(count, np.uint32)
    bits = depths.view(np.uint32)
    count = 0
    for i in range(n):
        if radii[i, 0] > 0:
            ids[count], keys[count] = i, bits[i]
            count += 1
    # three digits of 11 bits
    for shift in (np.uint32(0), np.uint32(11), np.uint32(22)):
        starts = np.zeros(2049, np.int64)
        for k in range(count):
            starts[np.int64((keys[k] >> shift) & np.uint32(2047)) + 1] += 1
        starts = np.cumsum(starts)
        for k in range(count):
            digit = np.int64((keys[k] >> shift) & np.uint32(2047))
            other_ids[starts[digit]], other_keys[starts[digit]] = ids[k], keys[k]
            starts[digit] += 1
        ids, other_ids = other_ids, ids
        keys, other_keys = other_keys, keys
    return ids


@parallel_kernel
def take_rows(
    rows: Float32[np.ndarray, "gaussian channel"], ids: Int32[np.ndarray, " splat"], n_columns: int
) -> Float32[np.ndarray, "splat column"]:
    """rows[ids], with zeros behind them to ``n_columns``."""
    n, n_channels = ids.shape[0], rows.shape[1]
    taken = np.empty((n, n_columns), np.float32)
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        for k in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            for channel in range(n_channels):
                taken[k, channel] = rows[ids[k], channel]
            for channel in range(n_channels, n_columns):
                taken[k, channel] = 0.0
    return taken


@parallel_kernel
def pack_splats(
    order: Int32[np.ndarray, " splat"],
    means2d: Float32[np.ndarray, "gaussian 2"],
    conics: Float32[np.ndarray, "gaussian 3"],
    opacities: Float32[np.ndarray, " gaussian"],
) -> Float32[np.ndarray, "splat column"]:
    """The seen Gaussians in depth order as rows of the columns above, float32 [seen, N_COLUMNS]."""
    n = order.shape[0]
    splats = np.empty((n, N_COLUMNS), np.float32)
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        for k in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            i = order[k]
            a, b, c = np.float64(conics[i, 0]), np.float64(conics[i, 1]), np.float64(conics[i, 2])
            log2_opacity = math.log2(np.float64(opacities[i]))
            # float32 rounds the exponent by up to 1e-6 of it: enlarge the ellipse by that much
            reach = max(0.0, log2_opacity - math.log2(ALPHA_CUT) + 1e-5) * 2.0 / (_LOG2E * a)
            shrink = (b * b - a * c) / (a * a)
            splats[k, MEAN_X], splats[k, MEAN_Y] = means2d[i, 0], means2d[i, 1]
            splats[k, XX], splats[k, XY], splats[k, YY] = -0.5 * _LOG2E * a, -_LOG2E * b, -0.5 * _LOG2E * c
            splats[k, LOG2_OPACITY], splats[k, SHEAR] = log2_opacity, -b / a
            splats[k, REACH], splats[k, SHRINK] = reach, shrink
            # a conic that rounding has made indefinite is not an ellipse: it would cover everything, so nothing is
            # drawn
            half_height = math.sqrt(reach / -shrink) if a > 0.0 and shrink < 0.0 else -1.0
            splats[k, HALF_HEIGHT], splats[k, HALF_WIDTH] = half_height, half_height * math.sqrt(max(c / a, 0.0))
    return splats


@kernel
def _pixels_around(mean: float, half: float, size: int) -> tuple[int, int]:
    """First and one past the last of ``size`` pixels whose centre is within ``half`` of ``mean``."""
    reach = half + np.float32(SPAN_SLACK_PX)
    start = max(mean - reach - np.float32(0.5), np.float32(-1.0))
    stop = min(mean + reach - np.float32(0.5), np.float32(size))
    return max(int(ceiling(start)), 0), min(int(floor(stop)) + 1, size)


@kernel
def _row_range(splat: Float32[np.ndarray, " column"], height: int) -> tuple[int, int]:
    """First and one past the last pixel row that the splat reaches."""
    return _pixels_around(splat[MEAN_Y], splat[HALF_HEIGHT], height)


@kernel
def _column_range(splat: Float32[np.ndarray, " column"], width: int) -> tuple[int, int]:
    """First and one past the last pixel column that the splat may reach."""
    return _pixels_around(splat[MEAN_X], splat[HALF_WIDTH], width)


@kernel
def _row_span(splat: Float32[np.ndarray, " column"], dy: float, left: int, right: int) -> tuple[int, int]:
    """First and one past the last pixel column in [left, right) that the splat reaches on the row dy below its mean."""
    square = splat[REACH] + splat[SHRINK] * dy * dy
    half = math.sqrt(max(square, np.float32(0.0))) + np.float32(SPAN_SLACK_PX)
    middle = splat[MEAN_X] + splat[SHEAR] * dy - np.float32(0.5)
    # clamped as floats: a large float has no integer
    start = max(middle - half, np.float32(left - 1))
    stop = min(middle + half, np.float32(right))
    return max(int(ceiling(start)), left), min(int(floor(stop)) + 1, right)


@kernel
def _strip_span(splat: Float32[np.ndarray, " column"], top: int, bottom: int, width: int) -> tuple[int, int]:
    """The union of the row spans of the rows top .. bottom - 1 (as columns in [0, width))."""
    first, last = (
        np.float32(top) + np.float32(0.5) - splat[MEAN_Y],
        np.float32(bottom) - np.float32(0.5) - splat[MEAN_Y],
    )
    # the rightmost point of the ellipse lies at dy = tip, the leftmost at -tip; in between the ends decide (convexity)
    tip = splat[SHEAR] * math.sqrt(splat[REACH] / (-splat[SHRINK] * (splat[SHEAR] * splat[SHEAR] - splat[SHRINK])))
    start = _row_span(splat, min(max(-tip, first), last), 0, width)[0]
    stop = _row_span(splat, min(max(tip, first), last), 0, width)[1]
    return start, stop


@kernel
def _tile_count(splat: Float32[np.ndarray, " column"], width: int, height: int) -> int:
    """Tiles of the box around a splat: as many as it reaches, or more."""
    top, bottom = _row_range(splat, height)
    left, right = _column_range(splat, width)
    if top >= bottom or left >= right:
        return 0
    rows = (bottom - 1) // TILE_HEIGHT - top // TILE_HEIGHT + 1
    return rows * ((right - 1) // TILE_WIDTH - left // TILE_WIDTH + 1)


@kernel
def _tiles_of(
    splat: Float32[np.ndarray, " column"], width: int, height: int, tiles: Int32[np.ndarray, " entry"], first: int
) -> int:
    """Write the tiles that a splat reaches to ``tiles[first:]``; return how many they are."""
    top, bottom = _row_range(splat, height)
    left, right = _column_range(splat, width)
    if left >= right:
        return 0
    # most splats are narrow
    one_column = left // TILE_WIDTH == (right - 1) // TILE_WIDTH
    tiles_across = (width + TILE_WIDTH - 1) // TILE_WIDTH
    row, end = top, first
    while row < bottom:
        tile_row = row // TILE_HEIGHT
        stop_row = min(bottom, (tile_row + 1) * TILE_HEIGHT)
        start, stop = (left, right) if one_column else _strip_span(splat, row, stop_row, width)
        if start < stop:
            for column in range(start // TILE_WIDTH, (stop - 1) // TILE_WIDTH + 1):
                tiles[end] = tile_row * tiles_across + column
                end += 1
        row = stop_row
    return end - first


@parallel_kernel
def tile_lists(
    splats: Float32[np.ndarray, "splat column"], width: int, height: int
) -> tuple[
    Int64[np.ndarray, " tile_bound"],
    Int32[np.ndarray, " entry"],
    Int32[np.ndarray, " entry"],
    Int64[np.ndarray, " splat_bound"],
]:
    """(starts [tile + 1], ranks [entry], slots [entry], slot_starts [splat + 1]) of the tiles of an image.

    Tile t is reached by the splats ranks[starts[t]:starts[t + 1]], near to far. An entry's slot numbers the entries
    splat by splat: those of splat k are slot_starts[k]:slot_starts[k + 1]. A counting sort: tasks count their own piece
    of the depth order, then write it where the pieces before end.
    """
    n = splats.shape[0]
    n_tiles = ((width + TILE_WIDTH - 1) // TILE_WIDTH) * ((height + TILE_HEIGHT - 1) // TILE_HEIGHT)
    n_pieces = 16
    piece = (n + n_pieces - 1) // n_pieces
    # where each piece's entries begin, if boxes were full
    rooms = np.zeros(n_pieces + 1, np.int64)
    for p in prange(n_pieces):
        room = 0
        for rank in range(p * piece, min(n, (p + 1) * piece)):
            room += _tile_count(splats[rank], width, height)
        rooms[p + 1] = room
    rooms = np.cumsum(rooms)
    reached = np.empty(rooms[n_pieces], np.int32)
    counters = np.zeros((n_pieces, n_tiles), np.int64)
    slot_starts = np.zeros(n + 1, np.int64)
    for p in prange(n_pieces):
        at = rooms[p]
        for rank in range(p * piece, min(n, (p + 1) * piece)):
            count = _tiles_of(splats[rank], width, height, reached, at)
            for entry in range(at, at + count):
                counters[p, reached[entry]] += 1
            slot_starts[rank + 1] = count
            at += count
    for rank in range(n):
        slot_starts[rank + 1] += slot_starts[rank]
    starts = np.zeros(n_tiles + 1, np.int64)
    for tile in range(n_tiles):
        position = starts[tile]
        for p in range(n_pieces):
            count = counters[p, tile]
            counters[p, tile] = position
            position += count
        starts[tile + 1] = position
    ranks, slots = np.empty(starts[n_tiles], np.int32), np.empty(starts[n_tiles], np.int32)
    for p in prange(n_pieces):
        at = rooms[p]
        for rank in range(p * piece, min(n, (p + 1) * piece)):
            for slot in range(slot_starts[rank], slot_starts[rank + 1]):
                tile = reached[at]
                at += 1
                ranks[counters[p, tile]], slots[counters[p, tile]] = rank, slot
                counters[p, tile] += 1
    return starts, ranks, slots, slot_starts
