"""How well Gaussians explain photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gags.gaussians import Gaussians
from gags.progress import track
from gags.rasterize import render
from gags.reconstruct._ssim import psnr, ssim
from gags.scene import View


@dataclass(frozen=True)
class ViewQuality:
    """Agreement of one rendered view with its photograph."""

    name: str
    """Exact file name of the photograph."""
    psnr: float
    """Peak signal-to-noise ratio, dB."""
    ssim: float
    """Structural similarity, 1 if equal."""


FAR_BELOW_DB = 8.0
"""A view that is this much worse than the upper quartile of those that were trained on is badly explained. A quarter of *bonsai*'s
are with the cameras that came with it, none with cameras made anew."""
_GOOD_ENOUGH_DB = 25.0
"""A view above this is never called badly explained, however good the others are."""


@torch.no_grad()
def measure_views(gaussians: Gaussians, views: Sequence[View], max_side_px: int | None) -> list[ViewQuality]:
    """Render the views over black at their size limited to ``max_side_px`` and compare them with their photographs."""
    return [_measure_view(gaussians, view, max_side_px) for view in track(views, "measure")]


def badly_explained(training: Sequence[ViewQuality]) -> list[str]:
    """Names of the views that were trained on and still are ``FAR_BELOW_DB`` below the upper quartile, and below 25 dB.

    Their cameras are off, or things moved before them. (Not the median: half of a scene's cameras may be off.)
    """
    if not training:
        return []
    # two pictures that are equal have an infinite ratio, which has no quantile
    good = float(np.quantile([min(view.psnr, 100.0) for view in training], 0.75))
    return [view.name for view in training if view.psnr < min(good - FAR_BELOW_DB, _GOOD_ENOUGH_DB)]


def _measure_view(gaussians: Gaussians, view: View, max_side_px: int | None) -> ViewQuality:
    camera = view.camera.limited(max_side_px)
    # What a screen can show, as every published figure has it.
    image = render(gaussians, camera).colors.clamp(0, 1)
    photograph = view.image(max_side_px).float() / 255
    return ViewQuality(view.name, psnr(image, photograph), float(ssim(image, photograph)))
