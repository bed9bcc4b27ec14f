"""RGB training of a 3D Gaussian scene (Kerbl et al. 2023)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.geometry import Camera
from gags.images import resize_image
from gags.progress import track
from gags.rasterize import rasterization
from gags.reconstruct._config import ReconstructConfig
from gags.reconstruct._initial import initial_gaussians, scene_extent
from gags.reconstruct._ssim import photometric_loss
from gags.reconstruct._state import ReconstructState, Training, resume_training, start_training
from gags.scene import Scene, View
from gags.settings import check_settings

if TYPE_CHECKING:
    from gags.reconstruct._strategy import LimitedStrategy

logger = logging.getLogger(__name__)

# The centres' learning rate at the end of the training, as a share of that at its beginning.
_FINAL_MEANS_LR = 0.01
# Coarser pictures than this say nothing of the scene, and SSIM's window is 11 pixels wide.
_MIN_SIDE_PX = 32
# Iterations that a row of the log averages.
_LOG_EVERY = 50
# Independent streams of random numbers under one seed.
_ORDER, _BACKGROUND, _SPLIT = 0, 1, 2


@dataclass(frozen=True)
class _Target:
    """A photograph to train on, at the resolution of the moment."""

    camera: Camera
    image: UInt8[Tensor, "height width 3"]

    def resized(self, downscale: int) -> _Target:
        shorter = min(self.camera.width, self.camera.height)
        scale = min(1.0, max(1 / downscale, _MIN_SIDE_PX / shorter))
        if scale == 1:
            return self
        camera = self.camera.resized(round(self.camera.width * scale), round(self.camera.height * scale))
        return _Target(camera, resize_image(self.image, camera.width, camera.height))


def reconstruct(
    scene: Scene,
    config: ReconstructConfig,
    resume: ReconstructState | None = None,
    on_checkpoint: Callable[[ReconstructState], None] | None = None,
    on_log: Callable[[Mapping[str, float]], None] | None = None,
) -> Gaussians:
    """Train Gaussians on the scene's training views.

    The loss is L1 and SSIM of one view an iteration (eq. 7); Gaussians start at the sparse points and are cloned, split
    and pruned by ``gsplat.strategy.DefaultStrategy``. Held-out views are not read. On the CPU, equal input gives equal
    bytes, in one go or resumed.

    Args:
        scene: posed photographs and sparse points.
        config: every number of the training.
        resume: a state that ``on_checkpoint`` was given, of the same scene and configuration.
        on_checkpoint: called with the state after every ``config.checkpoint_every`` iterations.
        on_log: called every 50 iterations with their mean loss and PSNR on the training images, and the number of Gaussians.

    Returns:
        The trained Gaussians, float32, on the CPU.

    Raises:
        GagsError: there are no training views or no points; a setting out of range; ``resume``
            is of another configuration; no Gaussian is left, because the cameras do not see the points.
    """
    from gags.reconstruct._strategy import reset_opacities

    check_settings(config, "reconstruct.")
    photographs = _photographs(scene.training_views, config.max_side_px)
    extent = scene_extent(scene.training_views, scene.points)
    if resume is None:
        start = initial_gaussians(
            scene, extent, config.initial_opacity, config.sh_degree, config.max_gaussians, config.seed
        )
        training = start_training(start, extent, config)
    else:
        training = resume_training(resume, extent, config)
    strategy = _strategy(config)
    targets: list[_Target] = []
    downscale = 0
    for step in track(range(training.step, config.iterations), "reconstruct"):
        if downscale != _downscale(step, config):
            downscale = _downscale(step, config)
            targets = [photograph.resized(downscale) for photograph in photographs]
        _train_step(training, strategy, targets[_view_index(step, len(targets), config.seed)], extent, config)
        if config.reset_every and 0 < step < config.refine_stop and step % config.reset_every == 0:
            reset_opacities(training.parameters, training.optimizers, 2 * config.prune_opacity)
        training.step = step + 1
        if training.step % _LOG_EVERY == 0 or training.step == config.iterations:
            row = training.log_row()
            if on_log is not None:
                on_log(row)
        due = config.checkpoint_every and training.step % config.checkpoint_every == 0
        if on_checkpoint is not None and due and training.step < config.iterations:
            on_checkpoint(training.snapshot(config))
    gaussians = training.gaussians()
    gaussians.check("reconstruct")
    logger.info("trained %d Gaussians in %d iterations", len(gaussians), config.iterations)
    return gaussians


def _photographs(views: tuple[View, ...], max_side_px: int | None) -> list[_Target]:
    if not views:
        raise GagsError("reconstruct: expected views to train on, found that all are held out; hold out fewer")
    return [_Target(view.camera.limited(max_side_px), view.image(max_side_px)) for view in views]


def _strategy(config: ReconstructConfig) -> LimitedStrategy:
    from gags.reconstruct._strategy import LimitedStrategy

    return LimitedStrategy(
        prune_opa=config.prune_opacity,
        grow_grad2d=config.grow_grad2d,
        grow_scale3d=config.grow_scale3d,
        refine_start_iter=config.refine_start,
        refine_stop_iter=config.refine_stop,
        refine_every=config.refine_every,
        # gsplat also begins to prune large Gaussians at the first reset: without resets, never.
        reset_every=config.reset_every or config.iterations + 1,
        max_gaussians=config.max_gaussians,
    )


def _downscale(step: int, config: ReconstructConfig) -> int:
    """How many times smaller than the training images those of this iteration are."""
    return 2 ** max(0, config.num_downscales - step // config.resolution_schedule)


def _view_index(step: int, number: int, seed: int) -> int:
    """Every view once in a pass, each pass in another order."""
    generator = np.random.default_rng([seed, _ORDER, step // number])
    return int(generator.permutation(number)[step % number])


def _background(step: int, config: ReconstructConfig) -> Float[Tensor, " 3"]:
    if not config.random_background:
        return torch.zeros(3)
    return torch.from_numpy(np.random.default_rng([config.seed, _BACKGROUND, step]).random(3, dtype=np.float32))


def _train_step(
    training: Training, strategy: LimitedStrategy, target: _Target, extent: float, config: ReconstructConfig
) -> None:
    """One view: render, compare, update the parameters, refine."""
    step, parameters = training.step, training.parameters
    image, info = _render(training, target.camera, config)
    # Nothing of the scene is in sight: no gradient, and nothing for the densification to count.
    if bool((info["radii"] > 0).all(dim=-1).any()):
        strategy.step_pre_backward(parameters, training.optimizers, training.strategy_state, step, info)
        reference = target.image.to(config.device, torch.float32) / 255
        loss = photometric_loss(image, reference, config.ssim_weight)
        loss.backward()
        squared_error = (image.detach() - reference).square().mean()
        training.log_sums += torch.tensor([float(loss.detach()), float(squared_error), 1.0], dtype=torch.float64)
        decay = _FINAL_MEANS_LR ** (step / config.iterations)
        training.optimizers["means"].param_groups[0]["lr"] = config.means_lr * extent * decay
        for optimizer in training.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        _refine(training, strategy, info, config)
    if len(parameters["means"]) == 0:
        raise GagsError(
            f"reconstruct: no Gaussian is left after {step + 1} iterations: the cameras do not see the sparse points; "
            "check that images and sparse model belong together"
        )


def _render(
    training: Training, camera: Camera, config: ReconstructConfig
) -> tuple[Float[Tensor, "height width 3"], dict[str, Any]]:
    parameters = training.parameters
    degree = min(training.step // config.sh_degree_interval, config.sh_degree)
    sh: Tensor = parameters["sh0"]
    if degree > 0:
        sh = torch.cat([sh, parameters["shN"][:, : (degree + 1) ** 2 - 1]], dim=1)
    images, _, info = rasterization(
        parameters["means"],
        parameters["quats"],
        parameters["scales"].exp(),
        torch.sigmoid(parameters["opacities"]),
        sh,
        camera.T_camera_world[None].to(config.device),
        camera.K[None].to(config.device),
        camera.width,
        camera.height,
        sh_degree=degree,
        backgrounds=_background(training.step, config)[None].to(config.device),
        packed=False,
    )
    return images[0], info


def _refine(training: Training, strategy: LimitedStrategy, info: dict[str, Any], config: ReconstructConfig) -> None:
    """gsplat's densification; where it splits it draws from torch's global generator, which is put back afterwards."""
    device = torch.device(config.device)
    seed = int(np.random.SeedSequence([config.seed, _SPLIT, training.step]).generate_state(1)[0])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        strategy.step_post_backward(
            training.parameters, training.optimizers, training.strategy_state, training.step, info, packed=False
        )
    if training.step % 1000 == 0:
        logger.debug("iteration %d: %d Gaussians", training.step, len(training.parameters["means"]))
