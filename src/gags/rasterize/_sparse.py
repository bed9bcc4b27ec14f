"""Blend weights as a sparse matrix in numba: collected from a view, multiplied, transposed."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int32, Int64
from numba import prange

from gags.rasterize._blocks import (
    CHUNK_SPLATS,
    N_CENTERS,
    PLANE,
    aligned_zeros,
    attenuate,
    bell,
    blocks_above,
    falloff,
    find_blocks,
    open_tile,
    pixel_of,
    set_centers,
)
from gags.rasterize._tiles import TILE_HEIGHT, TILE_WIDTH
from gags.simd import (
    LANES,
    TAKERS,
    any_lane,
    kernel,
    load,
    lowest_bit,
    parallel_kernel,
    select,
    splat,
    store,
    take_next,
)

_ONE, _ZERO = np.float32(1.0), np.float32(0.0)
_NO_BLOCK, _ONE_BLOCK = np.uint64(0), np.uint64(1)
_ROWS = 256


@kernel
def _insert(
    ids: Int32[np.ndarray, " entry"],
    weights: Float32[np.ndarray, " entry"],
    first: int,
    position: int,
    stop: int,
    gaussian: int,
    weight: float,
) -> int:
    """Append to a pixel's list first:position, which may grow to ``stop``; return its new end.

    If the list is full the lightest entry is dropped; front-to-back order is kept.
    """
    if position < stop:
        ids[position], weights[position] = gaussian, weight
        return position + 1
    lightest = first
    for j in range(first + 1, stop):
        # of equal weights the one behind goes
        if weights[j] <= weights[lightest]:
            lightest = j
    if weight > weights[lightest]:
        for j in range(lightest, stop - 1):
            ids[j], weights[j] = ids[j + 1], weights[j + 1]
        ids[stop - 1], weights[stop - 1] = gaussian, weight
    return position


@kernel
def _walk_tile(
    transmittance: Float32[np.ndarray, " plane_float"],
    counted: Float32[np.ndarray, " plane_float"],
    ends: Int64[np.ndarray, " plane_pixel"],
    starts: Int64[np.ndarray, " row_bound"],
    ids: Int32[np.ndarray, " entry"],
    weights: Float32[np.ndarray, " entry"],
    order: Int32[np.ndarray, " splat"],
    splats: Float32[np.ndarray, "splat column"],
    ranks: Int32[np.ndarray, " tile_entry"],
    corner: tuple[int, int],
    width: int,
    floor: float,
) -> None:
    """Blend a tile's weights only. If ``ids`` is empty, count a pixel's entries; else write them, ``ends`` being where
    each pixel's list ends."""
    left, top = corner
    centers, reached = aligned_zeros(N_CENTERS), np.empty(CHUNK_SPLATS, np.uint64)
    set_centers(centers, left, top)
    block_weights, zero, one = np.empty(LANES, np.float32), splat(_ZERO), splat(_ONE)
    first = 0
    while first < ranks.shape[0]:
        is_open = blocks_above(transmittance, _ZERO)
        if is_open == _NO_BLOCK:
            break
        stop = find_blocks(reached, splats, splats, ranks, first, corner, is_open)
        for k in range(first, stop):
            gaussian, shape, blocks = order[ranks[k]], bell(splats, ranks[k]), reached[k - first]
            while blocks != _NO_BLOCK:
                block = lowest_bit(blocks)
                blocks &= blocks - _ONE_BLOCK
                weight = attenuate(transmittance, block, falloff(shape, centers, block)[2])
                kept, at = weight > floor, block * LANES
                if ids.size == 0:
                    store(counted, at, load(counted, at) + select(kept, one, zero))
                elif any_lane(kept):
                    store(block_weights, 0, select(kept, weight, zero))
                    for lane in range(LANES):
                        if block_weights[lane] > _ZERO:
                            column, row = pixel_of(block, lane)
                            pixel = (top + row) * width + left + column
                            ends[at + lane] = _insert(
                                ids, weights, starts[pixel], ends[at + lane], starts[pixel + 1],
                                gaussian, block_weights[lane],
                            )  # fmt: skip
        first = stop


@parallel_kernel
def walk(
    counts: Int32[np.ndarray, "height width"],
    starts: Int64[np.ndarray, " row_bound"],
    ids: Int32[np.ndarray, " entry"],
    weights: Float32[np.ndarray, " entry"],
    order: Int32[np.ndarray, " splat"],
    splats: Float32[np.ndarray, "splat column"],
    tile_starts: Int64[np.ndarray, " tile_bound"],
    ranks: Int32[np.ndarray, " tile_entry"],
    floor: float,
) -> None:
    """Count into ``counts`` (``ids`` empty) or write the entries heavier than ``floor`` of all pixels."""
    height, width = counts.shape
    tiles_across = (width + TILE_WIDTH - 1) // TILE_WIDTH
    n_tiles, counter = tile_starts.shape[0] - 1, np.zeros(1, np.int64)
    for _ in prange(TAKERS):
        tile = take_next(counter)
        transmittance, counted = aligned_zeros(PLANE), aligned_zeros(PLANE)
        ends = np.empty(PLANE, np.int64)
        while tile < n_tiles:
            left, top = (tile % tiles_across) * TILE_WIDTH, (tile // tiles_across) * TILE_HEIGHT
            open_tile(transmittance, width - left, height - top)
            counted[:] = _ZERO
            for at in range(PLANE if ids.size > 0 else 0):
                column, row = pixel_of(at // LANES, at % LANES)
                if left + column < width and top + row < height:
                    ends[at] = starts[(top + row) * width + left + column]
            _walk_tile(
                transmittance, counted, ends, starts, ids, weights, order, splats,
                ranks[tile_starts[tile] : tile_starts[tile + 1]], (left, top), width, floor,
            )  # fmt: skip
            for at in range(PLANE if ids.size == 0 else 0):
                column, row = pixel_of(at // LANES, at % LANES)
                if left + column < width and top + row < height:
                    counts[top + row, left + column] = counted[at]
            tile = take_next(counter)


@parallel_kernel
def multiply(
    starts: Int64[np.ndarray, " row_bound"],
    ids: Int32[np.ndarray, " entry"],
    weights: Float32[np.ndarray, " entry"],
    rows: Int64[np.ndarray, " sample"],
    values: Float32[np.ndarray, " row_lane"],
    n_lanes: int,
    out: Float32[np.ndarray, " row_lane"],
) -> None:
    """out[r] = sum of weight x values[id] over the entries of row rows[r] (all rows in order if ``rows`` is empty).

    values and out are flat, with a row every n_lanes x LANES floats.
    """
    stride = n_lanes * LANES
    n = rows.shape[0] if rows.size > 0 else starts.shape[0] - 1
    for chunk in prange((n + _ROWS - 1) // _ROWS):
        for r in range(chunk * _ROWS, min(n, (chunk + 1) * _ROWS)):
            row = rows[r] if rows.size > 0 else r
            for block in range(n_lanes):
                total = splat(_ZERO)
                for entry in range(starts[row], starts[row + 1]):
                    total = total + load(values, np.int64(ids[entry]) * stride + block * LANES) * weights[entry]
                store(out, r * stride + block * LANES, total)


@kernel
def scatter_rows(
    starts: Int64[np.ndarray, " row_bound"],
    ids: Int32[np.ndarray, " entry"],
    weights: Float32[np.ndarray, " entry"],
    rows: Int64[np.ndarray, " sample"],
    values: Float32[np.ndarray, " row_lane"],
    n_lanes: int,
    out: Float32[np.ndarray, " row_lane"],
) -> None:
    """out[id] += weight x values[r] over the entries of rows rows[r], in their order: one thread, so that the sum has
    one order."""
    stride = n_lanes * LANES
    for r in range(rows.shape[0]):
        for entry in range(starts[rows[r]], starts[rows[r] + 1]):
            at = np.int64(ids[entry]) * stride
            for block in range(n_lanes):
                place = at + block * LANES
                store(out, place, load(out, place) + load(values, r * stride + block * LANES) * weights[entry])


@parallel_kernel
def add_labelled(
    starts: Int64[np.ndarray, " gaussian_bound"],
    ids: Int32[np.ndarray, " entry"],
    weights: Float32[np.ndarray, " entry"],
    labels: Int32[np.ndarray, "level pixel"],
    table: Float32[np.ndarray, "label channel"],
    first: int,
    sums: Float32[np.ndarray, "gaussian level channel"],
) -> None:
    """sums[g, level] += sum of weight x table[labels[level, pixel]] over the entries (pixels) of row first + g.

    The weights of a label are added up before its row is read: a Gaussian shows many pixels and few labels.
    """
    n = sums.shape[0]
    for chunk in prange((n + _ROWS - 1) // _ROWS):
        weight_of = np.zeros(table.shape[0], np.float32)
        met = np.empty(table.shape[0], np.int32)
        for g in range(chunk * _ROWS, min(n, (chunk + 1) * _ROWS)):
            for level in range(labels.shape[0]):
                n_met = 0
                for entry in range(starts[first + g], starts[first + g + 1]):
                    label = labels[level, ids[entry]]
                    if label < 0:
                        continue
                    # no weight is 0: such entries are not kept
                    if weight_of[label] == _ZERO:
                        met[n_met] = label
                        n_met += 1
                    weight_of[label] += weights[entry]
                for k in range(n_met):
                    weight, row = weight_of[met[k]], table[met[k]]
                    for channel in range(row.shape[0]):
                        sums[g, level, channel] += weight * row[channel]
                    weight_of[met[k]] = _ZERO


@parallel_kernel
def row_sums(
    starts: Int64[np.ndarray, " row_bound"], weights: Float32[np.ndarray, " entry"]
) -> Float32[np.ndarray, " row"]:
    """Sum of the weights of every row."""
    n = starts.shape[0] - 1
    sums = np.empty(n, np.float32)
    for row in prange(n):
        total = _ZERO
        for entry in range(starts[row], starts[row + 1]):
            total += weights[entry]
        sums[row] = total
    return sums


@parallel_kernel
def transpose(
    starts: Int64[np.ndarray, " row_bound"],
    ids: Int32[np.ndarray, " entry"],
    weights: Float32[np.ndarray, " entry"],
    n_columns: int,
) -> tuple[Int64[np.ndarray, " column_bound"], Int32[np.ndarray, " entry"], Float32[np.ndarray, " entry"]]:
    """(starts, ids, weights) of the transposed matrix, each row's entries in ascending order: a counting sort."""
    n_rows = starts.shape[0] - 1
    n_pieces = 8
    piece = (n_rows + n_pieces - 1) // n_pieces
    positions = np.zeros((n_pieces, n_columns), np.int64)
    for p in prange(n_pieces):
        for entry in range(starts[min(n_rows, p * piece)], starts[min(n_rows, (p + 1) * piece)]):
            positions[p, ids[entry]] += 1
    transposed_starts = np.zeros(n_columns + 1, np.int64)
    for column in range(n_columns):
        position = transposed_starts[column]
        for p in range(n_pieces):
            count = positions[p, column]
            positions[p, column] = position
            position += count
        transposed_starts[column + 1] = position
    transposed_ids, transposed_weights = np.empty(ids.shape[0], np.int32), np.empty(ids.shape[0], np.float32)
    for p in prange(n_pieces):
        for row in range(min(n_rows, p * piece), min(n_rows, (p + 1) * piece)):
            for entry in range(starts[row], starts[row + 1]):
                position = positions[p, ids[entry]]
                transposed_ids[position], transposed_weights[position] = row, weights[entry]
                positions[p, ids[entry]] += 1
    return transposed_starts, transposed_ids, transposed_weights
