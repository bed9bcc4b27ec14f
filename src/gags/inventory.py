"""What is in this scene? Clusters of the language field, each with the phrases that fit it best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gags.encode import ImageTextEncoder
from gags.errors import GagsError
from gags.evaluate import FrameLabels, iou
from gags.gaussians import Gaussians
from gags.geometry import Camera
from gags.query import QueryableField, QueryConfig, best_views, nearest_gaussians, rank_phrases
from gags.rasterize import render
from gags.scene import View
from gags.settings import Count, NonNegative, Positive, Share, check_settings

# Directions that likeness is judged in: they hold nearly all that sets the Gaussians of a scene apart.
_DIRECTIONS = 32
# Features that those directions are found from.
_SAMPLES = 8192
# Members that the mean feature of a cluster is made from.
_MEAN_SAMPLES = 1024
_CHUNK_ROWS = 16384
_MASK_SIDE_PX = 640


@dataclass(frozen=True)
class InventoryConfig:
    """What counts as a thing. Distances are squared and relative: 2 is that of two unrelated Gaussians of the scene."""

    distance: Positive = 0.25
    """Neighbouring clusters become one while the squared distance of their mean features is below this; 2 is that of two
    unrelated splats."""
    noise: NonNegative = 8.0
    """Small clusters are allowed this much more, divided by their number of splats: they tell less certainly what they are."""
    neighbours: Count = 10
    """A splat's neighbours are so many nearest splats."""
    min_opacity: Share = 0.1
    """Splats of lower opacity (0..1) are haze: they belong to nothing."""
    min_splats: Count = 60
    """Smaller clusters are left out."""
    max_things: Count = 40
    """Of the clusters the best-named ones are listed, at most this many."""
    n_phrases: Count = 5
    """Phrases listed for each thing."""


@dataclass(frozen=True)
class Thing:
    """A cluster of Gaussians that are near each other and mean the same."""

    phrases: tuple[tuple[str, float], ...]
    """The phrases of the vocabulary that fit best, with their scores, best first (``query.rank_phrases``)."""
    gaussian_ids: Int[Tensor, " chosen"]
    """Rows of the scene's Gaussians, ascending, int64."""
    vector: Float[Tensor, " width"]
    """Mean of decoded features, of length 1 (of a thousand members, if there are more)."""
    centroid_world: Float[Tensor, " 3"]
    """Mean of their centres."""
    box_world: Float[Tensor, "2 3"]
    """Smallest and largest coordinates of their centres."""
    view_name: str
    """The view that shows it best."""
    box_xyxy_px: tuple[int, int, int, int] | None
    """Where it is seen there, outer pixel edges. None: something hides it."""
    mask: Bool[Tensor, "rows columns"] | None
    """Its pixels inside that box, at a resolution of its own. None as the box."""

    @property
    def score(self) -> float:
        """Of the best phrase: how much better it fits here than in the scene at large; 0.5 is what the canonical negatives get."""
        return self.phrases[0][1]

    def to_json(self) -> dict[str, Any]:
        """Everything but the ids, the vector and the mask, as JSON."""
        return {
            "phrases": [{"phrase": phrase, "score": round(score, 4)} for phrase, score in self.phrases],
            "score": round(self.score, 4),
            "n_splats": len(self.gaussian_ids),
            "centroid_world": [round(value, 4) for value in self.centroid_world.tolist()],
            "box_world": [[round(value, 4) for value in corner] for corner in self.box_world.tolist()],
            "view": self.view_name,
            "box_xyxy_px": self.box_xyxy_px,
        }


@dataclass(frozen=True)
class Inventory:
    """What is in a scene."""

    things: tuple[Thing, ...]
    """Best-named first."""
    scene_mean: Float[Tensor, " width"]
    """Mean of the decoded features of the whole scene: what things are told apart from."""
    vocabulary: tuple[str, ...]
    """The phrases that names were chosen from."""


class NothingFoundError(GagsError):
    """A scene without things that could be listed."""


def take_inventory(
    field: QueryableField,
    views: Sequence[View],
    vocabulary: Sequence[str],
    encoder: ImageTextEncoder,
    query_config: QueryConfig,
    config: InventoryConfig,
) -> Inventory:
    """The things of a scene.

    Raises:
        NothingFoundError: no cluster is large enough.
        GagsError: a setting out of range, no views, an empty vocabulary.
    """
    check_settings(config)
    gaussians = field.gaussians
    ids = (gaussians.opacities >= config.min_opacity).nonzero()[:, 0]
    if len(ids) < 2:
        raise NothingFoundError(f"inventory: expected splats of opacity {config.min_opacity} or more, found {len(ids)}")
    scene_mean, features = _relative_features(field, ids)
    cluster = _clusters(gaussians.means[ids], features, config)
    sizes = torch.bincount(cluster)
    groups = [ids[cluster == index] for index in (sizes >= config.min_splats).nonzero()[:, 0].tolist()]
    if not groups:
        raise NothingFoundError(
            f"inventory: expected clusters of {config.min_splats} splats, found none larger than {int(sizes.max())}; "
            "lower --min-splats or raise --distance"
        )
    vectors = torch.stack([_mean_vector(field, group) for group in groups])
    ranked = rank_phrases(vectors, scene_mean, vocabulary, encoder, query_config)
    order = sorted(range(len(groups)), key=lambda index: -ranked[index][0][1])[: config.max_things]
    chosen = [groups[index] for index in order]
    shown = best_views(gaussians, chosen, views)
    things = [
        _thing(gaussians, groups[index], vectors[index], ranked[index][: config.n_phrases], view, mask)
        for index, view, mask in zip(order, shown, _masks(gaussians, chosen, shown), strict=True)
    ]
    return Inventory(tuple(things), scene_mean, tuple(vocabulary))


def _thing(
    gaussians: Gaussians,
    ids: Int[Tensor, " chosen"],
    vector: Float[Tensor, " width"],
    phrases: Sequence[tuple[str, float]],
    view: View,
    mask: Bool[Tensor, "height width"],
) -> Thing:
    centers = gaussians.means[ids]
    box_world = torch.stack([centers.amin(dim=0), centers.amax(dim=0)])
    rows, columns = mask.nonzero().unbind(dim=1)
    box, inside = None, None
    if len(rows):
        left, top, right, bottom = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
        inside = mask[top:bottom, left:right]
        # the mask is of the view's shape, but may be smaller
        scale_x, scale_y = view.camera.width / mask.shape[1], view.camera.height / mask.shape[0]
        box = round(left * scale_x), round(top * scale_y), round(right * scale_x), round(bottom * scale_y)
    return Thing(tuple(phrases), ids, vector, centers.mean(dim=0), box_world, view.name, box, inside)


def group_masks(
    gaussians: Gaussians, groups: Sequence[Int[Tensor, " chosen"]], camera: Camera
) -> Bool[Tensor, "group height width"]:
    """The pixels that show mostly a group: more than half of their colour comes from it, whatever stands in front."""
    masks = []
    # sixteen numbers a splat are blended about as fast as one
    for start in range(0, len(groups), 16):
        part = groups[start : start + 16]
        members = torch.zeros(len(gaussians), len(part))
        for column, ids in enumerate(part):
            members[ids, column] = 1.0
        masks.append((render(gaussians, camera, colors=members).colors > 0.5).permute(2, 0, 1))
    return torch.cat(masks) if masks else torch.zeros(0, camera.height, camera.width, dtype=torch.bool)


@dataclass(frozen=True)
class LabelledObject:
    """Whether the inventory knows an object that somebody labelled."""

    phrase: str
    iou: float
    """Of the labelled masks and the thing that fits them best, mean over the frames that label the object."""
    rank: int | None
    """Place of the object's phrase among all phrases for the best-named thing that overlaps enough; 1 is the first. None:
    no thing does."""
    found: bool
    """Some thing has an IoU of 0.25 or more and this phrase among its first three."""


def inventory_recall(
    inventory: Inventory,
    gaussians: Gaussians,
    frames: Sequence[tuple[Camera, FrameLabels]],
    encoder: ImageTextEncoder,
    query_config: QueryConfig,
) -> list[LabelledObject]:
    """Which labelled objects an inventory found: the right place (mean IoU >= 0.25) and the right name (among the first three).

    A thing's mask in a frame is ``group_masks``; the mean is over all frames that label the object, those that do not
    show the thing included. Names compete with the whole vocabulary and all labels.

    Args:
        frames: labels with the camera of their image, at the labels' size.
    """
    groups = [thing.gaussian_ids for thing in inventory.things]
    overlaps: dict[str, list[list[float]]] = {}
    for camera, frame in frames:
        masks = group_masks(gaussians, groups, camera)
        for label in frame.labels:
            overlaps.setdefault(label.category, []).append([iou(mask, label.mask) for mask in masks])
    phrases = list(dict.fromkeys([*inventory.vocabulary, *overlaps]))
    vectors = torch.stack([thing.vector for thing in inventory.things])
    ranked = rank_phrases(vectors, inventory.scene_mean, phrases, encoder, query_config)
    places = [{phrase: place for place, (phrase, _) in enumerate(row, 1)} for row in ranked]
    objects = []
    for phrase, rows in overlaps.items():
        mean_iou = np.mean(rows, axis=0)
        ranks = [place[phrase] for place, overlap in zip(places, mean_iou, strict=True) if overlap >= 0.25]
        rank = min(ranks, default=None)
        objects.append(LabelledObject(phrase, float(mean_iou.max()), rank, rank is not None and rank <= 3))
    return objects


def _relative_features(
    field: QueryableField, ids: Int[Tensor, " chosen"]
) -> tuple[Float[Tensor, " width"], Float[Tensor, "chosen direction"]]:
    """The mean of the decoded features, and how each differs from it: in the directions in which they differ most, scaled
    to a mean squared length of 1.

    What all have in common says nothing about what belongs together, and it differs between encoders.
    """
    # evenly spread rows stand for all; no random numbers are needed
    sample = field.decode(field.features[ids[:: -(-len(ids) // _SAMPLES)]])
    mean = sample.mean(dim=0)
    # eigh sorts ascending
    axes = torch.linalg.eigh((sample - mean).T @ (sample - mean)).eigenvectors[:, -_DIRECTIONS:]
    features = torch.cat([(field.decode(field.features[part]) - mean) @ axes for part in ids.split(_CHUNK_ROWS)])
    # a field that says the same everywhere has no spread to divide by
    return mean, features / features.square().sum(dim=1).mean().sqrt().clamp_min(1e-12)


def _clusters(
    means: Float[Tensor, "splat 3"], features: Float[Tensor, "splat direction"], config: InventoryConfig
) -> Int[Tensor, " splat"]:
    """A cluster number for each splat: neighbours are merged, the most alike first, while their clusters' means are near.

    Statistical region merging (Nock and Nielsen 2004): one pass over the edges of the neighbourhood graph in the order of
    their length in feature space, where the tolerance of small regions is larger. Here the passes are repeated with the
    distances of the means until nothing is merged.
    """
    nearest = nearest_gaussians(means, config.neighbours + 1)[:, 1:].numpy()
    starts = np.repeat(np.arange(len(means)), nearest.shape[1])
    ends = nearest.ravel()
    sums, sizes = features.double().numpy().copy(), np.ones(len(means))
    parent = np.arange(len(means))
    while len(starts):
        centers = sums[starts] / sizes[starts, None] - sums[ends] / sizes[ends, None]
        order = np.argsort((centers**2).sum(axis=1), kind="stable")
        merged = _merge(starts, ends, order, parent, sums, sizes, config.distance, config.noise)
        _flatten(parent)
        starts, ends = parent[starts], parent[ends]
        # neither edges inside a cluster nor doubles have anything left to say
        kept = starts != ends
        pairs = np.unique(np.sort(np.stack([starts[kept], ends[kept]], axis=1), axis=1), axis=0)
        starts, ends = pairs[:, 0], pairs[:, 1]
        if not merged:
            break
    return torch.from_numpy(np.unique(parent, return_inverse=True)[1])


@numba.njit(cache=True)
def _merge(
    starts: np.ndarray,
    ends: np.ndarray,
    order: np.ndarray,
    parent: np.ndarray,
    sums: np.ndarray,
    sizes: np.ndarray,
    distance: float,
    noise: float,
) -> int:
    """One pass; changes ``parent``, ``sums`` and ``sizes``. Returns the number of merges."""
    merges = 0
    for edge in order:
        a, b = _root(parent, starts[edge]), _root(parent, ends[edge])
        if a == b:
            continue
        squared = 0.0
        for k in range(sums.shape[1]):
            squared += (sums[a, k] / sizes[a] - sums[b, k] / sizes[b]) ** 2
        if squared > distance + noise * (1.0 / sizes[a] + 1.0 / sizes[b]):
            continue
        if sizes[a] < sizes[b]:
            a, b = b, a
        parent[b] = a
        sizes[a] += sizes[b]
        sums[a] += sums[b]
        merges += 1
    return merges


@numba.njit(cache=True)
def _root(parent: np.ndarray, node: int) -> int:
    while parent[node] != node:
        # halving the path keeps the next searches short
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@numba.njit(cache=True)
def _flatten(parent: np.ndarray) -> None:
    for node in range(len(parent)):
        parent[node] = _root(parent, node)


def _mean_vector(field: QueryableField, ids: Int[Tensor, " chosen"]) -> Float[Tensor, " width"]:
    """Of evenly spread members, which are enough for a mean: decoding is where the time goes."""
    sample = ids[:: -(-len(ids) // _MEAN_SAMPLES)]
    return torch.nn.functional.normalize(field.decode(field.features[sample]).sum(dim=0), dim=0)


def _masks(
    gaussians: Gaussians, groups: Sequence[Int[Tensor, " chosen"]], views: Sequence[View]
) -> list[Bool[Tensor, "height width"]]:
    """The pixels that show each group in its view, at most ``_MASK_SIDE_PX`` wide; a view is rendered once for all its groups."""
    masks: dict[int, Bool[Tensor, "height width"]] = {}
    for name in dict.fromkeys(view.name for view in views):
        here = [index for index, view in enumerate(views) if view.name == name]
        camera = views[here[0]].camera.limited(_MASK_SIDE_PX)
        masks |= dict(zip(here, group_masks(gaussians, [groups[index] for index in here], camera), strict=True))
    return [masks[index] for index in range(len(groups))]
