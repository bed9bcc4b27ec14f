"""query_3d(): which Gaussians are what a phrase names?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numba
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int32, UInt8
from scipy.spatial import cKDTree
from torch import Tensor

from gags.encode import ImageTextEncoder
from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.geometry import Camera, project
from gags.query._query import Hit, QueryableField, QueryConfig, box_around, phrase_vectors
from gags.query._relevancy import mean_filter, peak, relevancy_of_similarity, stretch
from gags.rasterize import render
from gags.scene import View

_OCCLUSION_CANDIDATES = 12
_OCCLUSION_SIDE_PX = 160


@dataclass(frozen=True)
class Selection:
    """The Gaussians that answer one phrase."""

    phrase: str
    gaussian_ids: Int[Tensor, " selected"]
    """Rows of the scene's Gaussians, ascending, int64."""
    relevancy: Float[Tensor, " gaussian"]
    """0..1 for every Gaussian of the scene."""
    centroid_world: Float[Tensor, " 3"] | None
    """Mean of the selected centres. None: nothing is selected."""
    box_world: Float[Tensor, "2 3"] | None
    """Smallest and largest coordinates of the selected centres. None: nothing is selected."""
    score: float
    """Mean relevancy of the selection; 0 when nothing is selected."""


def query_3d(
    field: QueryableField,
    phrases: Sequence[str],
    encoder: ImageTextEncoder,
    config: QueryConfig,
    nearest: Int32[Tensor, "gaussian neighbour"] | None = None,
) -> list[Selection]:
    """Search the Gaussians themselves (docs/method.md, stage 4, 3D; fixture 10).

    Each Gaussian's own feature is decoded and scored; relevancy is stretched over all Gaussians (``gaussian_heat``), thresholded
    and smoothed by a vote. All take part, whatever their opacity or size.

    Args:
        nearest: ``nearest_gaussians(field.gaussians.means, config.smooth_neighbours)``, where it is at hand already.

    Returns:
        A ``Selection`` for each phrase, in order.

    Raises:
        GagsError: an empty phrase.
    """
    scores = gaussian_relevancy(field, phrases, encoder, config)
    means = field.gaussians.means
    selected = smooth_selection(means, gaussian_heat(scores, config) > config.threshold, config, nearest)
    return [
        describe_selection(phrase, means, score, chosen)
        for phrase, score, chosen in zip(phrases, scores, selected, strict=True)
    ]


def gaussian_relevancy(
    field: QueryableField, phrases: Sequence[str], encoder: ImageTextEncoder, config: QueryConfig
) -> Float[Tensor, "phrase gaussian"]:
    """Relevancy of every Gaussian's own feature to each phrase, in 0..1.

    Raises:
        GagsError: an empty phrase.
    """
    positives, negatives = phrase_vectors(phrases, encoder, config)
    similarity = field.similarity(torch.cat([positives, negatives]), config.exact)
    return relevancy_of_similarity(similarity, len(positives), config.temperature).contiguous()


def gaussian_heat(scores: Float[Tensor, "phrase gaussian"], config: QueryConfig) -> Float[Tensor, "phrase gaussian"]:
    """Relevancy stretched over the scene, 0..1: what the threshold cuts.

    The hottest thousandth counts as equally hot: a few splats that resemble the phrase more than the thing itself does would
    otherwise move the threshold beyond it. With ``reference_quirks`` the single hottest is the top.
    """
    if not config.reference_quirks:
        place = scores.shape[-1] - 1 - scores.shape[-1] // 1000
        # numpy's takes 0.4 ms of 300 000 Gaussians, torch's topk or kthvalue 1 or 3
        top = np.partition(scores.cpu().numpy(), place, axis=-1)[:, place, None]
        scores = scores.minimum(torch.from_numpy(top).to(scores.device))
    return stretch(scores, (-1,))


def smooth_selection(
    means: Float[Tensor, "gaussian 3"],
    selected: Bool[Tensor, "phrase gaussian"],
    config: QueryConfig,
    nearest: Int32[Tensor, "gaussian neighbour"] | None = None,
) -> Bool[Tensor, "phrase gaussian"]:
    """Let every Gaussian's neighbourhood vote: many selected neighbours select it, few drop it, else it stays.

    The reference counts votes within 0.05 scene units, so that selections vanish in scenes that are larger or sparser
    than its own. Here the voters are the ``smooth_neighbours`` nearest Gaussians, themselves included, and the
    reference's bounds of 20 and 10 become a half and a quarter of them: the result does not change with the scene's
    scale. Small scenes vote in proportion. ``reference_quirks`` counts within the radius.

    Args:
        nearest: ``nearest_gaussians(means, config.smooth_neighbours)``, where it is at hand already.
    """
    if config.reference_quirks:
        votes = neighbour_counts(means, selected, config.smooth_radius)
        share = 1.0
    else:
        nearest = nearest_gaussians(means, config.smooth_neighbours) if nearest is None else nearest
        bits = np.packbits(selected.cpu().numpy(), axis=1, bitorder="little")
        votes = torch.from_numpy(_votes(bits, nearest.numpy())).to(selected.device)
        share = nearest.shape[1] / config.smooth_neighbours
    kept = selected & ~(votes < share * config.smooth_min_votes)
    return kept | (votes > share * config.smooth_votes)


@numba.njit(parallel=True, cache=True)
def _votes(
    selected_bits: UInt8[np.ndarray, "phrase byte"], nearest: Int32[np.ndarray, "gaussian neighbour"]
) -> Int32[np.ndarray, "phrase gaussian"]:
    """How many of each Gaussian's neighbours are selected. Neighbours are anywhere: as bits, the fastest cache holds them."""
    votes = np.zeros((selected_bits.shape[0], nearest.shape[0]), np.int32)
    for phrase in range(selected_bits.shape[0]):
        bits = selected_bits[phrase]
        for gaussian in numba.prange(nearest.shape[0]):
            count = np.uint32(0)
            for k in range(nearest.shape[1]):
                # unsigned: an index that cannot be negative is not asked whether it is
                neighbour = np.uint32(nearest[gaussian, k])
                count += (bits[neighbour >> np.uint32(3)] >> (neighbour & np.uint32(7))) & np.uint32(1)
            votes[phrase, gaussian] = count
    return votes


def neighbour_counts(
    means: Float[Tensor, "gaussian 3"], selected: Bool[Tensor, "phrase gaussian"], radius: float
) -> Int[Tensor, "phrase gaussian"]:
    """Selected Gaussians within ``radius`` (at most) of each Gaussian, itself included, int64."""
    centers = means.cpu().numpy().astype(np.float64)
    counts = np.zeros(selected.shape, dtype=np.int64)
    for row, chosen in enumerate(selected.cpu().numpy()):
        if chosen.any():
            counts[row] = cKDTree(centers[chosen]).query_ball_point(centers, radius, return_length=True, workers=-1)
    return torch.from_numpy(counts).to(means.device)


def nearest_gaussians(means: Float[Tensor, "gaussian 3"], count: int) -> Int32[Tensor, "gaussian neighbour"]:
    """Ids of each Gaussian's ``count`` nearest, itself first; fewer in a smaller scene."""
    centers = means.cpu().numpy()
    _, nearest = cKDTree(centers).query(centers, k=np.arange(1, min(count, len(centers)) + 1), workers=-1)
    return torch.from_numpy(nearest.astype(np.int32))


def describe_selection(
    phrase: str,
    means: Float[Tensor, "gaussian 3"],
    scores: Float[Tensor, " gaussian"],
    chosen: Bool[Tensor, " gaussian"],
) -> Selection:
    """A selection and where it is."""
    ids = chosen.nonzero()[:, 0]
    if len(ids) == 0:
        return Selection(phrase, ids, scores, None, None, 0.0)
    # indexing by a tensor takes three times as long
    centers = means.index_select(0, ids)
    box = torch.stack(list(torch.aminmax(centers, dim=0)))
    return Selection(phrase, ids, scores, centers.mean(dim=0), box, float(scores[ids].mean()))


def render_selection(gaussians: Gaussians, selection: Selection, camera: Camera, config: QueryConfig) -> Hit:
    """What a selection looks like in a view: the answer of the protocol *selected* (OpenGaussian, Wu et al. 2024).

    The selected Gaussians are rendered alone, so that nothing hides them. The mask is where their alpha is above
    ``config.min_alpha``; the heat is their alpha; the relevancy is theirs, blended like a colour over 0.

    Returns:
        A ``Hit`` at the camera's size; its score is 0 where nothing of the selection is in the view.
    """
    ids = selection.gaussian_ids
    relevancy_map = alpha = torch.zeros(camera.height, camera.width)
    # an empty scene cannot be rendered
    if len(ids) > 0:
        alone = render(gaussians.subset(ids), camera, colors=selection.relevancy[ids, None])
        relevancy_map, alpha = alone.colors[..., 0], alone.alpha
    filtered = mean_filter(relevancy_map, config.kernel_px)
    mask = alpha > config.min_alpha
    x, y = peak(filtered)[0].tolist()
    return Hit(
        phrase=selection.phrase,
        relevancy=relevancy_map,
        heat=alpha,
        mask=mask,
        point_xy_px=(x + 0.5, y + 0.5),
        box_xyxy_px=box_around(mask, x, y),
        score=float(filtered[y, x]),
    )


def best_view(gaussians: Gaussians, selection: Selection, views: Sequence[View]) -> View:
    """The view that shows a selection best: most of it, and large (``best_views``).

    For an empty selection the most relevant hundredth of the Gaussians stands in.

    Raises:
        GagsError: there are no views.
    """
    ids = selection.gaussian_ids
    if len(ids) == 0:
        ids = selection.relevancy.topk(max(1, len(selection.relevancy) // 100)).indices
    return best_views(gaussians, [ids], views)[0]


def best_views(gaussians: Gaussians, groups: Sequence[Int[Tensor, " chosen"]], views: Sequence[View]) -> list[View]:
    """For each group of Gaussians the view that shows it best.

    A view is worth the number of the group's Gaussians that it sees, divided by their median depth. Views are ranked as if
    nothing was in the way; the best of those are then rendered small, and what their depth maps hide does not count.

    Raises:
        GagsError: there are no views.
    """
    if not views:
        raise GagsError("best view: expected at least one view to choose from, found none")

    @cache
    def small_view(index: int) -> tuple[Camera, Float[Tensor, "height width"]]:
        camera = views[index].camera.limited(_OCCLUSION_SIDE_PX)
        return camera, render(gaussians, camera).depth

    chosen = []
    for ids in groups:
        means = gaussians.means[ids]
        ranked = np.argsort([-_worth(view.camera, means, None) for view in views], kind="stable")[
            :_OCCLUSION_CANDIDATES
        ]
        worth = []
        for index in ranked.tolist():
            camera, depth = small_view(index)
            worth.append(_worth(camera, means, depth))
        chosen.append(views[int(ranked[int(np.argmax(worth))])])
    return chosen


def _worth(
    camera: Camera, means: Float[Tensor, "selected 3"], depth_map: Float[Tensor, "height width"] | None
) -> float:
    """How many points are in the frame and (with a depth map) within 25 % of its depth, by their median depth."""
    xy_px, depth = project(camera, means)
    size_px = xy_px.new_tensor([camera.width, camera.height])
    inside = (depth > 0) & (xy_px >= 0).all(dim=1) & (xy_px < size_px).all(dim=1)
    depth = depth[inside]
    if depth_map is not None:
        columns, rows = xy_px[inside].to(torch.int64).unbind(dim=1)
        surface = depth_map[rows, columns]
        # The tolerance of GaS (docs/method.md, stage 2.1): a Gaussian's centre lies off the rendered surface.
        depth = depth[(surface - depth).abs() <= 0.25 * surface]
    return len(depth) / float(depth.median()) if len(depth) else 0.0
