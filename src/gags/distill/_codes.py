"""Codes of all Gaussians, kept to be multiplied with vectors again and again: at the speed of reading them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor
from torch.nn import functional

from gags.distill._decoders import DECODE_ROWS
from gags.simd import LANES, load, load_integers, load_splat, multiply_add, parallel_kernel, splat, store

_TOGETHER = 5
"""Vectors that share a reading of the codes: a phrase and the four canonical negatives."""
_LARGEST = 127
_SAMPLE = 4096
"""Gaussians whose codes say how large each column gets."""
_LOWEST_SCALE = 0.05
"""A column's scale is this share of the largest at least: one that is 0 in the sample may not be elsewhere."""


@dataclass(frozen=True)
class PackedCodes:
    """A row of 8-bit integers and its scale for every Gaussian: a quarter of float32's memory.

    A coordinate is off by at most 1/254 of what is the largest of its row, each measured by its column's scale: relevancy was
    off by 0.008 at most and 0.0005 in the mean (benchmarks/README.md). A wild code costs the others nothing.
    """

    integers: Int8[Tensor, "block code lane"]
    """Of LANES Gaussians a block, the last filled up with zeros."""
    row_scales: Float[Tensor, " gaussian"]
    """An integer of 1 means its row's scale times its column's."""
    column_scales: Float[Tensor, " code"]
    """How large the codes of most Gaussians get."""

    @classmethod
    def of(
        cls,
        encode: Callable[[Float[Tensor, "row d"]], Float[Tensor, "row code"]],
        features: Float[Tensor, "gaussian d"],
    ) -> PackedCodes:
        """Codes of all features, some at a time: all of them in float32 are never in memory."""
        column_scales = _column_scales(encode(features[:: max(1, -(-len(features) // _SAMPLE))]).cpu())
        integers, row_scales = [], []
        # whole blocks but for the last
        assert DECODE_ROWS % LANES == 0
        for rows in features.split(DECODE_ROWS):
            relative = encode(rows).cpu() / column_scales
            # a row of zeros has any scale
            scales = relative.abs().amax(dim=1).clamp(min=1e-30) / _LARGEST
            filled = functional.pad((relative / scales[:, None]).round().to(torch.int8), (0, 0, 0, -len(rows) % LANES))
            integers.append(filled.unflatten(0, (-1, LANES)).transpose(1, 2).contiguous())
            row_scales.append(scales)
        return cls(torch.cat(integers), torch.cat(row_scales), column_scales)

    def times(self, matrix: Float[Tensor, "code vector"]) -> Float[Tensor, "gaussian vector"]:
        """The codes' products with the columns of a matrix."""
        vectors = matrix.cpu() * self.column_scales[:, None]
        scales = functional.pad(self.row_scales, (0, -len(self.row_scales) % LANES))
        groups = range(0, vectors.shape[1], _TOGETHER)
        products = torch.empty(len(groups), _TOGETHER, len(scales))
        for first, result in zip(groups, products, strict=True):
            group = vectors[:, first : first + _TOGETHER]
            filled = functional.pad(group, (0, _TOGETHER - group.shape[1])).flatten()
            flat = (self.integers.view(-1), scales, filled, result.view(-1))
            _multiply(*(tensor.numpy() for tensor in flat), len(vectors))
        return products.flatten(0, 1)[: matrix.shape[1], : len(self.row_scales)].T.to(matrix.device)


def _column_scales(sample: Float[Tensor, "row code"]) -> Float[Tensor, " code"]:
    """How large a column's codes get, but for the largest thousandth; columns that are small throughout count as larger."""
    if not len(sample):
        return torch.ones(sample.shape[1])
    scales = sample.abs().nanquantile(0.999, dim=0)
    # where all are 0 any scale will do
    return scales.clamp(min=max(_LOWEST_SCALE * float(scales.max()), 1e-30))


@parallel_kernel
def _multiply(
    integers: Int8[np.ndarray, " block_code_lane"],
    scales: Float32[np.ndarray, " gaussian"],
    vectors: Float32[np.ndarray, " code_vector"],
    products: Float32[np.ndarray, " vector_gaussian"],
    width: int,
) -> None:
    """products[v, g] = scales[g] x (integers[g] . vectors[v]) for _TOGETHER vectors of ``width`` numbers."""
    count = len(scales)
    for block in numba.prange(count // LANES):
        a = b = c = d = e = splat(np.float32(0))
        for code in range(width):
            integer, at = load_integers(integers, (block * width + code) * LANES), code * _TOGETHER
            a = multiply_add(integer, load_splat(vectors, at), a)
            b = multiply_add(integer, load_splat(vectors, at + 1), b)
            c = multiply_add(integer, load_splat(vectors, at + 2), c)
            d = multiply_add(integer, load_splat(vectors, at + 3), d)
            e = multiply_add(integer, load_splat(vectors, at + 4), e)
        first = block * LANES
        scale = load(scales, first)
        store(products, first, scale * a)
        store(products, first + count, scale * b)
        store(products, first + 2 * count, scale * c)
        store(products, first + 3 * count, scale * d)
        store(products, first + 4 * count, scale * e)
