"""The numbers of a training run."""

from __future__ import annotations

from dataclasses import dataclass

from gags.errors import GagsError


@dataclass(frozen=True)
class ReconstructConfig:
    """RGB training. The defaults are those of 3DGS (Kerbl et al. 2023) as gsplat's ``simple_trainer`` has them."""

    iterations: int = 30_000
    """Optimiser steps, one view each."""
    max_side_px: int | None = 1600
    """Longer side of the training images. None: the scene's working resolution."""
    num_downscales: int = 0
    """Coarse to fine: training starts with images of 1 / 2^num_downscales of that side."""
    resolution_schedule: int = 3000
    """Iterations after which the side of the training images doubles, until it is whole."""
    sh_degree: int = 3
    """Degree of the spherical harmonics that colours have in the end, 0 to 3."""
    sh_degree_interval: int = 1000
    """Iterations after which one more degree is trained, beginning with 0."""
    initial_opacity: float = 0.1
    """Opacity of the Gaussians at the sparse points, in 0..1."""
    means_lr: float = 1.6e-4
    """Learning rate of the centres for a scene of extent 1: multiplied by the extent, decays exponentially to 1/100."""
    scales_lr: float = 5e-3
    """Learning rate of the logarithmic scales."""
    quats_lr: float = 1e-3
    """Learning rate of the rotations."""
    opacities_lr: float = 5e-2
    """Learning rate of the opacity logits."""
    sh0_lr: float = 2.5e-3
    """Learning rate of the first colour band."""
    sh_rest_lr: float = 2.5e-3 / 20
    """Learning rate of the higher colour bands."""
    ssim_weight: float = 0.2
    """Share of 1 - SSIM in the loss; the rest is L1."""
    random_background: bool = False
    """Render over a random colour in every iteration, against Gaussians that imitate the black background."""
    refine_start: int = 500
    """Iteration after which Gaussians are cloned, split and pruned."""
    refine_stop: int = 15_000
    """Iteration from which their number stays."""
    refine_every: int = 100
    """Iterations between refinements."""
    grow_grad2d: float = 2e-4
    """Gaussians grow whose mean gradient of the loss by the image position (in half images) is larger."""
    grow_scale3d: float = 0.01
    """Growing Gaussians up to this size (share of the scene's extent) are cloned, larger ones split."""
    prune_opacity: float = 5e-3
    """Gaussians of lower opacity are removed."""
    reset_every: int = 3000
    """Iterations between resets of all opacities to twice ``prune_opacity``. 0: never, for short trainings."""
    max_gaussians: int | None = None
    """Most Gaussians at any time. Where more would grow, those with the largest gradients do. None: no limit."""
    seed: int = 0
    """Seed of the order of the views, the splits and the backgrounds."""
    checkpoint_every: int = 1000
    """Iterations between the states handed to ``on_checkpoint``. 0: none."""
    device: str = "cpu"
    """Where the training runs, in torch's words. Equal bytes for equal seeds hold for cpu only."""

    def check(self) -> None:
        """Raise a GagsError if a number cannot be meant."""
        if not 0 <= self.sh_degree <= 3:
            raise GagsError(f"--sh-degree: expected 0, 1, 2 or 3, found {self.sh_degree}")
        if not 0 < self.initial_opacity < 1:
            raise GagsError(f"--initial-opacity: expected a number between 0 and 1, found {self.initial_opacity}")
        if not 0 <= self.ssim_weight <= 1:
            raise GagsError(f"--ssim-weight: expected a share from 0 to 1, found {self.ssim_weight}")
        at_least_one = ("iterations", "resolution_schedule", "sh_degree_interval", "refine_every")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise GagsError(f"--{name.replace('_', '-')}: expected 1 or more, found {getattr(self, name)}")
        for name in ("max_side_px", "max_gaussians"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise GagsError(f"--{name.replace('_', '-')}: expected 1 or more, found {value}")
        for name in ("num_downscales", "reset_every", "checkpoint_every", "refine_start", "seed"):
            if getattr(self, name) < 0:
                raise GagsError(f"--{name.replace('_', '-')}: expected 0 or more, found {getattr(self, name)}")
