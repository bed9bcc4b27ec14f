"""``rasterization``: gsplat's function on any device."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gags.errors import GagsError
from gags.rasterize import _cpu, _gsplat
from gags.rasterize._spherical import MAX_DEGREE

RenderMode = Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"]
RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
RASTERIZE_MODES = ("classic", "antialiased")
_CUDA_DEFAULTS: dict[str, Any] = {
    "sparse_grad": False,
    "channel_chunk": 32,
    "distributed": False,
    "camera_model": "pinhole",
    "segmented": False,
    "covars": None,
    "with_ut": False,
    "with_eval3d": False,
    "radial_coeffs": None,
    "tangential_coeffs": None,
    "thin_prism_coeffs": None,
}
"""gsplat's own values of what only CUDA has: naming them changes nothing."""


def rasterization(
    means: Float[Tensor, "gaussian 3"],
    quats: Float[Tensor, "gaussian 4"],
    scales: Float[Tensor, "gaussian 3"],
    opacities: Float[Tensor, " gaussian"],
    colors: Float[Tensor, "*camera_gaussian_band channel"],
    viewmats: Float[Tensor, "camera 4 4"],
    Ks: Float[Tensor, "camera 3 3"],
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = False,
    tile_size: int = 16,
    backgrounds: Float[Tensor, "camera channel"] | None = None,
    render_mode: RenderMode = "RGB",
    absgrad: bool = False,
    rasterize_mode: Literal["classic", "antialiased"] = "classic",
    **gsplat_options: Any,
) -> tuple[Float[Tensor, "camera height width out"], Float[Tensor, "camera height width 1"], dict[str, Any]]:
    """Render N Gaussians into C cameras, differentiably: ``gsplat.rasterization`` (1.5.3) on any device.

    On CUDA tensors this is gsplat itself; on CPU tensors it is numba kernels with the same constants, so the same
    picture up to rounding. Gradients reach means, quats, scales, opacities, colors, backgrounds and viewmats (not Ks).

    Args:
        means: centres in the world, scene units.
        quats: rotations, wxyz, of any length.
        scales: standard deviations along the local axes, scene units (activated).
        opacities: 0..1 (activated).
        colors: [N, X] or [C, N, X], any number of channels; with ``sh_degree`` SH coefficients [N, K, 3] or [C, N, K,
            3], whose colour is max(0, sum + 0.5).
        viewmats: world to camera, OpenCV axes.
        Ks: pinhole intrinsics in pixels, pixel centres at +0.5.
        width, height: size of the pictures in pixels.
        near_plane, far_plane: Gaussians whose centre has a depth outside are not drawn.
        radius_clip: Gaussians of at most this radius (px) are not drawn.
        eps2d: added to the diagonal of the projected covariance, px^2.
        sh_degree: degree to use, 0 to 3; None: ``colors`` are colours.
        packed: only False on the CPU (info has one row a camera and Gaussian).
        tile_size: gsplat's tiles; the CPU kernels choose their own, pictures do not depend on it.
        backgrounds: colour behind everything, [C, X]; the depth of D and RGB+D has background 0.
        render_mode: "RGB"; "D": sum of weight x depth; "ED": D / alpha, 0 where nothing is; "RGB+D", "RGB+ED": depth as
            the last channel.
        absgrad: also sum the absolute gradients of the 2D means, to ``info["means2d"].absgrad`` (AbsGS, Ye et al.
            2024).
        rasterize_mode: "antialiased" scales opacities by sqrt(det / det with eps2d) (Mip-Splatting, Yu et al. 2024).
        gsplat_options: gsplat's further arguments; on the CPU they may be named at their defaults.

    Returns:
        (pictures, alphas, info). ``info``: means2d [C, N, 2] px (call ``retain_grad`` on it), radii [C, N, 2] int32 px
        (0: not seen), depths [C, N], conics [C, N, 3], opacities [C, N], gaussian_ids and camera_ids (None), width,
        height, n_cameras, n_batches, tile_size.

    Raises:
        GagsError: shapes, modes or options that do not fit.
    """
    _check_inputs(
        means, quats, scales, opacities, colors, viewmats, Ks, backgrounds, sh_degree, render_mode, rasterize_mode
    )
    if means.is_cuda:
        return _gsplat.rasterization(
            means, quats, scales, opacities, colors, viewmats, Ks, width, height,
            near_plane=near_plane, far_plane=far_plane, radius_clip=radius_clip, eps2d=eps2d, sh_degree=sh_degree,
            packed=packed, tile_size=tile_size, backgrounds=backgrounds, render_mode=render_mode, absgrad=absgrad,
            rasterize_mode=rasterize_mode, **gsplat_options,
        )  # fmt: skip
    wanted = [
        name for name, value in gsplat_options.items() if name not in _CUDA_DEFAULTS or value != _CUDA_DEFAULTS[name]
    ]
    if packed or wanted:
        named = ", ".join((["packed"] if packed else []) + sorted(wanted))
        raise GagsError(
            f"rasterization on CPU tensors: expected none of gsplat's CUDA options, found {named}; leave them out, or check "
            "their spelling"
        )
    limits = (near_plane, far_plane, eps2d, radius_clip, rasterize_mode == "antialiased")
    info = _projected(means, quats, scales, opacities, viewmats, Ks, (width, height), limits, tile_size)
    return *_blended(means, colors, viewmats, info, backgrounds, sh_degree, render_mode, absgrad), info


def _projected(
    means: Float[Tensor, "gaussian 3"],
    quats: Float[Tensor, "gaussian 4"],
    scales: Float[Tensor, "gaussian 3"],
    opacities: Float[Tensor, " gaussian"],
    viewmats: Float[Tensor, "camera 4 4"],
    Ks: Float[Tensor, "camera 3 3"],
    size: tuple[int, int],
    limits: tuple[float, float, float, float, bool],
    tile_size: int,
) -> dict[str, Any]:
    """The Gaussians as each camera sees them: the ``info`` of ``rasterization``.

    ``limits`` are near plane, far plane, eps2d, radius clip, and whether opacities make up for eps2d.
    """
    means2d, depths, conics, compensations, radii = _cpu.Project.apply(
        means, quats, scales, opacities, viewmats, Ks, size, limits
    )
    (width, height), n_cameras = size, viewmats.shape[0]
    visible_opacities = opacities.expand(n_cameras, -1)
    if limits[-1]:
        visible_opacities = visible_opacities * compensations
    return {
        "batch_ids": None, "camera_ids": None, "gaussian_ids": None,
        "means2d": means2d, "radii": radii, "depths": depths, "conics": conics, "opacities": visible_opacities,
        "width": width, "height": height, "tile_size": tile_size,
        "tile_width": math.ceil(width / tile_size), "tile_height": math.ceil(height / tile_size),
        "n_batches": 1, "n_cameras": n_cameras,
    }  # fmt: skip


def _blended(
    means: Float[Tensor, "gaussian 3"],
    colors: Float[Tensor, "*camera_gaussian_band channel"],
    viewmats: Float[Tensor, "camera 4 4"],
    info: dict[str, Any],
    backgrounds: Float[Tensor, "camera channel"] | None,
    sh_degree: int | None,
    render_mode: str,
    absgrad: bool,
) -> tuple[Float[Tensor, "camera height width out"], Float[Tensor, "camera height width 1"]]:
    """(pictures, alphas) of projected Gaussians, camera by camera."""
    means2d, depths, conics, radii, opacities = (
        info[name] for name in ("means2d", "depths", "conics", "radii", "opacities")
    )
    if absgrad:
        means2d.absgrad = torch.zeros_like(means2d)
    pictures, transmittances = [], []
    for camera in range(viewmats.shape[0]):
        channels = _channels(
            colors, means, viewmats[camera], radii[camera], depths[camera], camera, sh_degree, render_mode
        )
        picture, transmittance = _cpu.Blend.apply(
            means2d[camera], conics[camera], channels, opacities[camera], depths[camera].detach(),
            radii[camera], (info["width"], info["height"]), means2d.absgrad[camera] if absgrad else None,
        )  # fmt: skip
        pictures.append(picture)
        transmittances.append(transmittance)
    transmittance = torch.stack(transmittances)[..., None]
    alphas = 1.0 - transmittance
    # a stack of one would be a copy of the largest tensor here
    stacked = pictures[0][None] if len(pictures) == 1 else torch.stack(pictures)
    return _finish(stacked, transmittance, alphas, backgrounds, render_mode), alphas


def _channels(
    colors: Float[Tensor, "*camera_gaussian_band channel"],
    means: Float[Tensor, "gaussian 3"],
    viewmat: Float[Tensor, "4 4"],
    radii: Int[Tensor, "gaussian 2"],
    depths: Float[Tensor, " gaussian"],
    camera: int,
    sh_degree: int | None,
    mode: str,
) -> Float[Tensor, "gaussian channel"]:
    """What one camera blends: colours, depth or both."""
    if mode in ("D", "ED"):
        return depths[:, None]
    if sh_degree is None:
        shaded = colors if colors.dim() == 2 else colors[camera]
    else:
        # the centre keeps its gradient to the pose: x_world = -R^T t
        center = -viewmat[:3, :3].T @ viewmat[:3, 3]
        shaded = _cpu.Shade.apply(means, colors if colors.dim() == 3 else colors[camera], center, radii, sh_degree)
    return shaded if mode == "RGB" else torch.cat([shaded, depths[:, None]], dim=1)


def _finish(
    pictures: Float[Tensor, "camera height width channel"],
    transmittances: Float[Tensor, "camera height width 1"],
    alphas: Float[Tensor, "camera height width 1"],
    backgrounds: Float[Tensor, "camera color"] | None,
    mode: str,
) -> Float[Tensor, "camera height width out"]:
    """Put the background behind the colours and divide expected depth by alpha."""
    has_depth = mode != "RGB"
    colors, depth = (pictures[..., :-1], pictures[..., -1:]) if has_depth else (pictures, None)
    if backgrounds is not None and colors.shape[-1] > 0:
        colors = colors + transmittances * backgrounds[:, None, None, :]
    if depth is None:
        return colors
    if mode in ("ED", "RGB+ED"):
        # gsplat's floor: depth stays 0 where nothing was drawn
        depth = depth / alphas.clamp(min=1e-10)
    return torch.cat([colors, depth], dim=-1) if colors.shape[-1] > 0 else depth


def _check_inputs(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    backgrounds: Tensor | None,
    sh_degree: int | None,
    render_mode: str,
    rasterize_mode: str,
) -> None:
    """Raise a GagsError that names the first argument that does not fit."""
    n, n_cameras = means.shape[0], viewmats.shape[0]
    expected = {
        "means": (means, (n, 3)),
        "quats": (quats, (n, 4)),
        "scales": (scales, (n, 3)),
        "opacities": (opacities, (n,)),
        "viewmats": (viewmats, (n_cameras, 4, 4)),
        "Ks": (Ks, (n_cameras, 3, 3)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise GagsError(f"rasterization: expected {name} of shape {shape}, found {tuple(tensor.shape)}")
    leading = (n,) if colors.dim() == (2 if sh_degree is None else 3) else (n_cameras, n)
    fits = colors.shape[: len(leading)] == leading and colors.dim() == len(leading) + (1 if sh_degree is None else 2)
    if sh_degree is not None:
        if not 0 <= sh_degree <= MAX_DEGREE:
            raise GagsError(f"rasterization: expected sh_degree 0 to {MAX_DEGREE}, found {sh_degree}")
        fits = fits and colors.shape[-1] == 3 and colors.shape[-2] >= (sh_degree + 1) ** 2
    if not fits:
        wanted = (
            "[N, X] or [C, N, X]" if sh_degree is None else f"[N, K, 3] or [C, N, K, 3], K >= {(sh_degree + 1) ** 2},"
        )
        wanted += f" with N = {n}, C = {n_cameras}"
        raise GagsError(f"rasterization: expected colors of shape {wanted}, found {tuple(colors.shape)}")
    if render_mode not in RENDER_MODES:
        raise GagsError(f"rasterization: expected render_mode among {', '.join(RENDER_MODES)}, found {render_mode!r}")
    if rasterize_mode not in RASTERIZE_MODES:
        raise GagsError(
            f"rasterization: expected rasterize_mode among {', '.join(RASTERIZE_MODES)}, found {rasterize_mode!r}"
        )
    tensors = {name: pair[0] for name, pair in expected.items()} | {"colors": colors}
    if backgrounds is not None:
        shape, found = (n_cameras, colors.shape[-1]), tuple(backgrounds.shape)
        if render_mode not in ("D", "ED") and found != shape:
            raise GagsError(f"rasterization: expected backgrounds of shape {shape}, found {found}")
        tensors["backgrounds"] = backgrounds
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.device != means.device:
            raise GagsError(
                f"rasterization: expected {name} as float32 on {means.device}, found {tensor.dtype} on {tensor.device}"
            )
