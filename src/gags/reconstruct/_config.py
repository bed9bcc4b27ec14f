"""The numbers of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from gags.settings import Count, Device, Natural, Neutral, NonNegative, Seed, Share, Side, Within


@dataclass(frozen=True)
class ReconstructConfig:
    """RGB training. The defaults are those of 3DGS (Kerbl et al. 2023) as gsplat's ``simple_trainer`` has them."""

    iterations: Count = 30_000
    """Optimiser steps, one view each."""
    max_side_px: Side | None = 1600
    """Longer side of the training images in pixels. None: the scene's working resolution."""
    num_downscales: Annotated[int, Within(0, 8)] = 0
    """Coarse to fine: training starts with images of 1 / 2^num_downscales of that side."""
    resolution_schedule: Count = 3000
    """Iterations after which the side of the training images doubles, until it is whole."""
    sh_degree: Annotated[int, Within(0, 3)] = 3
    """Degree of the spherical harmonics that colours have in the end, 0 to 3."""
    sh_degree_interval: Count = 1000
    """Iterations after which one more degree is trained, beginning with 0."""
    initial_opacity: Annotated[float, Within(0, 1, open=True)] = 0.1
    """Opacity of the Gaussians at the sparse points, in 0..1."""
    means_lr: NonNegative = 1.6e-4
    """Learning rate of the centres for a scene of extent 1: multiplied by the extent, decays exponentially to 1/100."""
    scales_lr: NonNegative = 5e-3
    """Learning rate of the logarithmic scales."""
    quats_lr: NonNegative = 1e-3
    """Learning rate of the rotations."""
    opacities_lr: NonNegative = 5e-2
    """Learning rate of the opacity logits."""
    sh0_lr: NonNegative = 2.5e-3
    """Learning rate of the first colour band."""
    sh_rest_lr: NonNegative = 2.5e-3 / 20
    """Learning rate of the higher colour bands."""
    ssim_weight: Share = 0.2
    """Share of 1 - SSIM in the loss, 0..1; the rest is L1."""
    random_background: bool = False
    """Render over a random colour in every iteration, against Gaussians that imitate the black background."""
    refine_start: Natural = 500
    """Iteration after which Gaussians are cloned, split and pruned."""
    refine_stop: Natural = 15_000
    """Iteration from which their number stays."""
    refine_every: Count = 100
    """Iterations between refinements."""
    grow_grad2d: NonNegative = 2e-4
    """Gaussians grow whose mean gradient of the loss by the image position (in half images) is larger."""
    grow_scale3d: NonNegative = 0.01
    """Growing Gaussians up to this size (share of the scene's extent) are cloned, larger ones split."""
    prune_opacity: Annotated[float, Within(0, 0.5, open=True)] = 5e-3
    """Gaussians of lower opacity (0..1) are removed."""
    reset_every: Natural = 3000
    """Iterations between resets of all opacities to twice ``prune_opacity``. 0: never, for short trainings."""
    max_gaussians: Count | None = None
    """Most Gaussians at any time. Where more would grow, those with the largest gradients do. None: no limit."""
    seed: Seed = 0
    """Seed of the order of the views, the splits and the backgrounds."""
    checkpoint_every: Neutral[Natural] = 1000
    """Iterations between the states handed to ``on_checkpoint``. 0: none."""
    device: Annotated[str, Device()] = "cpu"
    """Where the training runs, in torch's words. Equal bytes for equal seeds hold for cpu only."""
