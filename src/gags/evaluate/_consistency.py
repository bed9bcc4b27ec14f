"""Multiview consistency: do the views agree about the features of what a Gaussian shows?

In every view that shows a Gaussian well enough, it is given the feature of one mask a level: the mask that covers the largest
part of its blend weights b. With n unit vectors u_v, one a view, the mean cosine over all pairs of different views has the closed
form (|sum_v u_v|^2 - n) / (n (n - 1)). GAGS claims that GaS and GaD both raise it; this measures it.

Only pixels that are labelled on all three levels count, as they do in the distillation, so that all levels are judged on the same
Gaussians in the same views. Agreement alone can be had for nothing (one mask over everything agrees with itself), so the
mean cosine between *different* Gaussians is given beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from gags.distill import LanguageField, ViewLabels, view_labels
from gags.encode import MaskEmbeddings
from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.progress import track
from gags.rasterize import BlendWeights, blend_weights
from gags.scene import Scene
from gags.segment import LEVELS, GranularMasks
from gags.settings import Count, Neutral, NonNegative, Share, check_settings


@dataclass(frozen=True)
class ConsistencyConfig:
    """Settings of the measurement."""

    downscale: Count = 2
    """The label maps and the blend weights are this many times smaller than the segmented images."""
    min_pixels: NonNegative = 0.1
    """A view counts for a Gaussian that has at least this much blend weight in it, summed over the labelled pixels."""
    min_blend_weight: Share = 1e-3
    """Blend weights (alpha x transmittance) below this are left out; saves memory and time."""
    memory_mb: Neutral[Count] = 2000
    """Memory of the sums. Scenes that need more are worked through in blocks of Gaussians, a pass over the views each."""


@dataclass(frozen=True)
class Consistency:
    """How well views agree, by what was compared: a level, the plain mean of the levels, or a field's mixture of them."""

    cosines: Mapping[str, Float[Tensor, " gaussian"]]
    """Mean cosine between two views of a Gaussian; not a number where fewer than two views show it."""
    between: Mapping[str, float]
    """Mean cosine between views of different Gaussians, of those seen in two views and more: what no agreement looks like."""
    view_counts: Int[Tensor, " gaussian"]
    """Views that show each Gaussian well enough."""

    def mean(self, name: str, among: Bool[Tensor, " gaussian"] | None = None) -> float:
        """Mean over the Gaussians (over those ``among`` them, if given) that two views or more show; all weigh the same."""
        cosines = self.cosines[name]
        return float(cosines[cosines.isfinite() if among is None else cosines.isfinite() & among].mean())

    def to_json(self) -> dict[str, Any]:
        """What ``metrics/consistency.json`` holds."""
        several = self.view_counts >= 2
        return {
            "n_gaussians": int(several.sum()),
            "share_of_gaussians": float(several.float().mean()),
            "mean_views": float(self.view_counts[several].float().mean()),
            "cosine": {
                name: {"same_gaussian": self.mean(name), "different_gaussians": self.between[name]}
                for name in self.cosines
            },
        }


def consistency(
    scene: Scene,
    gaussians: Gaussians,
    masks: GranularMasks,
    embeddings: MaskEmbeddings,
    config: ConsistencyConfig,
    fields: Mapping[str, LanguageField] | None = None,
) -> Consistency:
    """Measure the agreement of the training views.

    The names of the result are subpart, part, whole, mean, and for each of the fields its name (the levels mixed as the field
    weighs them there) and its name with "_hard" (only the level that it trusts most).

    Args:
        fields: fields that know granularity, by name: learned weights are taken per view, as they are rendered there and
            averaged over the Gaussian's pixels; a field's ``level_weights`` as they are.

    Raises:
        GagsError: settings out of range, no training view, masks or embeddings missing, a field that knows no granularity, or no
            Gaussian that two views show.
    """
    check_settings(config, "consistency.")
    fields = fields or {}
    for name, field in fields.items():
        if not field.knows_granularity:
            raise GagsError(
                f"consistency: expected fields that know granularity, found {name}, which does not; leave it out"
            )
    if not scene.training_views:
        raise GagsError("consistency: expected training views, found none; hold fewer views out")
    width = embeddings[scene.training_views[0].name].shape[1]
    names = [*(level.name.lower() for level in LEVELS), "mean"]
    names += [variant for name in fields for variant in (name, f"{name}_hard")]
    cosines = torch.full((len(names), len(gaussians)), torch.nan)
    totals, squares = torch.zeros(len(names), width, dtype=torch.float64), torch.zeros(len(names), dtype=torch.float64)
    view_counts = torch.zeros(len(gaussians), dtype=torch.int64)
    # beside the sums, a view's vectors of three levels and one row of the sums in float64 are alive
    size = max(1, config.memory_mb * 1_000_000 // (4 * width * (len(names) + 8)))
    for start in range(0, len(gaussians), size):
        block = torch.arange(start, min(start + size, len(gaussians)))
        sums, counts = _block_sums(scene, gaussians, masks, embeddings, config, fields, block, (len(names), width))
        several = counts >= 2
        view_counts[block] = counts
        n = counts[several].double()
        for index, row in enumerate(sums):
            kept = row[several].double()
            lengths_squared = kept.square().sum(dim=1)
            cosines[index, block[several]] = ((lengths_squared - n) / (n * (n - 1))).float()
            totals[index] += (kept / n[:, None]).sum(dim=0)
            squares[index] += (lengths_squared / n.square()).sum()
    found = int((view_counts >= 2).sum())
    if found == 0:
        raise GagsError(
            "consistency: expected Gaussians that two views show where all three levels are labelled, found none; segment with "
            "lower thresholds"
        )
    between = (totals.square().sum(dim=1) - squares) / max(1, found * (found - 1))
    return Consistency(
        dict(zip(names, cosines, strict=True)), dict(zip(names, between.tolist(), strict=True)), view_counts
    )


def _block_sums(
    scene: Scene,
    gaussians: Gaussians,
    masks: GranularMasks,
    embeddings: MaskEmbeddings,
    config: ConsistencyConfig,
    fields: Mapping[str, LanguageField],
    block: Int[Tensor, " block"],
    shape: tuple[int, int],
) -> tuple[Float[Tensor, "name block width"], Int[Tensor, " block"]]:
    """For some Gaussians: the sum of their unit vectors over the views, by what is compared, and how many views those are."""
    sums, counts = torch.zeros(shape[0], len(block), shape[1]), torch.zeros(len(block), dtype=torch.int64)
    for view in track(scene.training_views, "consistency"):
        labels = view_labels(view, masks, embeddings, config.downscale)
        blend = blend_weights(gaussians, labels.camera, min_weight=config.min_blend_weight)
        rows, assigned = assigned_masks(blend, labels.label_maps, block, config.min_pixels)
        vectors = labels.embeddings[assigned]
        trusts = [*torch.eye(3), torch.ones(3)]
        for field in fields.values():
            trust = _level_trust(field, labels, blend, block[rows])
            hardest = functional.one_hot(trust.argmax(dim=1), 3).float()
            trusts += [trust, hardest]
        for index, trust in enumerate(trusts):
            mixed = (vectors * trust[..., None]).sum(dim=1)
            sums[index, rows] += functional.normalize(mixed, dim=1)
        counts[rows] += 1
    return sums, counts


def assigned_masks(
    blend: BlendWeights,
    label_maps: Int[Tensor, "3 height width"],
    gaussian_ids: Int[Tensor, " block"],
    min_pixels: float,
) -> tuple[Int[Tensor, " seen"], Int[Tensor, "seen 3"]]:
    """Which of these Gaussians a view shows, and the mask of each level that most of their blend weight lies in.

    Args:
        min_pixels: least sum of blend weights, over the pixels labelled on all three levels, of a Gaussian that counts as shown.

    Returns:
        Rows of ``gaussian_ids``, ascending, and for each its label in the three levels (the smaller of equals).
    """
    valid = (label_maps >= 0).all(dim=0).flatten().numpy()
    columns = blend.columns
    shape = (blend.n_gaussians, blend.height * blend.width)
    matrix = sparse.csr_matrix((columns.weights.numpy(), columns.ids.numpy(), columns.starts.numpy()), shape=shape)
    matrix = matrix[gaussian_ids.numpy()][:, valid]
    # at least 1e-9: a Gaussian without any weight is not shown, whatever is asked for
    rows = np.flatnonzero(np.asarray(matrix.sum(axis=1)).ravel() >= max(min_pixels, 1e-9))
    matrix = matrix[rows]
    assigned = np.empty((len(rows), 3), np.int64)
    for level, label_map in enumerate(label_maps.flatten(1).numpy()):
        labels = label_map[valid]
        entries = (np.ones(len(labels), np.float32), (np.arange(len(labels)), labels))
        one_hot = sparse.csr_matrix(entries, shape=(len(labels), max(1, label_map.max() + 1)))
        shares = (matrix @ one_hot).tocsr()
        shares.sort_indices()
        row_of_entry = np.repeat(np.arange(len(rows)), np.diff(shares.indptr))
        largest = np.maximum.reduceat(shares.data, shares.indptr[:-1]) if len(rows) else shares.data
        best = np.flatnonzero(shares.data == largest[row_of_entry])[::-1]
        # backwards: of repeated rows the last assignment stays, which is the smallest label
        assigned[row_of_entry[best], level] = shares.indices[best]
    return torch.from_numpy(rows), torch.from_numpy(assigned)


def _level_trust(
    field: LanguageField, labels: ViewLabels, blend: BlendWeights, gaussian_ids: Int[Tensor, " seen"]
) -> Float[Tensor, "seen 3"]:
    """How much a field trusts each level at some Gaussians of a view, up to a factor."""
    if field.level_weights is not None:
        trust = field.level_weights[gaussian_ids]
    else:
        granularity = field.granularity(labels.camera)
        assert granularity is not None
        trust = blend.columns.times(granularity.flatten(0, 1), gaussian_ids)
    # what the field never saw trusts all levels alike
    return torch.where(trust.sum(dim=1, keepdim=True) > 0, trust, 1.0)
