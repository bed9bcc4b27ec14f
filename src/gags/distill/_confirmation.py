"""How far the other views confirm a mask: objects are cut out alike from everywhere, accidents of one picture are not.

A mask is, in 3D, the Gaussians that it shows. In every other view that sees most of them, the mask that is most alike (IoU of
the two sets, among the Gaussians that both views see) says how far that view confirms it. Here a view sees a Gaussian where it
shows and labels it: what it left unlabelled it says nothing about. The idea of telling objects by the views'
consensus is MaskClustering's (Yan et al., CVPR 2024), which merges masks by it; here it is what a mask's vote weighs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from torch import Tensor

from gags.geometry import Camera, project
from gags.rasterize import BlendWeights

_MIN_VIEWS = 3
"""Masks that fewer other views see have the median confirmation."""
_MIN_CONFIRMATION = 0.05
"""Of any mask: a Gaussian that nothing better shows still takes something."""
_MIN_SEEN = 0.05
"""Gaussians whose blend weights in a view add up to less are hidden there."""


def shown_labels(
    means: Float[Tensor, "gaussian 3"],
    blend: BlendWeights,
    camera: Camera,
    label_maps: Int[Tensor, "3 height width"],
    rows: Int[Tensor, " sample"],
) -> Int[Tensor, "3 sample"]:
    """On each level the mask that shows each of some Gaussians: the label at its centre; -1 where it is hidden or has none."""
    height, width = label_maps.shape[1:]
    xy_px, depth = project(camera, means[rows])
    inside = (depth > 0) & (xy_px >= 0).all(dim=1) & (xy_px[:, 0] < width) & (xy_px[:, 1] < height)
    seen = inside & (blend.scatter(torch.ones(height * width, 1))[rows, 0] >= _MIN_SEEN)
    columns, lines = torch.where(seen[:, None], xy_px, 0).long().unbind(dim=1)
    return torch.where(seen, label_maps[:, lines, columns], -1)


def confirmations(
    labels: Sequence[Int[Tensor, "3 sample"]], mask_counts: Sequence[int]
) -> list[Float[Tensor, " mask"]]:
    """For each view's masks the mean, over the other views that see more than half of their Gaussians, of the best IoU there.

    Args:
        labels: of each view, as ``shown_labels`` has them, of the same Gaussians everywhere.
        mask_counts: of each view.
    """
    first = np.concatenate([[0], np.cumsum(mask_counts)])
    n_masks, n_views, n_samples = int(first[-1]), len(labels), labels[0].shape[1]
    pairs = [(of_view.numpy() >= 0).nonzero() for of_view in labels]
    rows = np.concatenate([sample for _, sample in pairs])
    columns = np.concatenate(
        [of_view.numpy()[where] + start for of_view, where, start in zip(labels, pairs, first[:-1], strict=True)]
    )
    members = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), (n_samples, n_masks))
    # a mask that two levels share shows its Gaussians once
    members.data[:] = 1
    seen = torch.stack([(of_view >= 0).any(dim=0) for of_view in labels], dim=1).numpy().astype(np.float32)
    gaussians_of = members.T.tocsr()
    seen_of = np.asarray(gaussians_of @ seen)
    sizes = np.diff(gaussians_of.indptr)
    total, count = np.zeros(n_masks), np.zeros(n_masks)
    for view in range(n_views):
        own = np.arange(first[view], first[view + 1])
        if not sizes[own].any():
            continue
        shared = np.asarray((gaussians_of @ members[:, own]).todense())
        # of the other view's masks only the Gaussians that this mask's view sees count, and the other way round
        either = seen_of[:, [view]] + np.repeat(seen_of[own].T, mask_counts, axis=0) - shared
        best = (shared / np.maximum(either, 1)).max(axis=1)
        judged = (seen_of[:, view] > 0.5 * sizes) & (sizes > 0)
        judged[own] = False
        total[judged] += best[judged]
        count[judged] += 1
    return _filled(total, count, first)


def _filled(
    total: Float[np.ndarray, " mask"], count: Float[np.ndarray, " mask"], first: Int[np.ndarray, " view_bound"]
) -> list[Float[Tensor, " mask"]]:
    """Means by view; masks that too few views judge take the median, and none has less than the least."""
    judged: Bool[np.ndarray, " mask"] = count >= _MIN_VIEWS
    means = total / np.maximum(count, 1)
    means[~judged] = np.median(means[judged]) if judged.any() else 1.0
    values = torch.from_numpy(np.maximum(means, _MIN_CONFIRMATION)).float()
    return list(values.split(np.diff(first).tolist()))
