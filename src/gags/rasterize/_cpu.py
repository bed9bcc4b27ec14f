"""The CPU backend: numba kernels joined to torch's autograd.

Three differentiable steps, each with hand-written gradients: ``project`` (means, quats, scales, viewmats -> 2D),
``shade`` (spherical harmonics -> colours) and ``blend`` (2D splats -> image). They are separate so that the 2D means
are a tensor of the graph, whose gradient densification reads. All sums have a fixed order: the same input gives the
same bytes on any number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from gags.rasterize import _projection, _spherical, _splatting, _splatting_gradients, _tiles
from gags.rasterize._projection import CHUNK


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _n_chunks(n: int) -> int:
    return (n + CHUNK - 1) // CHUNK


class Project(torch.autograd.Function):
    """EWA projection: see ``_projection``."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Float[Tensor, "gaussian 3"],
        quats: Float[Tensor, "gaussian 4"],
        scales: Float[Tensor, "gaussian 3"],
        opacities: Float[Tensor, " gaussian"],
        viewmats: Float[Tensor, "camera 4 4"],
        Ks: Float[Tensor, "camera 3 3"],
        size: tuple[int, int],
        limits: tuple[float, float, float, float, bool],
    ) -> tuple[Tensor, ...]:
        """(means2d [C, N, 2], depths [C, N], conics [C, N, 3], compensations [C, N], radii int32 [C, N, 2]); zeros
        where not seen."""
        shape = (viewmats.shape[0], means.shape[0])
        means2d, depths = torch.zeros(*shape, 2), torch.zeros(shape)
        conics, compensations = torch.zeros(*shape, 3), torch.zeros(shape)
        radii = torch.zeros(*shape, 2, dtype=torch.int32)
        inputs = [_array(x) for x in (means, quats, scales, opacities)]
        for camera in range(shape[0]):
            outputs = [x[camera].numpy() for x in (radii, means2d, depths, conics, compensations)]
            _projection.project(*inputs, _array(viewmats[camera]), _array(Ks[camera]), limits, size, *outputs)
        ctx.save_for_backward(means, quats, scales, viewmats, Ks, radii)
        ctx.size, ctx.eps2d = size, limits[2]
        ctx.mark_non_differentiable(radii)
        return means2d, depths, conics, compensations, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of means, quats, scales and viewmats; opacities only decide what is seen."""
        means, quats, scales, viewmats, Ks, radii = ctx.saved_tensors
        v_means2d, v_depths, v_conics, v_compensations = gradients[:4]
        outputs = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (means, quats, scales)]
        v_viewmats = torch.zeros_like(viewmats)
        partial = np.empty((_n_chunks(means.shape[0]), 3, 4), np.float64)
        for camera in range(viewmats.shape[0]):
            _projection.project_backward(
                *(_array(x) for x in (means, quats, scales, viewmats[camera], Ks[camera])),
                ctx.eps2d,
                ctx.size,
                *(_array(x[camera]) for x in (radii, v_means2d, v_depths, v_conics, v_compensations)),
                *(x.numpy() for x in outputs),
                partial,
            )
            v_viewmats[camera, :3] = torch.from_numpy(partial.sum(axis=0)).float()
        return (*outputs, None, v_viewmats, None, None, None)


class Shade(torch.autograd.Function):
    """Spherical-harmonic colours: see ``_spherical``."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Float[Tensor, "gaussian 3"],
        sh: Float[Tensor, "gaussian band 3"],
        center: Float[Tensor, " 3"],
        radii: Int[Tensor, "gaussian 2"],
        degree: int,
    ) -> Float[Tensor, "gaussian 3"]:
        """Colours of the seen Gaussians from one camera, 0 for the others."""
        colors = torch.zeros(means.shape[0], 3)
        _spherical.shade(_array(means), _array(sh), _array(radii), _array(center), degree, colors.numpy())
        ctx.save_for_backward(means, sh, center, radii, colors)
        ctx.degree = degree
        return colors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_colors: Float[Tensor, "gaussian 3"]) -> tuple[Tensor | None, ...]:
        """Gradients of means, coefficients and camera centre."""
        means, sh, center, radii, colors = ctx.saved_tensors
        v_means, v_sh = torch.zeros(means.shape), torch.empty(sh.shape)
        partial = np.empty((_n_chunks(means.shape[0]), 3), np.float64)
        arrays = [_array(x) for x in (means, sh, radii, center)]
        _spherical.shade_backward(
            *arrays, ctx.degree, _array(colors), _array(v_colors), v_means.numpy(), v_sh.numpy(), partial
        )
        return v_means, v_sh, torch.from_numpy(partial.sum(axis=0)).to(center), None, None


class Blend(torch.autograd.Function):
    """Sorting and alpha blending of one camera's splats: see ``_tiles`` and ``_splatting``."""

    @staticmethod
    def forward(
        ctx: Any,
        means2d: Float[Tensor, "gaussian 2"],
        conics: Float[Tensor, "gaussian 3"],
        colors: Float[Tensor, "gaussian channel"],
        opacities: Float[Tensor, " gaussian"],
        depths: Float[Tensor, " gaussian"],
        radii: Int[Tensor, "gaussian 2"],
        size: tuple[int, int],
        absgrad_of: Float[Tensor, "gaussian 2"] | None,
    ) -> tuple[Float[Tensor, "height width channel"], Float[Tensor, "height width"]]:
        """(image without background, transmittance). ``absgrad_of``: the tensor whose ``.absgrad`` backward adds to, at
        a row of [gaussian, 2]."""
        order = _tiles.depth_order(_array(depths), _array(radii))
        splats = _tiles.pack_splats(order, _array(means2d), _array(conics), _array(opacities))
        starts, ranks, slots, slot_starts = _tiles.tile_lists(splats, *size)
        n_channels = colors.shape[1]
        packed_colors = _tiles.take_rows(_array(colors), order, _splatting.padded(n_channels))
        needs_last = any(ctx.needs_input_grad)
        image, transmittance, last_drawn = _splatting.blend(
            splats, packed_colors, n_channels, starts, ranks, size, needs_last
        )
        ctx.save_for_backward(means2d, conics, colors, opacities)
        ctx.lists = (order, splats, packed_colors, starts, ranks, slots, slot_starts, transmittance, last_drawn)
        ctx.absgrad_of = absgrad_of
        return torch.from_numpy(image), torch.from_numpy(transmittance)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, v_image: Float[Tensor, "height width channel"], v_transmittance: Float[Tensor, "height width"]
    ) -> tuple[Tensor | None, ...]:
        """Gradients of means2d, conics, colours and opacities."""
        means2d, conics, colors, opacities = ctx.saved_tensors
        order, splats, packed_colors, starts, ranks, slots, slot_starts, transmittance, last_drawn = ctx.lists
        absgrad = ctx.absgrad_of is not None
        records = _splatting_gradients.blend_backward(
            splats,
            packed_colors,
            starts,
            ranks,
            slots,
            transmittance,
            last_drawn,
            _array(v_image),
            _array(v_transmittance),
            absgrad,
        )
        outputs = [torch.zeros(x.shape) for x in (means2d, conics, opacities, colors)]
        v_absolute = torch.zeros(means2d.shape if absgrad else (0, 2))
        _splatting_gradients.gather_gradients(
            order,
            slot_starts,
            records,
            _array(conics),
            _array(opacities),
            *(x.numpy() for x in outputs),
            v_absolute.numpy(),
        )
        if absgrad:
            ctx.absgrad_of.copy_(v_absolute)
        v_means2d, v_conics, v_opacities, v_colors = outputs
        return v_means2d, v_conics, v_colors, v_opacities, None, None, None, None
