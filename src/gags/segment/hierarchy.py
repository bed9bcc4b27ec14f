"""The built-in segmenter, without weights: nested regions by colour, texture, depth and place.

Superpixels are merged pairwise by Ward's criterion (Ward 1963, through higra) over their mean features: the merge that adds least
to the variance inside regions comes first. A prompt's superpixel and all regions that contain it form a chain from small to
large; subpart, part and whole are its most persistent regions in three ranges of area. A region persists while the next merge
costs much more than its own: then it is a thing rather than a step on the way to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage
from torch import Tensor

from gags.segment._types import MaskProposals, Segmenter


@dataclass(frozen=True)
class HierarchyConfig:
    """Settings of the built-in segmenter."""

    n_superpixels: int = 1200
    """Smallest regions in an image."""
    compactness: float = 0.1
    """How square superpixels are: small follows edges closely."""
    color_weight: float = 1.0
    """Of the mean colour (CIE Lab / 100)."""
    texture_weight: float = 0.7
    """Of the local standard deviation of the lightness (/ 100)."""
    place_weight: float = 0.35
    """Of the position in the image (in units of its longer side)."""
    depth_weight: float = 0.35
    """Of the logarithm of the rendered depth."""
    area_ranges: tuple[tuple[float, float], tuple[float, float], tuple[float, float]] = (
        (0.0005, 0.012),
        (0.004, 0.06),
        (0.02, 0.4),
    )
    """Areas of subparts, parts and wholes, as shares of the image."""
    stability_offset: float = 1.1
    """Stability compares the regions at the threshold divided and multiplied by this."""


def make_segmenter(name: Literal["hierarchy"] = "hierarchy") -> Segmenter:
    """The segmenter of a name."""
    return {"hierarchy": HierarchySegmenter}[name]()


class HierarchySegmenter:
    """Nested regions from a hierarchy of superpixels: a ``Segmenter`` without weights."""

    def __init__(self, config: HierarchyConfig | None = None) -> None:
        self.config = config or HierarchyConfig()
        self.name = f"hierarchy, {self.config}"

    def prepare(
        self, image: UInt8[Tensor, "height width 3"], depth: Float[Tensor, "height width"] | None
    ) -> RegionTree:
        """Superpixels and their merge tree."""
        superpixels, features = _superpixels(image.numpy(), None if depth is None else depth.numpy(), self.config)
        return RegionTree(superpixels, _ward_tree(superpixels, features), self.config)


def _superpixels(
    image: UInt8[np.ndarray, "height width 3"], depth: Float[np.ndarray, "height width"] | None, config: HierarchyConfig
) -> tuple[Int[np.ndarray, "height width"], Float[np.ndarray, "superpixel feature"]]:
    """Superpixel of each pixel, numbered from 0, and the mean features of each."""
    from skimage.color import rgb2lab
    from skimage.segmentation import slic

    lab = rgb2lab(image).astype(np.float32)
    superpixels = slic(
        ndimage.gaussian_filter(lab, (0.7, 0.7, 0)),
        n_segments=config.n_superpixels,
        compactness=config.compactness,
        convert2lab=False,
        start_label=0,
        max_num_iter=5,
    )
    height, width = superpixels.shape
    v, u = np.indices((height, width), dtype=np.float32) / max(height, width)
    mean = ndimage.gaussian_filter(lab[..., 0], 2.0)
    # rounding can leave a variance of a flat patch just below zero
    deviation = np.sqrt(np.maximum(ndimage.gaussian_filter(lab[..., 0] ** 2, 2.0) - mean**2, 0))
    channels = [
        *(config.color_weight / 100 * lab).transpose(2, 0, 1),
        config.texture_weight / 100 * deviation,
        config.place_weight * u,
        config.place_weight * v,
    ]
    if depth is not None and (depth > 0).any():
        # pixels without a depth take the median: they neither join nor split anything
        filled = np.where(depth > 0, depth, np.median(depth[depth > 0]))
        channels.append(config.depth_weight * ndimage.median_filter(np.log(filled), 3))
    count = int(superpixels.max()) + 1
    area = np.bincount(superpixels.ravel(), minlength=count)
    sums = [np.bincount(superpixels.ravel(), channel.ravel(), minlength=count) for channel in channels]
    return superpixels, np.stack(sums, axis=1) / area[:, None]


@dataclass(frozen=True)
class MergeTree:
    parents: Int[np.ndarray, " node"]
    """Parent of each node; the root is its own. Leaves come first, a parent after its children."""
    altitudes: Float[np.ndarray, " node"]
    """Cost of the merge that made the node; 0 for leaves. Never above its parent's."""
    areas: Int[np.ndarray, " node"]
    """Pixels of the node."""
    first: Int[np.ndarray, " node"]
    """Where the node's superpixels begin when superpixels are numbered along the tree."""
    last: Int[np.ndarray, " node"]
    """Where they end, exclusive."""


def _ward_tree(
    superpixels: Int[np.ndarray, "height width"], features: Float[np.ndarray, "superpixel feature"]
) -> MergeTree:
    """Merge neighbouring superpixels by Ward's criterion until one region is left."""
    import higra

    pairs = np.concatenate(
        [
            np.stack([superpixels[:, :-1].ravel(), superpixels[:, 1:].ravel()], axis=1),
            np.stack([superpixels[:-1].ravel(), superpixels[1:].ravel()], axis=1),
        ]
    )
    pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1), axis=0)
    graph = higra.UndirectedGraph(len(features))
    graph.add_edges(pairs[:, 0], pairs[:, 1])
    area = np.bincount(superpixels.ravel(), minlength=len(features))
    tree, altitudes = higra.binary_partition_tree_ward_linkage(
        graph, features.astype(np.float64), vertex_sizes=area.astype(np.float64), altitude_correction="max"
    )
    parents = np.asarray(tree.parents()).astype(np.int64)
    areas = np.concatenate([area, np.zeros(len(parents) - len(area), area.dtype)])
    counts = np.concatenate([np.ones(len(area), np.int64), np.zeros(len(parents) - len(area), np.int64)])
    for node in range(len(parents) - 1):
        areas[parents[node]] += areas[node]
        counts[parents[node]] += counts[node]
    # from the root down, children divide their parent's stretch of the numbering between them
    first, free = np.zeros(len(parents), np.int64), np.zeros(len(parents), np.int64)
    for node in range(len(parents) - 2, -1, -1):
        first[node] = free[node] = free[parents[node]]
        free[parents[node]] += counts[node]
    return MergeTree(parents, np.asarray(altitudes), areas, first, first + counts)


class RegionTree:
    """An image's superpixels and merge tree, ready for prompts (a ``PreparedImage``)."""

    def __init__(self, superpixels: Int[np.ndarray, "height width"], tree: MergeTree, config: HierarchyConfig) -> None:
        self._superpixels = superpixels
        self._tree = tree
        self._order = tree.first[superpixels]
        self._config = config
        self._answers: dict[int, tuple[list[int], list[float], list[float]]] = {}

    def propose(self, points_xy_px: Float[Tensor, "prompt 2"]) -> MaskProposals:
        """Subpart, part and whole around each point."""
        height, width = self._superpixels.shape
        columns = points_xy_px[:, 0].long().clamp(0, width - 1).numpy()
        rows = points_xy_px[:, 1].long().clamp(0, height - 1).numpy()
        answers = [self._answer(int(leaf)) for leaf in self._superpixels[rows, columns]]
        nodes = np.array([answer[0] for answer in answers], dtype=np.int64).reshape(-1, 3)
        distinct, where = np.unique(nodes, return_inverse=True)
        masks = np.stack([self._mask(int(node)) for node in distinct])
        return MaskProposals(
            masks=torch.from_numpy(masks[where.reshape(nodes.shape)]),
            predicted_iou=torch.tensor([answer[1] for answer in answers]).reshape(-1, 3),
            stability=torch.tensor([answer[2] for answer in answers]).reshape(-1, 3),
        )

    def _answer(self, leaf: int) -> tuple[list[int], list[float], list[float]]:
        """Nodes of the three levels around a superpixel, with their predicted IoU and stability."""
        if leaf not in self._answers:
            chain = [leaf]
            while self._tree.parents[chain[-1]] != chain[-1]:
                chain.append(int(self._tree.parents[chain[-1]]))
            self._answers[leaf] = self._choose(np.array(chain))
        return self._answers[leaf]

    def _choose(self, chain: Int[np.ndarray, " node"]) -> tuple[list[int], list[float], list[float]]:
        share = self._tree.areas[chain] / self._superpixels.size
        own = self._tree.altitudes[chain]
        following = np.append(own[1:], own[-1])
        # a leaf was made at no cost: it persists as if half its parent's had been paid
        own = np.where(own > 0, own, following / 2)
        persistence = 1 - np.divide(own, following, out=np.ones_like(own), where=following > 0)
        # the whole image, which nothing follows, is no region to look for
        persistence[-1] = 0
        nodes, ious, stabilities = [], [], []
        first = 0
        for low, high in self._config.area_ranges:
            within = np.flatnonzero((share >= low) & (share <= high) & (np.arange(len(chain)) >= first))
            # no region of that size around the point: the next larger one
            place = int(within[persistence[within].argmax()]) if within.size else max(first, int((share < low).sum()))
            place = min(place, len(chain) - 1)
            first = place
            nodes.append(int(chain[place]))
            # a region that outlasts its making is trusted; none below 0.75, so that every pixel keeps some region
            ious.append(0.75 + 0.25 * float(persistence[place]))
            stabilities.append(self._stability(chain, own, following, place))
        return nodes, ious, stabilities

    def _stability(
        self,
        chain: Int[np.ndarray, " node"],
        own: Float[np.ndarray, " node"],
        following: Float[np.ndarray, " node"],
        place: int,
    ) -> float:
        """Area just below the region's threshold over area just above it, 0.9 to 1 (stability score of SAM)."""
        threshold = (own[place] * following[place]) ** 0.5
        low = int((own <= threshold / self._config.stability_offset).sum()) - 1
        high = int((own <= threshold * self._config.stability_offset).sum()) - 1
        areas = self._tree.areas[chain]
        return 0.9 + 0.1 * float(areas[max(low, 0)] / areas[max(high, 0)])

    def _mask(self, node: int) -> Bool[np.ndarray, "height width"]:
        """Pixels of a node: its superpixels are neighbours in the tree's order."""
        return (self._order >= self._tree.first[node]) & (self._order < self._tree.last[node])
