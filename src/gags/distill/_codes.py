"""Codes of all Gaussians, kept to be multiplied with vectors again and again: at the speed of reading them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numba
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int16
from torch import Tensor
from torch.nn import functional

_TOGETHER = 5
"""Vectors that share a reading of the codes: a phrase and the four canonical negatives."""
_LARGEST = 32767


@dataclass(frozen=True)
class PackedCodes:
    """A row of 16-bit integers and its scale for every Gaussian: half of float32's memory.

    A coordinate is off by at most 1/65534 of its row's largest: products with unit vectors were off by 2e-5 at most.
    """

    integers: Int16[Tensor, "gaussian used_code"]
    """Without the columns that are 0 for all: a third of a learned decoder's."""
    scales: Float[Tensor, " gaussian"]
    """What an integer of 1 means."""
    used: Bool[Tensor, " code"]
    """Which columns are kept."""

    @classmethod
    def of(cls, chunks: Iterable[Float[Tensor, "row code"]]) -> PackedCodes:
        """Pack codes that come in pieces, so that all of them in float32 are never in memory."""
        integers, scales = [], []
        for chunk in chunks:
            # a row of zeros has any scale
            scale = chunk.abs().amax(dim=1).clamp(min=1e-30) / _LARGEST
            integers.append((chunk / scale[:, None]).round().to(torch.int16).cpu())
            scales.append(scale.cpu())
        packed = torch.cat(integers)
        used = packed.any(dim=0)
        return cls(packed[:, used], torch.cat(scales), used)

    def times(self, matrix: Float[Tensor, "code vector"]) -> Float[Tensor, "gaussian vector"]:
        """The codes' products with the columns of a matrix."""
        vectors = matrix.cpu()[self.used].T
        padded = functional.pad(vectors, (0, 0, 0, -len(vectors) % _TOGETHER)).contiguous()
        products = torch.empty(len(padded), len(self.scales))
        _multiply(self.integers.numpy(), self.scales.numpy(), padded.numpy(), products.numpy())
        return products[: len(vectors)].T.to(matrix.device)


# reassoc: sums in the order that suits vectors; that order is compiled in
@numba.njit(parallel=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _multiply(
    integers: Int16[np.ndarray, "gaussian code"],
    scales: Float32[np.ndarray, " gaussian"],
    vectors: Float32[np.ndarray, "vector code"],
    products: Float32[np.ndarray, "vector gaussian"],
) -> None:
    """products[v, g] = scales[g] x (integers[g] . vectors[v]), for a multiple of _TOGETHER vectors."""
    for first in range(0, len(vectors), _TOGETHER):
        a, b, c, d, e = vectors[first], vectors[first + 1], vectors[first + 2], vectors[first + 3], vectors[first + 4]
        for gaussian in numba.prange(len(integers)):
            row = integers[gaussian]
            in_a = in_b = in_c = in_d = in_e = np.float32(0.0)
            for j in range(len(row)):
                value = np.float32(row[j])
                in_a += value * a[j]
                in_b += value * b[j]
                in_c += value * c[j]
                in_d += value * d[j]
                in_e += value * e[j]
            scale = scales[gaussian]
            products[first, gaussian], products[first + 1, gaussian] = scale * in_a, scale * in_b
            products[first + 2, gaussian], products[first + 3, gaussian] = scale * in_c, scale * in_d
            products[first + 4, gaussian] = scale * in_e
