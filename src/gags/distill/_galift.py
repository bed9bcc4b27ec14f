"""The granularity-aware lift: what GaD learns, in closed form (docs/method.md, the three fields).

For Gaussian i and level g let s_g(i) = sum over views and pixels of b t_g, with b the blend weights and t_g the unit
features of the level-g masks. Its mean resultant length R_g(i) = |s_g(i)| / sum of b, in [0, 1], is 1 when all views agree
(Mardia and Jupp, *Directional Statistics*, 2000, section 9.2). Each Gaussian takes its feature from the levels that agree most,
where larger regions have a start: a patch of wall looks the same from everywhere, and says nothing. The choice is soft, as GaD's
is: where two levels are about as good, both speak. A mask's votes weigh as much as the other views confirm it
(``confirmations``): one that spills over two objects in this view alone has little to say.

Everything happens in the ``feature_width``-dimensional subspace that keeps most of the masks' embeddings. Projection P
shortens s_g by at most sum b |t_g - P t_g|, so R_g is low by at most the blend-weighted mean length of what the subspace
leaves out of the embeddings; with the width of the embeddings P is a rotation and R_g exact.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.nn import functional

from gags.distill._confirmation import confirmations, shown_labels
from gags.distill._decoders import LinearDecoder
from gags.distill._field import FieldMeta, LanguageField
from gags.distill._lift import embedding_subspace
from gags.distill._targets import view_labels
from gags.encode import MaskEmbeddings
from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.progress import track
from gags.rasterize import blend_weights
from gags.scene import Scene
from gags.segment import LEVELS, GranularMasks
from gags.settings import Count, Neutral, NonNegative, Positive, Share, check_settings

logger = logging.getLogger(__name__)

_SAMPLED_GAUSSIANS = 40_000
"""What masks are compared by: as many, evenly spread, tell their IoU to a percent or two."""


@dataclass(frozen=True)
class GaliftConfig:
    """Settings of the granularity-aware lift."""

    feature_width: Count = 256
    """d, dimension of the subspace of the encoder's space that the field lives in; the encoder's width: nothing is lost."""
    confirmation_power: NonNegative = 2.0
    """A mask's votes are multiplied by (how far the other views confirm it, 0..1) to this power. 0: all masks count alike."""
    size_prior: NonNegative = 0.35
    """What levels are compared by is R + size_prior x ln(region size / picture size), both blend-weighted means over the
    views. 0: agreement alone. At 0.35 a region twice as large makes up for an R that is lower by 0.24."""
    temperature: NonNegative = 0.25
    """On R's scale of 0..1: the levels' mean features are mixed with weights softmax(what they are compared by / temperature).
    0: a Gaussian takes the level that compares best alone."""
    downscale: Count = 2
    """The label maps and the blend weights are this many times smaller than the segmented images."""
    min_blend_weight: Share = 1e-3
    """Blend weights (alpha x transmittance, 0..1) below this are left out; saves memory and time."""
    memory_mb: Neutral[Positive] = 2000.0
    """Memory of all that grows with the Gaussians, in MB. Scenes that need more are worked through in blocks of Gaussians, a pass
    over the views each. What grows with views and masks (``_confirmation.py``) is not in it."""


def galift(
    scene: Scene,
    gaussians: Gaussians,
    masks: GranularMasks,
    embeddings: MaskEmbeddings,
    config: GaliftConfig,
    encoder_name: str = "",
) -> LanguageField:
    """Give every Gaussian the mean direction of the levels on which the views agree most about it.

    Features are unit vectors; a Gaussian that no labelled pixel sees has a feature of 0. The field's ``level_weights``
    say which levels each Gaussian trusts; its statistics what the subspace keeps of the mask embeddings
    (``explained_energy``, ``mean_mask_cosine``), the mean R of each level and of all as they are trusted, and how much
    each level is trusted.

    Args:
        encoder_name: is noted in the field.

    Raises:
        GagsError: settings out of range, no training view, a view without masks or embeddings, no labelled pixel anywhere.
    """
    check_settings(config, "galift.")
    if not scene.training_views:
        raise GagsError("galift: expected training views, found none; hold fewer views out")
    basis, statistics = embedding_subspace(scene.training_views, embeddings, config.feature_width)
    votes = _mask_votes(scene, gaussians, masks, embeddings, config)
    features, level_weights, lengths = (torch.zeros(len(gaussians), width) for width in (len(basis), 3, 3))
    for block in _blocks(len(gaussians), len(basis), config.memory_mb):
        means, log_sizes = _level_means(scene, gaussians, masks, embeddings, votes, basis, config, block)
        lengths[block] = means.norm(dim=2)
        level_weights[block] = trusted_levels(lengths[block], config.size_prior * log_sizes, config.temperature)
        mixed = torch.einsum("gl,gld->gd", level_weights[block], means)
        features[block] = functional.normalize(mixed, dim=1)
    seen = level_weights.sum(dim=1) > 0
    if not seen.any():
        raise GagsError(
            "galift: expected labelled pixels, found none in any training view; segment with lower thresholds"
        )
    statistics |= {
        "mean_resultant_length": float((level_weights * lengths)[seen].sum(dim=1).mean()),
        "seen_fraction": float(seen.float().mean()),
    }
    for level, name in enumerate(granularity.name.lower() for granularity in LEVELS):
        statistics[f"mean_resultant_length_{name}"] = float(lengths[seen, level].mean())
        statistics[f"trusted_{name}"] = float(level_weights[seen, level].mean())
    shares = (f"{100 * statistics[f'trusted_{level.name.lower()}']:.0f} % {level.name.lower()}" for level in LEVELS)
    logger.info("galift: splats trust %s", ", ".join(shares))
    meta = FieldMeta("galift", basis.shape[0], basis.shape[1], encoder_name, dict(statistics))
    return LanguageField(gaussians, features, LinearDecoder(basis), None, meta, level_weights)


def trusted_levels(
    lengths: Float[Tensor, "gaussian 3"], head_starts: Float[Tensor, "gaussian 3"], temperature: float
) -> Float[Tensor, "gaussian 3"]:
    """Weights of the levels, given how well the views agree on each; they add to 1, or to 0 where all lengths are 0.

    Args:
        lengths: mean resultant lengths in [0, 1]; 0 means that the level says nothing.
        head_starts: are added to the lengths before they are compared.
        temperature: 0 for one-hot (the first of equals), else that of a softmax over the levels that say something.
    """
    scores = (lengths + head_starts).masked_fill(lengths == 0, -torch.inf)
    if temperature == 0:
        weights = functional.one_hot(scores.argmax(dim=1), 3).to(lengths.dtype)
    else:
        # softmax of three minus infinities is not a number
        weights = (scores / temperature).softmax(dim=1).nan_to_num(0.0)
    return weights * (lengths > 0)


def _blocks(gaussian_count: int, width: int, memory_mb: float) -> Iterator[slice]:
    """Ranges of Gaussians whose sums fit the memory."""
    bytes_each = 4 * 3 * (width + 2)
    size = max(1, int(memory_mb * 1e6 / bytes_each))
    for start in range(0, gaussian_count, size):
        yield slice(start, min(start + size, gaussian_count))


def _mask_votes(
    scene: Scene, gaussians: Gaussians, masks: GranularMasks, embeddings: MaskEmbeddings, config: GaliftConfig
) -> dict[str, Float[Tensor, " mask"]]:
    """What the vote of each view's masks weighs."""
    views = scene.training_views
    if config.confirmation_power == 0:
        return {view.name: torch.ones(len(embeddings[view.name])) for view in views}
    rows = torch.arange(0, len(gaussians), -(-len(gaussians) // _SAMPLED_GAUSSIANS))
    shown = []
    for view in track(views, "galift: confirm"):
        labels = view_labels(view, masks, embeddings, config.downscale)
        blend = blend_weights(gaussians, labels.camera, min_weight=config.min_blend_weight)
        shown.append(shown_labels(gaussians.means, blend, labels.camera, labels.label_maps, rows))
    confirmed = confirmations(shown, [len(embeddings[view.name]) for view in views])
    return {view.name: values**config.confirmation_power for view, values in zip(views, confirmed, strict=True)}


def _level_means(
    scene: Scene,
    gaussians: Gaussians,
    masks: GranularMasks,
    embeddings: MaskEmbeddings,
    votes: Mapping[str, Float[Tensor, " mask"]],
    basis: Float[Tensor, "d embedding"],
    config: GaliftConfig,
    block: slice,
) -> tuple[Float[Tensor, "block 3 d"], Float[Tensor, "block 3"]]:
    """Blend-weighted means, for some Gaussians, of the features and of the logarithms of the sizes (shares of the picture)
    of the masks that show them; 0 for a level that never labelled the Gaussian."""
    sums = torch.zeros(block.stop - block.start, 3, len(basis) + 2)
    for view in track(scene.training_views, "galift"):
        labels = view_labels(view, masks, embeddings, config.downscale)
        label_maps = labels.label_maps.flatten(1).to(torch.int32)
        table = _mask_table(label_maps, labels.embeddings @ basis.T, votes[view.name])
        blend = blend_weights(gaussians, labels.camera, min_weight=config.min_blend_weight)
        blend.scatter_labels(label_maps, table, sums, block.start)
    # A level without labels has sums of 0, whatever its weight is raised to.
    means = sums[..., :-1].div_(sums[..., -1:].clamp(min=1e-12))
    return means[..., :-1], means[..., -1]


def _mask_table(
    labels: Int32[Tensor, "3 pixel"], vectors: Float[Tensor, "mask d"], votes: Float[Tensor, " mask"]
) -> Float[Tensor, "mask d_and_two"]:
    """Each mask's feature, the logarithm of its share of the picture, and 1, times what its vote weighs."""
    sizes = torch.bincount(labels[labels >= 0], minlength=len(vectors)) / labels.shape[1]
    # Masks that are painted over, and so have no size, are never looked up.
    columns = torch.stack([sizes.clamp(min=1e-12).log(), torch.ones(len(vectors))], dim=1)
    return votes[:, None] * torch.cat([vectors, columns], dim=1)
