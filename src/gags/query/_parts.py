"""Selections as sets in space: their largest connected part, the vote of everything within a radius."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from gags.query._query3d import neighbour_counts

# Connected: among the so many nearest of one of the two.
_LINKS = 10


def largest_part(
    selected: Bool[Tensor, " gaussian"], nearest: Int32[Tensor, "gaussian neighbour"]
) -> Bool[Tensor, " gaussian"]:
    """The largest part of a selection whose Gaussians are linked: one is among the 10 nearest of the other.

    Args:
        nearest: ``nearest_gaussians(means, count)`` with a count of 11 or more.
    """
    chosen = selected.numpy()
    ids = np.flatnonzero(chosen)
    if len(ids) == 0:
        return selected
    position = np.full(len(chosen), -1)
    position[ids] = np.arange(len(ids))
    links = position[nearest[torch.from_numpy(ids), : _LINKS + 1].numpy()]
    rows = np.repeat(np.arange(len(ids)), links.shape[1])
    inside = links.ravel() >= 0
    ends = (rows[inside], links.ravel()[inside])
    graph = coo_matrix((np.ones(len(ends[0]), np.int8), ends), shape=(len(ids), len(ids)))
    _, part = connected_components(graph, directed=False)
    kept = np.zeros_like(chosen)
    kept[ids[part == np.bincount(part).argmax()]] = True
    return torch.from_numpy(kept)


def smooth_within(
    means: Float[Tensor, "gaussian 3"], selected: Bool[Tensor, " gaussian"], radius: float
) -> Bool[Tensor, " gaussian"]:
    """Each Gaussian does as more than half of those within ``radius`` scene units do, itself included; at a tie it stays."""
    yes, all_of_them = neighbour_counts(means, torch.stack([selected, torch.ones_like(selected)]), radius)
    return (2 * yes > all_of_them) | ((2 * yes == all_of_them) & selected)
