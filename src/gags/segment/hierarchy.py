"""The built-in segmenter, without weights: nested regions by colour, texture, outline and depth.

A watershed hierarchy by area (Cousty and Najman 2011, through higra) cuts the image into superpixels, which are then merged
pairwise, most alike first. Alike are regions whose colours and textures are distributed alike (histogram intersection, as in
selective search, Uijlings et al. 2013: a patterned rug stays one thing), with no edge between them and of which one is small.
Three cuts of the merge tree, for subparts, parts and wholes, each choose the regions that are distinct: those that differ most
from what they would be merged with next, and that are of the size expected of them, in the scene rather than in the picture: a
thing is to be one region from near and from far. Every cut tiles the image, and a finer cut tiles each region of a coarser one, so
a prompt gets the three regions around it, nested, and all prompts agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage
from torch import Tensor

from gags.segment._types import MaskProposals


@dataclass(frozen=True)
class HierarchyConfig:
    """Settings of the built-in segmenter."""

    n_superpixels: int = 1200
    """Smallest regions in an image."""
    gamma: float = 0.5
    """Photographs are raised to this power (1: as they are): spreads the dark tones in which indoor objects differ little."""
    superpixel_blur_px: float = 1.2
    """Standard deviation at which the superpixels' edges are taken."""
    edge_blurs_px: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Standard deviations at which edges between regions are taken, averaged: fine texture has no edges at the coarse ones."""
    edge_scale: float = 15.0
    """Colour change (CIE Lab units) within a standard deviation that counts as a full edge."""
    depth_edge_scale: float = 0.1
    """Relative change of the rendered depth from pixel to pixel that counts as a full edge."""
    n_bins: int = 16
    """Bins of each colour histogram."""
    color_weight: float = 1.0
    """Of the difference of the colour histograms, in merging."""
    texture_weight: float = 0.7
    """Of the difference of the histograms of gradient strength."""
    edge_weight: float = 1.5
    """Of the mean edge along the common border."""
    depth_weight: float = 0.75
    """Of the mean depth edge along the common border: low, for rendered depth is noisy."""
    size_exponent: float = 0.7
    """A merge costs in proportion to the smaller region's area to this power: small regions are merged first."""
    typical_areas: tuple[float, float, float] = (0.005, 0.025, 0.1)
    """Areas that subparts, parts and wholes are expected to have, as shares of the image, from where views usually see them."""
    depth_exponent: float = 2.0
    """What is seen from d times its usual depth counts as d to this power as large. 2: a thing is the same region from near and
    from far. 0: regions take the same shares of every picture, and near views cut to pieces what is whole from afar."""
    depth_reach: float = 4.0
    """What is further from its usual depth than by this factor counts as this far: there the rendered depth is likely wrong."""
    area_spread: float = 0.9
    """How far areas may be from the typical ones: a standard deviation of the natural logarithm."""
    stability_offset: float = 1.1
    """Stability compares the regions at the threshold divided and multiplied by this."""


class HierarchySegmenter:
    """Nested regions from a hierarchy of superpixels: a ``Segmenter`` without weights."""

    def __init__(self, config: HierarchyConfig | None = None) -> None:
        self.config = config or HierarchyConfig()
        self.name = f"hierarchy, {self.config}"

    def prepare(
        self,
        image: UInt8[Tensor, "height width 3"],
        depth: Float[Tensor, "height width"] | None,
        relative_depth: Float[Tensor, "height width"] | None = None,
    ) -> RegionTree:
        """Superpixels, their merge tree and its three cuts."""
        from skimage.color import rgb2lab

        lab = rgb2lab((image.numpy() / 255.0) ** self.config.gamma).astype(np.float32)
        depth_edges = np.zeros(lab.shape[:2], np.float32)
        if depth is not None and (depth > 0).any():
            depth_edges = self.config.depth_weight * _depth_edges(depth.numpy(), self.config.depth_edge_scale)
        superpixels = _superpixels(lab, depth_edges, self.config)
        histograms = _histograms(lab, superpixels, self.config)
        edges = self.config.edge_weight * _color_edges(lab, self.config) + depth_edges
        tree = _merge_tree(superpixels, histograms, edges, self.config)
        return RegionTree(superpixels, tree, _sizes(superpixels, tree, relative_depth, self.config), self.config)


def _gradient(lab: Float[np.ndarray, "height width 3"], blur_px: float) -> Float[np.ndarray, "height width"]:
    """Strength of the colour gradient at a scale, in Lab units per standard deviation of the blur."""
    squares = [
        ndimage.gaussian_filter(lab, (blur_px, blur_px, 0), order=order) ** 2 for order in ((0, 1, 0), (1, 0, 0))
    ]
    return blur_px * np.sqrt(np.sum(squares, axis=(0, 3)))


def _color_edges(
    lab: Float[np.ndarray, "height width 3"], config: HierarchyConfig
) -> Float[np.ndarray, "height width"]:
    """How much of an edge each pixel is by its colours, 0..1: the mean over scales."""
    return np.mean([np.minimum(_gradient(lab, blur) / config.edge_scale, 1) for blur in config.edge_blurs_px], axis=0)


def _depth_edges(depth: Float[np.ndarray, "height width"], edge_scale: float) -> Float[np.ndarray, "height width"]:
    """How much of an edge each pixel is by its depth, 0..1."""
    # Pixels without a depth take that of the nearest pixel with one, so that the rim of a hole in the depth is no edge.
    nearest = ndimage.distance_transform_edt(depth <= 0, return_distances=False, return_indices=True)
    log_depth = ndimage.median_filter(np.log(depth[tuple(nearest)]), 5)
    # Sobel's weights on either side add up to 4, and the sides are two pixels apart.
    step = np.hypot(ndimage.sobel(log_depth, 0), ndimage.sobel(log_depth, 1)) / 8
    return np.minimum(step / edge_scale, 1)


def _superpixels(
    lab: Float[np.ndarray, "height width 3"],
    depth_edges: Float[np.ndarray, "height width"],
    config: HierarchyConfig,
) -> Int[np.ndarray, "height width"]:
    """Superpixel of each pixel, numbered from 0."""
    import higra

    # A full edge in colour and one in depth weigh the same in Lab units, before the depth's weight.
    gradient = (_gradient(lab, config.superpixel_blur_px) + config.edge_scale * depth_edges).astype(np.float64)
    graph = higra.get_4_adjacency_graph(gradient.shape)
    weights = higra.weight_graph(graph, gradient, higra.WeightFunction.mean)
    tree, altitudes = higra.watershed_hierarchy_by_area(graph, weights)
    count = min(config.n_superpixels, gradient.size)
    labels = higra.labelisation_horizontal_cut_from_num_regions(tree, altitudes, count)
    return np.unique(labels, return_inverse=True)[1].reshape(gradient.shape)


def _soft_bins(
    values: Float[np.ndarray, "height width"], low: float, high: float, n: int
) -> Float[np.ndarray, "bin pixel"]:
    """Share of each pixel in the two bins nearest to its value."""
    position = np.clip((values.ravel() - low) / (high - low), 0, 1) * (n - 1)
    return np.maximum(0, 1 - np.abs(position[None] - np.arange(n)[:, None]))


def _histograms(
    lab: Float[np.ndarray, "height width 3"], superpixels: Int[np.ndarray, "height width"], config: HierarchyConfig
) -> Float[np.ndarray, "superpixel feature"]:
    """Pixels of each superpixel by colour and by gradient strength; the weighted L1 distance of two rows compares regions."""
    soft = ndimage.gaussian_filter(lab, (0.8, 0.8, 0))
    color_ranges = ((0.0, 100.0), (-40.0, 40.0), (-40.0, 40.0))
    # Two distributions without overlap are at L1 distance 2: three channels then add up to the weight.
    parts = [config.color_weight / 6 * _soft_bins(soft[..., c], *r, config.n_bins) for c, r in enumerate(color_ranges)]
    texture = np.log1p(_gradient(lab, 1.0))
    parts.append(config.texture_weight / 2 * _soft_bins(texture, 0.0, 3.2, 8))
    count, owner = int(superpixels.max()) + 1, superpixels.ravel()
    return np.stack([np.bincount(owner, row, minlength=count) for part in parts for row in part], axis=1)


@dataclass(frozen=True)
class MergeTree:
    """A binary tree of regions; superpixels come first, a parent after its children, the root last."""

    parents: Int[np.ndarray, " node"]
    """Parent of each node; the root is its own."""
    altitudes: Float[np.ndarray, " node"]
    """Cost of the merge that made the node; 0 for superpixels. Never above its parent's."""
    areas: Int[np.ndarray, " node"]
    """Pixels of the node."""
    first: Int[np.ndarray, " node"]
    """Where the node's superpixels begin when superpixels are numbered along the tree."""
    last: Int[np.ndarray, " node"]
    """Where they end, exclusive."""


class _Merging:
    """What the merges keep up to date: histograms and areas of the regions, length and strength of their borders."""

    def __init__(
        self,
        superpixels: Int[np.ndarray, "height width"],
        histograms: Float[np.ndarray, "superpixel feature"],
        edges: Float[np.ndarray, "height width"],
        config: HierarchyConfig,
    ) -> None:
        count = len(histograms)
        self._exponent, self._n_pixels = config.size_exponent, superpixels.size
        self.histograms = np.concatenate([histograms, np.zeros((count - 1, histograms.shape[1]))])
        self.areas = np.bincount(superpixels.ravel(), minlength=2 * count - 1)
        sides = ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1, :], np.s_[1:, :]))
        pairs = np.concatenate([np.stack([superpixels[a].ravel(), superpixels[b].ravel()]) for a, b in sides], axis=1)
        strength = np.concatenate([np.maximum(edges[a], edges[b]).ravel() for a, b in sides])
        border = pairs[0] != pairs[1]
        low, high = pairs[:, border].min(0), pairs[:, border].max(0)
        keys, which = np.unique(low * count + high, return_inverse=True)
        self.pairs = np.stack([keys // count, keys % count])
        self.lengths = np.bincount(which).astype(np.float64).tolist()
        self.strengths = np.bincount(which, strength[border]).tolist()

    def costs(
        self, a: Int[np.ndarray, " border"] | int, b: Int[np.ndarray, " border"], edge: Float[np.ndarray, " border"]
    ) -> Float[np.ndarray, " border"]:
        """Cost of merging regions a and b with this mean edge along their border."""
        area_a, area_b = self.areas[a], self.areas[b]
        difference = np.abs(self.histograms[a] / area_a[..., None] - self.histograms[b] / area_b[..., None]).sum(-1)
        share = np.minimum(area_a, area_b) / self._n_pixels
        # Without the constant, regions exactly alike would be merged at no cost whatever their sizes.
        return (difference + edge + 0.02) * share**self._exponent

    def __call__(self, graph: Any, border: int, merged: int, child_a: int, child_b: int, neighbours: Any) -> None:
        """Higra's callback: the costs of a new region's borders."""
        self.areas[merged] = self.areas[child_a] + self.areas[child_b]
        self.histograms[merged] = self.histograms[child_a] + self.histograms[child_b]
        around = list(neighbours)
        if not around:
            return
        edge = np.empty(len(around))
        for i, neighbour in enumerate(around):
            index, new = neighbour.first_edge_index(), neighbour.new_edge_index()
            length, strength = self.lengths[index], self.strengths[index]
            if neighbour.num_edges() > 1:
                other = neighbour.second_edge_index()
                length, strength = length + self.lengths[other], strength + self.strengths[other]
            if new >= len(self.lengths):
                self.lengths += [0.0] * (new + 1 - len(self.lengths))
                self.strengths += [0.0] * (new + 1 - len(self.strengths))
            self.lengths[new], self.strengths[new] = length, strength
            edge[i] = strength / length
        others = np.array([neighbour.neighbour_vertex() for neighbour in around])
        for neighbour, cost in zip(around, self.costs(merged, others, edge).tolist(), strict=True):
            neighbour.set_new_edge_weight(cost)


def _merge_tree(
    superpixels: Int[np.ndarray, "height width"],
    histograms: Float[np.ndarray, "superpixel feature"],
    edges: Float[np.ndarray, "height width"],
    config: HierarchyConfig,
) -> MergeTree:
    """Merge neighbouring superpixels, the cheapest merge first, until one region is left."""
    import higra

    count = len(histograms)
    if count == 1:
        one = np.zeros(1, np.int64)
        return MergeTree(one, np.zeros(1), one + superpixels.size, one, one + 1)
    merging = _Merging(superpixels, histograms, edges, config)
    graph = higra.UndirectedGraph(count)
    graph.add_edges(merging.pairs[0], merging.pairs[1])
    edge = np.array(merging.strengths) / np.array(merging.lengths)
    tree, made_at = higra.binary_partition_tree(graph, merging, merging.costs(merging.pairs[0], merging.pairs[1], edge))
    # higra does not call for the last merge, which leaves no border
    merging.areas[-1] = superpixels.size
    parents = np.asarray(tree.parents()).astype(np.int64)
    altitudes = np.array(made_at)
    counts = np.concatenate([np.ones(count, np.int64), np.zeros(count - 1, np.int64)])
    for node in range(len(parents) - 1):
        counts[parents[node]] += counts[node]
        # A merge can cost less than those before it: it happens no earlier all the same.
        altitudes[parents[node]] = max(altitudes[parents[node]], altitudes[node])
    # From the root down, children divide their parent's stretch of the numbering between them.
    first, free = np.zeros(len(parents), np.int64), np.zeros(len(parents), np.int64)
    for node in range(len(parents) - 2, -1, -1):
        first[node] = free[node] = free[parents[node]]
        free[parents[node]] += counts[node]
    return MergeTree(parents, altitudes, merging.areas, first, first + counts)


def _distinctness(tree: MergeTree, config: HierarchyConfig) -> Float[np.ndarray, " node"]:
    """How much each region differs from what it is merged with, for its size, 0..1."""
    share = tree.areas / tree.areas[-1]
    difference = tree.altitudes[tree.parents] / share**config.size_exponent
    # The whole image, which nothing follows, is no region to look for.
    difference[-1] = 0
    return difference / (difference + 1)


def _sizes(
    superpixels: Int[np.ndarray, "height width"],
    tree: MergeTree,
    relative_depth: Float[Tensor, "height width"] | None,
    config: HierarchyConfig,
) -> Float[np.ndarray, " node"]:
    """Share of the image that each region would take where views usually see it from."""
    if relative_depth is None:
        return tree.areas / superpixels.size
    relative = relative_depth.numpy().clip(1 / config.depth_reach, config.depth_reach)
    sizes = np.zeros(len(tree.parents))
    counted = np.bincount(superpixels.ravel(), relative.ravel() ** config.depth_exponent / superpixels.size)
    sizes[: len(counted)] = counted
    for node in range(len(sizes) - 1):
        sizes[tree.parents[node]] += sizes[node]
    return sizes


def _cuts(
    tree: MergeTree, sizes: Float[np.ndarray, " node"], config: HierarchyConfig
) -> Int[np.ndarray, "3 superpixel"]:
    """The subpart, part and whole that hold each superpixel.

    Of all ways to tile the image with regions of the tree, a cut takes the one with the largest area-weighted mean of
    (distinctness x how typical the size is), found from the leaves up (optimal cuts, Guigues et al. 2006); finer cuts stay
    within the regions of the coarser one.
    """
    distinctness, n_nodes = _distinctness(tree, config), len(tree.parents)
    n_leaves = (n_nodes + 1) // 2
    holders = np.zeros((3, n_leaves), np.int64)
    inside = np.ones(n_nodes, bool)
    for level in (2, 1, 0):
        off = np.log(sizes / config.typical_areas[level]) / config.area_spread
        # A little is gained even by the least distinct region, so that areas decide between such.
        gain = tree.areas * (0.05 + distinctness) * np.exp(-0.5 * off**2)
        # Nodes above the coarser cut are no choice.
        gain = np.where(inside, gain, -1.0)
        below = np.zeros(n_nodes)
        for node in range(n_nodes - 1):
            below[tree.parents[node]] += max(gain[node], below[node])
        # Each node's holder: the highest ancestor (or itself) that beats the best tiling of its inside.
        holder = np.full(n_nodes, -1)
        for node in range(n_nodes - 1, -1, -1):
            above = holder[tree.parents[node]]
            holder[node] = above if above >= 0 else (node if gain[node] >= below[node] or node < n_leaves else -1)
        holders[level] = holder[:n_leaves]
        inside = holder >= 0
    return holders


def _fullness(masks: Bool[np.ndarray, "mask height width"]) -> Float[np.ndarray, " mask"]:
    """Share of its bounding box that each mask fills."""
    columns, rows = np.any(masks, axis=1), np.any(masks, axis=2)
    widths, heights = (x.shape[1] - x.argmax(1) - x[:, ::-1].argmax(1) for x in (columns, rows))
    return masks.sum((1, 2)) / (widths * heights)


class RegionTree:
    """An image's superpixels and merge tree, ready for prompts (a ``PreparedImage``)."""

    def __init__(
        self,
        superpixels: Int[np.ndarray, "height width"],
        tree: MergeTree,
        sizes: Float[np.ndarray, " node"],
        config: HierarchyConfig,
    ) -> None:
        self._superpixels = superpixels
        self._tree = tree
        self._order = tree.first[superpixels]
        self._config = config
        self._distinctness = _distinctness(tree, config)
        self._holders = _cuts(tree, sizes, config)
        n_leaves = (len(tree.parents) + 1) // 2
        self._larger_child_areas = tree.areas.copy()
        self._larger_child_areas[n_leaves:] = 0
        np.maximum.at(self._larger_child_areas, tree.parents[:-1], tree.areas[:-1])

    def distinct_prompts(self, points_xy_px: Float[Tensor, "prompt 2"]) -> Float[Tensor, "distinct 2"]:
        """The first point in each subpart: part and whole follow from it."""
        _, first = np.unique(self._nodes_at(points_xy_px)[:, 0], return_index=True)
        return points_xy_px[np.sort(first)]

    def propose(self, points_xy_px: Float[Tensor, "prompt 2"]) -> MaskProposals:
        """Subpart, part and whole around each point."""
        height, width = self._superpixels.shape
        nodes = self._nodes_at(points_xy_px)
        distinct, where = np.unique(nodes, return_inverse=True)
        where = where.reshape(nodes.shape)
        masks = np.zeros((len(distinct), height, width), bool)
        for mask, node in zip(masks, distinct, strict=True):
            mask[:] = self._mask(int(node))
        # What differs from its surroundings is trusted more. What fills its box is, too: the boxes of a frame and its picture
        # overlap so much that box suppression leaves one of them, which should be the picture.
        ious = 0.78 + 0.12 * self._distinctness[distinct] + 0.1 * _fullness(masks)
        stabilities = np.array([self._stability(int(node)) for node in distinct])
        return MaskProposals(
            masks=torch.from_numpy(masks[where]),
            predicted_iou=torch.from_numpy(ious[where]).float(),
            stability=torch.from_numpy(stabilities[where]).float(),
        )

    def _nodes_at(self, points_xy_px: Float[Tensor, "prompt 2"]) -> Int[np.ndarray, "prompt 3"]:
        """Subpart, part and whole around each point, as nodes of the tree."""
        height, width = self._superpixels.shape
        columns = points_xy_px[:, 0].long().clamp(0, width - 1).numpy()
        rows = points_xy_px[:, 1].long().clamp(0, height - 1).numpy()
        return self._holders[:, self._superpixels[rows, columns]].T

    def _stability(self, node: int) -> float:
        """Area just below the region's threshold over area just above it, 0.9 to 1 (stability score of SAM).

        The threshold is half-way (geometrically) between the altitudes of the region and its parent.
        """
        parents, altitudes, areas = self._tree.parents, self._tree.altitudes, self._tree.areas
        parent = parents[node]
        own = altitudes[node] if altitudes[node] > 0 else altitudes[parent] / 2
        threshold = (own * altitudes[parent]) ** 0.5
        above = node
        while parents[above] != above and altitudes[parents[above]] <= threshold * self._config.stability_offset:
            above = int(parents[above])
        # A region made above the lower threshold is in pieces there: the larger of them counts.
        below = areas[node] if own <= threshold / self._config.stability_offset else self._larger_child_areas[node]
        return 0.9 + 0.1 * float(below / areas[above])

    def _mask(self, node: int) -> Bool[np.ndarray, "height width"]:
        """Pixels of a node: its superpixels are neighbours in the tree's order."""
        return (self._order >= self._tree.first[node]) & (self._order < self._tree.last[node])
