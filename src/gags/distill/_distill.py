"""Granularity-aware distillation (GaD; docs/method.md, stage 3): learning the language field with frozen geometry.

A view's feature map is a sparse product with its ``BlendWeights``, computed once. An iteration renders the whole map
of a view (a millisecond's work), takes granularity weights and regions from it, and decodes either all labelled
pixels (the paper's schedule) or a sample spread evenly over the regions (``pixels_per_iteration``): the decoder is
where the time goes. Entropy and region variance always see the whole map.

``subspace_width`` makes what is decoded shorter: targets and decoder live in the directions that hold most of the masks'
embeddings, and the finished decoder's last layer leads back to the encoder's space.

What iteration i draws depends on the seed and i alone: a resumed training ends with the bytes of an uninterrupted one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from gags.devices import multiplies_bfloat16
from gags.distill._decoders import FeatureDecoder, GranularityDecoder
from gags.distill._field import FieldMeta, LanguageField
from gags.distill._losses import (
    absolute_difference,
    balanced_rows,
    granularity_entropy,
    region_variance,
    sampled_rows,
)
from gags.distill._subspace import Subspace, target_subspace
from gags.distill._targets import (
    TargetMode,
    ViewLabels,
    mixed_embeddings,
    mixed_label_map,
    mixing_weights,
    valid_pixels,
    view_labels,
)
from gags.encode import MaskEmbeddings
from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.progress import track
from gags.rasterize import BlendWeights, blend_weights
from gags.scene import Scene
from gags.segment import LEVELS, GranularMasks
from gags.settings import Count, Natural, Neutral, NonNegative, Positive, Seed, Share, check_settings

logger = logging.getLogger(__name__)

Levels = Literal["gad", "mean", "s", "m", "l"]
"""Which levels are distilled: learned weights (gad), their plain mean, or one of them alone (the paper's ablations)."""

_LOSSES = ("iteration", "total", "distill", "entropy", "region")


@dataclass(frozen=True)
class DistillConfig:
    """Settings of the distillation. The defaults are the paper's."""

    iterations: Count = 30_000
    """Optimiser steps; each draws one view (see ``views_per_iteration``)."""
    downscale: Count = 2
    """The label maps and the rendered features are this many times smaller than the segmented images."""
    feature_width: Count = 16
    """d, numbers on a Gaussian."""
    feature_lr: NonNegative = 1e-3
    """Adam's learning rate of the features. Schedules of a few thousand iterations need about 0.05."""
    decoder_lr: NonNegative = 1e-4
    """Adam's learning rate of both decoders. Schedules of a few thousand iterations need about 1e-3."""
    final_lr: Share = 1.0
    """After ``late_start`` both learning rates fall geometrically, at the end to this share of themselves. 1: they stay, as in the
    paper. Schedules of a few thousand iterations end less noisy with 0.05."""
    adam_eps: Positive = 1e-15
    """Adam's epsilon for the features, whose gradients are tiny where few pixels see a Gaussian."""
    entropy_weight: tuple[NonNegative, NonNegative] = (0.001, 0.002)
    """Weight of the granularity entropy, before and after ``late_start``."""
    region_weight: NonNegative = 0.1
    """Weight of the variance of the features inside a region, after ``late_start`` (0 before)."""
    late_start: Share = 0.5
    """Share of the iterations (0..1) after which the late weights hold and the learning rates fall."""
    pixels_per_iteration: Count | None = None
    """Pixels decoded per iteration, sampled evenly over the regions; None: all (the paper's schedule)."""
    views_per_iteration: Count = 1
    """Views whose losses are averaged in a step; they share ``pixels_per_iteration``."""
    levels: Levels = "gad"
    """gad learns what level to trust where; mean, s, m and l are the paper's ablations."""
    target: TargetMode = "soft"
    """How granularity weights mix the levels' embeddings: soft, hard or median. ``hard`` does not train the weights."""
    subspace_width: Count | None = None
    """Targets and decoded vectors are compared in so many directions, those that hold most of the masks' embeddings (the
    field's ``mean_mask_cosine`` says how much); the field decodes to the whole space all the same. None: in the whole space,
    as the paper does and ``reference_quirks`` always does."""
    decoder_dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Arithmetic of the decoders in training. bfloat16 halves their time on processors that have it."""
    min_blend_weight: Share = 1e-3
    """Blend weights (alpha x transmittance, 0..1) below this are left out of the feature maps; saves memory and time."""
    seed: Seed = 0
    """Of the decoders' initial parameters, the order of the views and the sampled pixels."""
    log_every: Count = 50
    """Iterations that a row of the loss history averages."""
    checkpoint_every: Neutral[Natural] = 1000
    """Iterations between two calls of ``on_checkpoint``. 0: none."""
    reference_quirks: bool = False
    """Stop where the reference implementation stops: a view with no labelled pixel, or none beside another of its region.
    With the target ``hard``, regions whose embedding starts with 0 teach nothing."""

    def loss_weights(self, iteration: int) -> tuple[float, float]:
        """Weights of the granularity entropy and of the region variance in an iteration, counted from 0."""
        late = iteration >= self.late_start * self.iterations
        return self.entropy_weight[late], self.region_weight * late

    def learning_rates(self, iteration: int) -> tuple[float, float]:
        """Adam's learning rates of the features and of the decoders in an iteration, counted from 0."""
        done = iteration / self.iterations
        late = (done - self.late_start) / (1 - self.late_start) if done > self.late_start else 0.0
        return self.feature_lr * self.final_lr**late, self.decoder_lr * self.final_lr**late


@dataclass(frozen=True)
class DistillState:
    """A training that was interrupted: what ``distill`` needs to go on."""

    iteration: int
    """Iterations done."""
    tensors: Mapping[str, Tensor]
    """Parameters, Adam's moments and the loss history, by name."""

    def to_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Named tensors and a JSON value from which ``from_state`` makes the state again."""
        return dict(self.tensors), {"iteration": self.iteration}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> DistillState:
        """The state that ``to_state`` described."""
        return cls(int(metadata["iteration"]), dict(tensors))


@dataclass(frozen=True)
class ViewLosses:
    """The three losses of a view, unweighted."""

    distill: Float[Tensor, ""]
    """Region-balanced L1 between decoded features and targets."""
    entropy: Float[Tensor, ""]
    """Of the granularity weights; 0 where they are not learned."""
    region: Float[Tensor, ""]
    """Variance of the feature map inside regions; 0 while it has no weight."""


@dataclass(frozen=True)
class _TrainingView:
    labels: ViewLabels
    blend: BlendWeights


def distill(
    scene: Scene,
    gaussians: Gaussians,
    masks: GranularMasks,
    embeddings: MaskEmbeddings,
    config: DistillConfig,
    resume: DistillState | None = None,
    on_checkpoint: Callable[[DistillState], None] | None = None,
    encoder_name: str = "",
    on_log: Callable[[Mapping[str, float]], None] | None = None,
) -> LanguageField:
    """Learn a feature for every Gaussian and both decoders from the training views' masks and embeddings.

    Args:
        resume: go on from here; the other arguments must be those of the interrupted training.
        on_checkpoint: receives the state every ``config.checkpoint_every`` iterations.
        encoder_name: is noted in the field.
        on_log: receives each row of the loss history as it is made.

    Raises:
        GagsError: a setting out of range, no training view, a view without masks or embeddings, no labelled pixel, a
            state of another scene.
    """
    check_settings(config, "distill.")
    subspace = _subspace(scene, embeddings, config, resume)
    views = _training_views(scene, gaussians, masks, embeddings, config, subspace)
    target_width = views[0].labels.embeddings.shape[1]
    training = _Training(len(gaussians), target_width, config, gaussians.means.device, subspace)
    first = 0
    if resume is not None:
        training.restore(resume)
        first = resume.iteration
    for iteration in track(range(first, config.iterations), "distill"):
        row = training.step(views, iteration)
        if on_log is not None and row is not None:
            on_log(row)
        if on_checkpoint is not None and config.checkpoint_every and (iteration + 1) % config.checkpoint_every == 0:
            on_checkpoint(training.state(iteration + 1))
    return training.finished(gaussians, encoder_name)


def view_losses(
    feature_map: Float[Tensor, "height width d"],
    granularity: Float[Tensor, "height width 3"],
    decode_rows: Callable[[Int[Tensor, " row"]], Float[Tensor, "row embedding"]],
    labels: ViewLabels,
    sample: tuple[int, np.random.Generator] | None,
    mode: TargetMode = "soft",
    with_region: bool = True,
    reference_quirks: bool = False,
) -> ViewLosses:
    """The losses of docs/method.md, stage 3, for one view.

    Args:
        decode_rows: the unit vectors that the pixels with these row-major numbers decode to.
        sample: how many pixels to decode, and where their choice comes from; None: all that count.
    """
    regions = mixed_label_map(granularity, labels.label_maps).flatten()
    mixing = mixing_weights(granularity, labels.label_maps, mode)
    rows = balanced_rows(regions, reference_quirks) if sample is None else sampled_rows(regions, *sample)
    # A pixel without a target has residual 0 and still counts in its region's mean (fixture 08): no need to decode it.
    valid = valid_pixels(labels.label_maps, mixing, mode)
    if mode == "hard" and reference_quirks:
        # The reference takes a target whose first channel is exactly 0 for no target (fixture 07).
        winner = (labels.label_maps * mixing.movedim(-1, 0)).sum(dim=0).long()
        valid &= labels.embeddings[winner.clamp(min=0), 0] != 0
    rows = rows.where(valid.flatten())
    target = mixed_embeddings(
        labels.label_maps.flatten(1)[:, rows.pixel_ids].T, labels.embeddings, mixing.flatten(0, 1)[rows.pixel_ids]
    )
    residual = absolute_difference(decode_rows(rows.pixel_ids), target)
    zero = feature_map.new_zeros(())
    return ViewLosses(
        distill=rows.mean(residual),
        entropy=granularity_entropy(granularity) if granularity.requires_grad else zero,
        region=region_variance(feature_map.flatten(0, 1), regions, reference_quirks) if with_region else zero,
    )


class _Training:
    """The parameters, the optimiser and the loss history of a running distillation."""

    def __init__(
        self,
        gaussian_count: int,
        target_width: int,
        config: DistillConfig,
        device: torch.device,
        subspace: Subspace | None = None,
    ) -> None:
        self.config, self.subspace = config, subspace
        self.features = torch.zeros(gaussian_count, config.feature_width, device=device, requires_grad=True)
        self.feature_decoder = FeatureDecoder(config.feature_width, target_width).to(device)
        self.granularity_decoder = (
            GranularityDecoder(config.feature_width).to(device) if config.levels == "gad" else None
        )
        generator = torch.Generator().manual_seed(config.seed)
        for decoder in self._decoders().values():
            _initialise(decoder, generator)
        decoder_parameters = [parameter for decoder in self._decoders().values() for parameter in decoder.parameters()]
        self.optimizer = torch.optim.Adam(
            [
                {"params": [self.features], "lr": config.feature_lr, "eps": config.adam_eps},
                {"params": decoder_parameters, "lr": config.decoder_lr},
            ],
            fused=True,
        )
        self.history: list[list[float]] = []
        self.running = [0.0] * (len(_LOSSES) - 1)

    def step(self, views: list[_TrainingView], iteration: int) -> dict[str, float] | None:
        """One optimiser step; returns the row that it adds to the loss history, if it does."""
        config = self.config
        entropy_weight, region_weight = config.loss_weights(iteration)
        for group, rate in zip(self.optimizer.param_groups, config.learning_rates(iteration), strict=True):
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        for draw, view in enumerate(_drawn_views(views, iteration, config)):
            losses = self._losses(view, np.random.default_rng((config.seed, 1, iteration, draw)), region_weight > 0)
            total = losses.distill + entropy_weight * losses.entropy + region_weight * losses.region
            (total / config.views_per_iteration).backward()
            for index, loss in enumerate((total, losses.distill, losses.entropy, losses.region)):
                self.running[index] += float(loss.detach()) / config.views_per_iteration
        self.optimizer.step()
        if (iteration + 1) % config.log_every and iteration + 1 < config.iterations:
            return None
        averaged = (iteration % config.log_every) + 1
        self.history.append([float(iteration + 1), *(value / averaged for value in self.running)])
        self.running = [0.0] * len(self.running)
        return dict(zip(_LOSSES, self.history[-1], strict=True))

    def state(self, iteration: int) -> DistillState:
        """A copy of everything that the next iterations depend on."""
        tensors = {name: parameter.detach().clone() for name, parameter in self._parameters().items()}
        for name, parameter in self._parameters().items():
            tensors |= {
                f"adam.{entry}.{name}": value.clone() for entry, value in self.optimizer.state[parameter].items()
            }
        if self.subspace is not None:
            tensors["subspace"] = self.subspace.basis.clone()
        tensors["history"] = torch.tensor(self.history, dtype=torch.float64).reshape(-1, len(_LOSSES))
        tensors["running"] = torch.tensor(self.running, dtype=torch.float64)
        return DistillState(iteration, tensors)

    def restore(self, state: DistillState) -> None:
        """Go back to a state that ``state`` made."""
        parameters = self._parameters()
        expected = {name: list(parameter.shape) for name, parameter in parameters.items()}
        found = {name: list(state.tensors[name].shape) for name in expected if name in state.tensors}
        if found != expected:
            raise GagsError(
                f"distillation checkpoint: expected features {expected['features']} and decoders of this run, "
                f"found {found.get('features', 'none')}: it is of another scene or configuration, delete it and rerun"
            )
        for name, parameter in parameters.items():
            parameter.data.copy_(state.tensors[name])
            self.optimizer.state[parameter] = {
                entry: state.tensors[f"adam.{entry}.{name}"].clone() for entry in ("step", "exp_avg", "exp_avg_sq")
            }
        self.history = state.tensors["history"].tolist()
        self.running = state.tensors["running"].tolist()

    def finished(self, gaussians: Gaussians, encoder_name: str) -> LanguageField:
        """The field that was learned."""
        for decoder in self._decoders().values():
            decoder.requires_grad_(False)
        decoder, statistics = self.feature_decoder, {}
        if self.subspace is not None:
            decoder = decoder.out_of_subspace(self.subspace.basis.to(self.features.device))
            statistics = dict(self.subspace.statistics)
        meta = FieldMeta(
            kind="gad",
            feature_width=self.config.feature_width,
            embedding_width=decoder.embedding_width,
            encoder=encoder_name,
            statistics=statistics | {"history": [dict(zip(_LOSSES, row, strict=True)) for row in self.history]},
        )
        return LanguageField(gaussians, self.features.detach(), decoder, self.granularity_decoder, meta)

    def _losses(self, view: _TrainingView, generator: np.random.Generator, with_region: bool) -> ViewLosses:
        config = self.config
        blend = view.blend
        # All pixels by number: the gradient of ``render`` would keep a transposed copy of every view's matrix, twice
        # the memory, and save little beside the decoders.
        rows = blend.render_pixels(self.features, torch.arange(blend.height * blend.width))
        feature_map = rows.view(blend.height, blend.width, -1)
        count = config.pixels_per_iteration
        losses = view_losses(
            feature_map,
            self._granularity(feature_map),
            lambda pixel_ids: self._decode(rows[pixel_ids]),
            view.labels,
            None if count is None else (max(1, count // config.views_per_iteration), generator),
            # One level alone is a winner that is the same everywhere.
            "hard" if config.levels in ("s", "m", "l") else config.target,
            with_region,
            config.reference_quirks,
        )
        return losses if self.subspace is None else replace(losses, distill=losses.distill * self.subspace.loss_factor)

    def _granularity(self, feature_map: Float[Tensor, "height width d"]) -> Float[Tensor, "height width 3"]:
        if self.granularity_decoder is not None:
            with self._decoder_arithmetic(feature_map.device):
                # Detached: what the granularity decoder learns must not move the features (docs/method.md, stage 3).
                logits = self.granularity_decoder.logits(feature_map.detach())
            # of planes: a softmax of three neighbours is not vectorised
            return logits.float().movedim(-1, 0).contiguous().softmax(dim=0).movedim(0, -1)
        fixed = {"mean": (1 / 3, 1 / 3, 1 / 3), "s": (1.0, 0.0, 0.0), "m": (0.0, 1.0, 0.0), "l": (0.0, 0.0, 1.0)}
        return feature_map.new_tensor(fixed[self.config.levels]).expand(*feature_map.shape[:2], 3)

    def _decode(self, features: Float[Tensor, "row d"]) -> Float[Tensor, "row embedding"]:
        with self._decoder_arithmetic(features.device):
            vectors = self.feature_decoder.unnormalised(features)
        # Normalised in float32: bfloat16 has three digits, the residuals of a trained field are smaller.
        return functional.normalize(vectors.float(), dim=-1)

    def _decoder_arithmetic(self, device: torch.device) -> torch.autocast:
        wanted = self.config.decoder_dtype
        enabled = wanted == "bfloat16" or (wanted == "auto" and multiplies_bfloat16(device))
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)

    def _decoders(self) -> dict[str, nn.Module]:
        decoders: dict[str, nn.Module] = {"feature_decoder": self.feature_decoder}
        if self.granularity_decoder is not None:
            decoders["granularity_decoder"] = self.granularity_decoder
        return decoders

    def _parameters(self) -> dict[str, Tensor]:
        parameters: dict[str, Tensor] = {"features": self.features}
        for name, decoder in self._decoders().items():
            parameters |= {f"{name}.{entry}": parameter for entry, parameter in decoder.named_parameters()}
        return parameters


def _subspace(
    scene: Scene, embeddings: MaskEmbeddings, config: DistillConfig, resume: DistillState | None = None
) -> Subspace | None:
    """The subspace of the settings; None for the whole space."""
    if config.subspace_width is None or config.reference_quirks or not scene.training_views:
        return None
    began_with = resume.tensors.get("subspace") if resume is not None else None
    return target_subspace(scene.training_views, embeddings, config.subspace_width, began_with)


def _training_views(
    scene: Scene,
    gaussians: Gaussians,
    masks: GranularMasks,
    embeddings: MaskEmbeddings,
    config: DistillConfig,
    subspace: Subspace | None,
) -> list[_TrainingView]:
    """Labels and blend weights of the training views that have a labelled pixel."""
    if not scene.training_views:
        raise GagsError("distill: expected training views, found none; hold fewer views out")
    views = []
    for view in track(scene.training_views, "blend"):
        labels = view_labels(view, masks, embeddings, config.downscale)
        if (labels.label_maps < 0).all():
            logger.warning("view %s has no labelled pixel in %s: left out", view.name, [level.name for level in LEVELS])
            continue
        if subspace is not None:
            labels = replace(labels, embeddings=labels.embeddings @ subspace.basis.T)
        views.append(_TrainingView(labels, blend_weights(gaussians, labels.camera, min_weight=config.min_blend_weight)))
    if not views:
        raise GagsError(
            "distill: expected labelled pixels, found none in any training view; segment with lower thresholds"
        )
    return views


def _drawn_views(views: list[_TrainingView], iteration: int, config: DistillConfig) -> Iterator[_TrainingView]:
    """The views of an iteration: every epoch sees each once, in an order that the seed and the epoch decide."""
    for draw in range(config.views_per_iteration):
        epoch, place = divmod(iteration * config.views_per_iteration + draw, len(views))
        yield views[np.random.default_rng((config.seed, 0, epoch)).permutation(len(views))[place]]


def _initialise(decoder: nn.Module, generator: torch.Generator) -> None:
    """Uniform in +-1 / sqrt(inputs), torch's own choice for linear layers, from a generator."""
    for layer in decoder.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            with torch.no_grad():
                for parameter in (layer.weight, layer.bias):
                    parameter.copy_(torch.rand(parameter.shape, generator=generator) * (2 * bound) - bound)
