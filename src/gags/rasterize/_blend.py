"""``BlendWeights``: one view of frozen Gaussians as a sparse matrix.

With fixed geometry a rendered value is linear in the Gaussians' values: image = B values, B[pixel, gaussian] = alpha x
transmittance. B is computed once per view; rendering, gradients and averages are then products with B and its
transpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int32, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.geometry import Camera
from gags.rasterize import _sparse, _tiles
from gags.rasterize._cpu import Project
from gags.simd import LANES


@dataclass(frozen=True)
class SparseRows:
    """A sparse matrix in rows (CSR): entries starts[r]:starts[r + 1] belong to row r."""

    starts: Int64[Tensor, " row_bound"]
    """Number of rows + 1 bounds."""
    ids: Int32[Tensor, " entry"]
    """Column of every entry."""
    weights: Float[Tensor, " entry"]
    """Value of every entry."""

    def times(
        self, values: Float[Tensor, "column channel"], rows: Int64[Tensor, " sample"] | None = None
    ) -> Float[Tensor, "row channel"]:
        """The product with a dense matrix, of all rows or of the given ones."""
        padded, n_lanes = _padded(values)
        n_rows = self.starts.shape[0] - 1 if rows is None else rows.shape[0]
        out = torch.empty(n_rows, n_lanes * LANES)
        if n_rows > 0:
            chosen = np.empty(0, np.int64) if rows is None else rows.contiguous().numpy()
            matrix = (self.starts.numpy(), self.ids.numpy(), self.weights.numpy())
            _sparse.multiply(*matrix, chosen, padded, n_lanes, out.view(-1).numpy())
        return out[:, : values.shape[1]].contiguous()


@dataclass(frozen=True)
class BlendWeights:
    """One view's pixels-by-Gaussians matrix of blend weights. Pixel (row v, column u) is row v * width + u of the
    matrix."""

    rows: SparseRows
    """The matrix; a pixel's Gaussians are ordered front to back."""
    width: int
    """Picture width in pixels."""
    height: int
    """Picture height in pixels."""
    n_gaussians: int
    """Number of columns of the matrix."""

    @cached_property
    def columns(self) -> SparseRows:
        """The transposed matrix, made when first asked for: a Gaussian's pixels in ascending order."""
        arrays = (self.rows.starts.numpy(), self.rows.ids.numpy(), self.rows.weights.numpy())
        return SparseRows(*(torch.from_numpy(x) for x in _sparse.transpose(*arrays, self.n_gaussians)))

    @property
    def alpha(self) -> Float[Tensor, "height width"]:
        """Sum of a pixel's weights, 0..1."""
        sums = _sparse.row_sums(self.rows.starts.numpy(), self.rows.weights.numpy())
        return torch.from_numpy(sums).view(self.height, self.width)

    def render(self, values: Float[Tensor, "gaussian channel"]) -> Float[Tensor, "height width channel"]:
        """B values: the picture of the Gaussians' values on background 0. Differentiable with respect to ``values``."""
        self._check(values, self.n_gaussians, "values", "Gaussian")
        return _Render.apply(values, self).view(self.height, self.width, -1)

    def render_pixels(
        self, values: Float[Tensor, "gaussian channel"], pixel_ids: Int[Tensor, " sample"]
    ) -> Float[Tensor, "sample channel"]:
        """Some rows of ``render`` (pixel id = v * width + u, repeats allowed) at their cost alone. Differentiable with
        respect to ``values``."""
        self._check(values, self.n_gaussians, "values", "Gaussian")
        n_pixels = self.width * self.height
        if pixel_ids.numel() > 0 and not 0 <= int(pixel_ids.min()) <= int(pixel_ids.max()) < n_pixels:
            found = f"{int(pixel_ids.min())}..{int(pixel_ids.max())}"
            raise GagsError(f"render_pixels: expected pixel ids in 0..{n_pixels - 1}, found {found}")
        return _RenderPixels.apply(values, self, pixel_ids.to(torch.int64))

    def scatter(
        self, pixel_values: Float[Tensor, "pixel channel"], mask: Bool[Tensor, " pixel"] | None = None
    ) -> Float[Tensor, "gaussian channel"]:
        """B^T pixel_values: every Gaussian's weighted sum over the pixels that show it (over those in ``mask``, if
        given).

        Divided by ``scatter`` of ones it is the Gaussian's mean value: the training-free lift. No gradients.
        """
        self._check(pixel_values, self.width * self.height, "pixel_values", "pixel")
        kept = pixel_values.detach() if mask is None else torch.where(mask[:, None], pixel_values.detach(), 0.0)
        return self.columns.times(kept)

    def scatter_labels(
        self,
        labels: Int32[Tensor, "level pixel"],
        table: Float[Tensor, "label channel"],
        sums: Float[Tensor, "some_gaussian level channel"],
        first: int = 0,
    ) -> None:
        """Add to ``sums``, for the Gaussians from ``first`` on and each level, what ``scatter`` of ``table[labels]`` gives,
        without making that; a label of -1 counts for nothing. No gradients."""
        if int(labels.max()) >= len(table) or first + len(sums) > self.n_gaussians or not sums.is_contiguous():
            raise GagsError(
                f"blend weights: expected labels below {len(table)} and contiguous sums of at most {self.n_gaussians - first} "
                f"Gaussians, found labels up to {int(labels.max())} and sums {tuple(sums.shape)}"
            )
        matrix = (self.columns.starts.numpy(), self.columns.ids.numpy(), self.columns.weights.numpy())
        arrays = (labels.contiguous().numpy(), table.contiguous().numpy())
        _sparse.add_labelled(*matrix, *arrays, first, sums.numpy())

    def _check(self, values: Float[Tensor, "row channel"], n: int, name: str, row: str) -> None:
        if values.dim() != 2 or values.shape[0] != n or values.dtype != torch.float32 or values.is_cuda:
            raise GagsError(
                f"blend weights: expected {name} [{n}, channel], a row a {row}, float32 on the CPU, "
                f"found {tuple(values.shape)}, {values.dtype} on {values.device}"
            )


def blend_weights(
    gaussians: Gaussians, camera: Camera, *, top_k: int | None = None, min_weight: float = 0.0
) -> BlendWeights:
    """The blend weights of one view, from the same arithmetic as ``rasterization``: B colours is its picture.

    Args:
        gaussians: the scene, on the CPU.
        camera: where from, and how large.
        top_k: keep a pixel's ``top_k`` largest weights. What is dropped is missing from products (nothing is
            renormalised): a product is off by at most the dropped weight, 1 - T - alpha, times the largest value; with
            16 of typically 30 that is a few per cent of alpha.
        min_weight: drop weights below this; a product is off by at most min_weight times the number dropped (their sum
            at most 1).
    """
    if (top_k is not None and top_k < 1) or not 0.0 <= min_weight < 1.0:
        raise GagsError(f"blend weights: expected top_k >= 1 and min_weight in [0, 1), found {top_k} and {min_weight}")
    if gaussians.means.is_cuda:
        raise GagsError(
            f"blend weights: expected Gaussians on the CPU, found {gaussians.means.device}; move them there"
        )
    size = (camera.width, camera.height)
    with torch.no_grad():
        opacities = gaussians.opacities.contiguous()
        means2d, depths, conics, _, radii = Project.apply(
            gaussians.means, gaussians.quats, gaussians.scales, opacities,
            camera.T_camera_world[None], camera.K[None], size, (0.01, 1e10, 0.3, 0.0, False),
        )  # fmt: skip
    order = _tiles.depth_order(depths[0].numpy(), radii[0].numpy())
    splats = _tiles.pack_splats(order, means2d[0].numpy(), conics[0].numpy(), opacities.numpy())
    tile_starts, ranks, _, _ = _tiles.tile_lists(splats, *size)
    # weight > the float before min_weight is weight >= min_weight
    floor = np.nextafter(np.float32(min_weight), np.float32(0.0))
    counts, nothing = np.empty((camera.height, camera.width), np.int32), np.empty(0, np.int32)
    starts = np.zeros(counts.size + 1, np.int64)
    lists = (order, splats, tile_starts, ranks, floor)
    _sparse.walk(counts, starts, nothing, nothing.view(np.float32), *lists)
    np.cumsum(counts if top_k is None else np.minimum(counts, top_k), out=starts[1:])
    ids, weights = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
    if starts[-1] > 0:
        _sparse.walk(counts, starts, ids, weights, *lists)
    rows = SparseRows(torch.from_numpy(starts), torch.from_numpy(ids), torch.from_numpy(weights))
    return BlendWeights(rows=rows, width=camera.width, height=camera.height, n_gaussians=len(gaussians))


def _padded(values: Float[Tensor, "row channel"]) -> tuple[np.ndarray, int]:
    """(the values as one flat array with rows of a multiple of LANES floats, that multiple)."""
    n_lanes = max(1, (values.shape[1] + LANES - 1) // LANES)
    if values.shape[1] != n_lanes * LANES:
        values = torch.nn.functional.pad(values.detach(), (0, n_lanes * LANES - values.shape[1]))
    return values.detach().contiguous().view(-1).numpy(), n_lanes


class _Render(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Float[Tensor, "gaussian channel"], blend: BlendWeights
    ) -> Float[Tensor, "pixel channel"]:
        ctx.blend = blend
        return blend.rows.times(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "pixel channel"]) -> tuple[Float[Tensor, "gaussian channel"], None]:
        return ctx.blend.columns.times(gradient), None


class _RenderPixels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Float[Tensor, "gaussian channel"], blend: BlendWeights, pixel_ids: Int64[Tensor, " sample"]
    ) -> Float[Tensor, "sample channel"]:
        ctx.blend = blend
        ctx.save_for_backward(pixel_ids)
        return blend.rows.times(values, pixel_ids)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Float[Tensor, "sample channel"]
    ) -> tuple[Float[Tensor, "gaussian channel"], None, None]:
        (pixel_ids,) = ctx.saved_tensors
        padded, n_lanes = _padded(gradient)
        out = torch.zeros(ctx.blend.n_gaussians, n_lanes * LANES)
        rows = ctx.blend.rows
        _sparse.scatter_rows(
            rows.starts.numpy(),
            rows.ids.numpy(),
            rows.weights.numpy(),
            pixel_ids.contiguous().numpy(),
            padded,
            n_lanes,
            out.view(-1).numpy(),
        )
        return out[:, : gradient.shape[1]].contiguous(), None, None
