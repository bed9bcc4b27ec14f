"""The lift: a language field in closed form, without training (docs/method.md, the three fields; Occam's LGS, BMVC 2025).

The blend-weighted mean of the views' targets, f = (sum_v B_v^T target_v) / (sum_v B_v^T 1), is linear in the targets:
projecting the masks' embeddings on a subspace first and averaging there gives the same as averaging first. So only
``feature_width`` channels are ever scattered, however wide the encoder is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from gags.distill._decoders import LinearDecoder
from gags.distill._field import FieldMeta, LanguageField
from gags.distill._targets import mixed_embeddings, view_labels
from gags.encode import MaskEmbeddings
from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.progress import track
from gags.rasterize import blend_weights
from gags.scene import Scene, View
from gags.segment import GranularMasks
from gags.settings import Count, Share, check_settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiftConfig:
    """Settings of the lift."""

    feature_width: Count = 128
    """d, dimension of the subspace of the encoder's space that the field lives in."""
    levels: Literal["mean", "s", "m", "l"] = "mean"
    """What a pixel gives to the Gaussians it sees: the mean of its labelled levels, or one level alone."""
    downscale: Count = 2
    """The label maps and the blend weights are this many times smaller than the segmented images."""
    min_blend_weight: Share = 1e-3
    """Blend weights (alpha x transmittance, 0..1) below this are left out; saves memory and time."""


def lift(
    scene: Scene,
    gaussians: Gaussians,
    masks: GranularMasks,
    embeddings: MaskEmbeddings,
    config: LiftConfig,
    encoder_name: str = "",
) -> LanguageField:
    """Give every Gaussian the direction of the blend-weighted mean of the embeddings of the masks it was seen in.

    Features are unit vectors, so that alpha-blending weighs directions by visibility alone; a Gaussian that no
    labelled pixel sees has a feature of 0, which decodes to 0.

    The field's statistics say what the subspace keeps of the mask embeddings (``explained_energy``,
    ``mean_mask_cosine``), how well views agree (``mean_resultant_length``, 1: all do) and how many Gaussians were
    seen (``seen_fraction``).

    Args:
        encoder_name: is noted in the field.

    Raises:
        GagsError: a setting out of range, no training view, a view without masks or embeddings, no labelled pixel anywhere.
    """
    check_settings(config, "lift.")
    views = scene.training_views
    if not views:
        raise GagsError("lift: expected training views, found none; hold fewer views out")
    basis, statistics = embedding_subspace(views, embeddings, config.feature_width)
    basis = basis.to(gaussians.means.device)
    sums = torch.zeros(len(gaussians), len(basis), device=basis.device)
    weights = torch.zeros(len(gaussians), device=basis.device)
    for view in track(views, "lift"):
        labels = view_labels(view, masks, embeddings, config.downscale)
        pixel_labels = labels.label_maps.flatten(1).T
        shares = _level_shares(pixel_labels, config.levels)
        targets = mixed_embeddings(pixel_labels, labels.embeddings @ basis.T, shares)
        blend = blend_weights(gaussians, labels.camera, min_weight=config.min_blend_weight)
        sums += blend.scatter(targets)
        weights += blend.scatter(shares.sum(dim=1, keepdim=True))[:, 0]
    seen = weights > 0
    if not seen.any():
        raise GagsError(
            "lift: expected labelled pixels, found none in any training view; segment with lower thresholds"
        )
    lengths = sums[seen].norm(dim=1) / weights[seen]
    statistics |= {
        "mean_resultant_length": float(lengths.mean()),
        "seen_fraction": float(seen.float().mean()),
    }
    logger.info(
        "lift: views agree on a splat with a mean resultant length of %.2f", statistics["mean_resultant_length"]
    )
    meta = FieldMeta("lift", basis.shape[0], basis.shape[1], encoder_name, dict(statistics))
    return LanguageField(gaussians, functional.normalize(sums, dim=1), LinearDecoder(basis), None, meta)


def embedding_subspace(
    views: tuple[View, ...], embeddings: Mapping[str, Float[Tensor, "mask embedding"]], width: int
) -> tuple[Float[Tensor, "d embedding"], dict[str, float]]:
    """The subspace that keeps most of the masks' embeddings (uncentred PCA), and how much it keeps.

    Every mask weighs the same, as every region does in the distillation: a wall of many Gaussians does not drown a cup.
    """
    missing = [view.name for view in views if view.name not in embeddings]
    if missing:
        raise GagsError(
            f"embeddings: expected those of every training view, found none of {missing[0]}; encode the masks again"
        )
    embedding_width = embeddings[views[0].name].shape[1]
    gram = torch.zeros(embedding_width, embedding_width, dtype=torch.float64)
    for view in views:
        # float64: the smallest eigenvalues of a Gram matrix lose half of the digits.
        vectors = embeddings[view.name].double()
        gram.addmm_(vectors.T, vectors)
    _, eigenvectors = torch.linalg.eigh(gram)
    basis = eigenvectors.flip(1)[:, : min(width, embedding_width)].T.float().contiguous()
    cosine = torch.cat([(embeddings[view.name].float() @ basis.T).norm(dim=1) for view in views])
    return basis, {
        "explained_energy": float(cosine.square().mean()),
        "mean_mask_cosine": float(cosine.mean()),
    }


def _level_shares(labels: Int[Tensor, "pixel 3"], levels: Literal["mean", "s", "m", "l"]) -> Float[Tensor, "pixel 3"]:
    """The share of each level in a pixel's target: equal among the labelled ones, or all to one; 0 if unlabelled."""
    labelled = (labels >= 0).float()
    if levels == "mean":
        # At least 1: a pixel without any label has no shares.
        return labelled / labelled.sum(dim=1, keepdim=True).clamp(min=1)
    return labelled * labelled.new_tensor([name == levels for name in ("s", "m", "l")])
