"""What a running training consists of, and the snapshot of it from which it goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.reconstruct._config import ReconstructConfig
from gags.settings import decisive


@dataclass(frozen=True)
class ReconstructState:
    """A training after some iterations. No generator is kept: randomness is a function of seed and iteration."""

    step: int
    """Iterations done."""
    tensors: dict[str, Tensor]
    """``parameter/NAME``, its Adam moments ``adam/NAME/KEY``, the densification's sums ``strategy/KEY``, the log's ``log/sums``."""
    config: ReconstructConfig
    """What the training was started with."""

    def gaussians(self) -> Gaussians:
        """The Gaussians at this step."""
        return _gaussians({name: self.tensors[f"parameter/{name}"] for name in _names(self.tensors)})

    def to_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors for a safetensors file and metadata for JSON."""
        return dict(self.tensors), {"step": self.step, "config": asdict(self.config)}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> ReconstructState:
        """The inverse of ``to_state``; GagsError if the metadata is of another version."""
        try:
            return cls(int(metadata["step"]), dict(tensors), ReconstructConfig(**metadata["config"]))
        except (KeyError, TypeError) as error:
            raise GagsError(
                f"reconstruct: expected a checkpoint of this version of gags, found another ({error}); "
                "delete the checkpoint: the training then starts again"
            ) from error


Parameters = dict[str, torch.nn.Parameter]
"""By gsplat's names: means, scales (logarithms), quats, opacities (logits), sh0, and shN from degree 1."""


@dataclass
class Training:
    """A running training: changed in place by every iteration."""

    step: int
    """Iterations done."""
    parameters: Parameters
    """What is optimised."""
    optimizers: dict[str, torch.optim.Optimizer]
    """One a parameter, by the same names, as gsplat's strategies have it."""
    strategy_state: dict[str, Any]
    """gsplat's running sums between two refinements."""
    log_sums: Float[Tensor, " 3"] = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    """Since the last row of the log: losses, squared errors (colours 0..1), iterations."""

    def gaussians(self) -> Gaussians:
        """The present parameters, copied, on the CPU."""
        return _gaussians({name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()})

    def log_row(self) -> dict[str, float]:
        """The means since the last row; they begin anew."""
        loss, squared_error, count = self.log_sums.tolist()
        self.log_sums.zero_()
        row: dict[str, float] = {"iteration": self.step, "gaussians": len(self.parameters["means"])}
        # views in which nothing of the scene is in sight do not count
        if count > 0:
            # a picture without any error would have no finite ratio
            row |= {"loss": loss / count, "psnr_db": -10 * math.log10(max(squared_error / count, 1e-10))}
        return row

    def snapshot(self, config: ReconstructConfig) -> ReconstructState:
        """A copy that later iterations leave alone, on the CPU."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"parameter/{name}"] = parameter
            for key, value in self.optimizers[name].state[parameter].items():
                tensors[f"adam/{name}/{key}"] = value
        for key, value in self.strategy_state.items():
            if isinstance(value, Tensor):
                tensors[f"strategy/{key}"] = value
        tensors["log/sums"] = self.log_sums
        copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        return ReconstructState(self.step, copies, config)


def start_training(gaussians: Gaussians, extent: float, config: ReconstructConfig) -> Training:
    """A training at iteration 0."""
    values = {
        "means": gaussians.means,
        "scales": gaussians.log_scales,
        "quats": gaussians.quats,
        "opacities": gaussians.opacity_logits,
        "sh0": gaussians.sh[:, :1],
    }
    if config.sh_degree > 0:
        values["shN"] = gaussians.sh[:, 1:]
    return _training(0, values, extent, config)


def resume_training(state: ReconstructState, extent: float, config: ReconstructConfig) -> Training:
    """A training where a snapshot left it; GagsError if it was started with other numbers."""
    was, now = decisive(state.config), decisive(config)
    if was != now:
        changed = ", ".join(f"{name} {was[name]} -> {now[name]}" for name in now if was[name] != now[name])
        raise GagsError(
            f"reconstruct: expected a checkpoint of the same configuration, found changes ({changed}); "
            "delete the checkpoint or train with its numbers"
        )
    values = {name: state.tensors[f"parameter/{name}"] for name in _names(state.tensors)}
    training = _training(state.step, values, extent, config)
    for name, tensor in state.tensors.items():
        kind, *rest = name.split("/")
        if kind == "adam":
            optimizer = training.optimizers[rest[0]]
            # A step counter stays on the CPU, as Adam itself keeps it.
            device = "cpu" if rest[1] == "step" and config.device == "cpu" else config.device
            optimizer.state[training.parameters[rest[0]]][rest[1]] = tensor.to(device, copy=True)
        elif kind == "strategy":
            training.strategy_state[rest[0]] = tensor.to(config.device, copy=True)
        elif kind == "log":
            training.log_sums.copy_(tensor)
    return training


def _names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The parameters in a snapshot."""
    return [name.removeprefix("parameter/") for name in tensors if name.startswith("parameter/")]


def _gaussians(values: Mapping[str, Tensor]) -> Gaussians:
    bands = [values[name] for name in ("sh0", "shN") if name in values]
    sh = torch.cat(bands, dim=1).contiguous()
    return Gaussians(values["means"], values["quats"], values["scales"], values["opacities"], sh)


def _training(step: int, values: Mapping[str, Tensor], extent: float, config: ReconstructConfig) -> Training:
    parameters = {
        name: torch.nn.Parameter(value.detach().to(config.device, torch.float32, copy=True).contiguous())
        for name, value in values.items()
    }
    rates = {
        "means": config.means_lr * extent,
        "scales": config.scales_lr,
        "quats": config.quats_lr,
        "opacities": config.opacities_lr,
        "sh0": config.sh0_lr,
        "shN": config.sh_rest_lr,
    }
    # 3DGS's epsilon: gradients of a pixel mean are far below Adam's usual 1e-8.
    optimizers: dict[str, torch.optim.Optimizer] = {
        name: torch.optim.Adam([parameter], lr=rates[name], eps=1e-15, fused=True)
        for name, parameter in parameters.items()
    }
    return Training(step, parameters, optimizers, {"grad2d": None, "count": None, "scene_scale": extent})
