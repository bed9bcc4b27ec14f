"""One picture of Gaussians from one camera, without gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gags.gaussians import Gaussians
from gags.geometry import Camera
from gags.rasterize._api import rasterization


@dataclass(frozen=True)
class Rendering:
    """What one camera sees."""

    colors: Float[Tensor, "height width channel"]
    """RGB around 0..1, or the channels asked for."""
    depth: Float[Tensor, "height width"]
    """Expected depth in scene units: alpha-weighted mean depth ("ED"); 0 where alpha is 0."""
    alpha: Float[Tensor, "height width"]
    """How much of the pixel is covered, 0..1."""


@torch.no_grad()
def render(
    gaussians: Gaussians,
    camera: Camera,
    *,
    colors: Float[Tensor, "gaussian channel"] | None = None,
    background: Float[Tensor, " channel"] | None = None,
    device: torch.device | str | None = None,
) -> Rendering:
    """Render colours, expected depth and alpha.

    Args:
        gaussians: the scene.
        camera: where from, and how large.
        colors: a value for every Gaussian, any number of channels; None: the colour of its spherical harmonics.
        background: colour behind everything, 0 if None.
        device: where to compute; None: where ``gaussians`` is. The result comes back to where ``gaussians`` is.
    """
    home = gaussians.means.device
    place = home if device is None else torch.device(device)
    pictures, alphas, _ = rasterization(
        gaussians.means.to(place),
        gaussians.quats.to(place),
        gaussians.scales.to(place),
        gaussians.opacities.to(place),
        (gaussians.sh if colors is None else colors).to(place),
        camera.T_camera_world[None].to(place),
        camera.K[None].to(place),
        camera.width,
        camera.height,
        sh_degree=gaussians.sh_degree if colors is None else None,
        backgrounds=None if background is None else background[None].to(place),
        render_mode="RGB+ED",
    )
    picture = pictures[0].to(home)
    return Rendering(colors=picture[..., :-1], depth=picture[..., -1], alpha=alphas[0, ..., 0].to(home))


@torch.no_grad()
def render_values(
    gaussians: Gaussians, camera: Camera, values: Float[Tensor, "gaussian channel"]
) -> Float[Tensor, "height width channel"]:
    """Blend values of the Gaussians over 0, any number of channels: the colours of ``render``, without depth and its copies."""
    pictures, _, _ = rasterization(
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        gaussians.opacities,
        values,
        camera.T_camera_world[None].to(values.device),
        camera.K[None].to(values.device),
        camera.width,
        camera.height,
    )
    return pictures[0]
