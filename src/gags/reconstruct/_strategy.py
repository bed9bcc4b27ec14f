"""gsplat's densification with a limit on the number of Gaussians. Importing this module imports gsplat."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

with warnings.catch_warnings():
    # gsplat 1.5 decorates its CUDA parts with torch functions that newer torches deprecate.
    warnings.simplefilter("ignore", FutureWarning)
    from gsplat.strategy import DefaultStrategy
    from gsplat.strategy.ops import reset_opa


@dataclass
class LimitedStrategy(DefaultStrategy):
    """``DefaultStrategy`` that grows no scene beyond ``max_gaussians``.

    Where more Gaussians pass the gradient threshold than there is room for, those with the largest gradients grow.
    """

    max_gaussians: int | None = None
    """None: no limit."""

    @torch.no_grad()
    def _grow_gs(
        self,
        params: dict[str, torch.nn.Parameter],
        optimizers: dict[str, torch.optim.Optimizer],
        state: dict[str, Any],
        step: int,
    ) -> tuple[int, int]:
        if self.max_gaussians is not None:
            room = max(0, self.max_gaussians - len(params["means"]))
            average: Tensor = state["grad2d"] / state["count"].clamp_min(1)
            # Each Gaussian that grows, cloned or split, adds one.
            if int((average > self.grow_grad2d).sum()) > room:
                grows = torch.zeros_like(average)
                grows[average.topk(room).indices] = 1
                state["grad2d"] *= grows
        grown: tuple[int, int] = super()._grow_gs(params, optimizers, state, step)
        return grown


def reset_opacities(
    params: dict[str, torch.nn.Parameter], optimizers: dict[str, torch.optim.Optimizer], opacity: float
) -> None:
    """Lower every opacity to at most ``opacity`` (Kerbl et al. 2023, section 5.2) and forget its Adam moments.

    gsplat 1.5.3 means to do this itself but never does: it writes ``step % reset_every == 0 & step > 0``, which Python
    reads as ``(step % reset_every == 0) and (0 > 0)``. Doing it twice changes nothing.
    """
    reset_opa(params=params, optimizers=optimizers, state={}, value=opacity)
