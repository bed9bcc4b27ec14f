"""The segmentation stage: every training view's masks at three granularities (GAGS, GaS)."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, UInt8
from torch import Tensor

from gags.gaussians import Gaussians
from gags.scene import Scene
from gags.segment._masks import Candidates, assemble, clean, distinct, mask_nms
from gags.segment._prompts import (
    depth_prompts,
    nearest_depth_map,
    nearest_depths,
    relative_depth_map,
    uniform_prompts,
    usual_depths,
)
from gags.segment._types import PreparedImage, Segmenter, ViewMasks
from gags.settings import Count, Natural, Neutral, NonNegative, Seed, Share, Side, check_settings

Prompts = Literal["depth", "uniform"]
"""Where the segmenter is asked: by depth (GaS), or evenly."""


@dataclass(frozen=True)
class SegmentConfig:
    """Settings of the segmentation stage. The defaults are the paper's."""

    max_side_px: Side | None = None
    """Longer side in pixels at which views are segmented (None: the scene's working resolution)."""
    prompts: Prompts = "depth"
    """depth: GaS, denser where other views come closer; uniform: an even grid of as many points."""
    occlusion_tolerance: NonNegative = 0.25
    """A Gaussian is seen where it differs from the rendered depth by at most this share of that depth."""
    min_per_side: Count = 4
    """Prompts along a side of a patch seen from as near as any view comes."""
    max_per_side: Count = 20
    """Most prompts along a side of a patch."""
    min_predicted_iou: Share = 0.7
    """Masks whose predicted IoU (0..1) is lower are dropped."""
    min_stability: Share = 0.85
    """Masks whose stability (0..1: how little they change when their threshold moves) is lower are dropped."""
    max_box_iou: Share = 0.7
    """Of masks whose boxes overlap more (IoU, 0..1), within a level, the one with the best predicted IoU stays."""
    min_region_px: Natural = 100
    """Islands and holes of masks with fewer pixels are removed."""
    max_mask_iou: Share = 0.8
    """Mask suppression: of masks that overlap more (IoU, 0..1) the better one stays."""
    min_score: Share = 0.7
    """Mask suppression: masks whose predicted IoU times stability (0..1) is not above this are dropped."""
    prompts_per_batch: Neutral[Count] = 64
    """Prompts given to the segmenter at once: bounds memory."""
    seed: Seed = 0
    """Of the prompts' random places."""
    reference_quirks: bool = False
    """Prompts and masks as the reference implementation has them (docs/method.md)."""


def segment(
    scene: Scene,
    gaussians: Gaussians,
    depths: Mapping[str, Float[Tensor, "height width"]],
    segmenter: Segmenter,
    config: SegmentConfig,
    skip: Collection[str] = (),
) -> Iterator[tuple[str, ViewMasks]]:
    """Masks of the training views, one view at a time, in their order.

    Args:
        depths: rendered depth by view name, each of the size of ``view.camera.limited(config.max_side_px)``.
        skip: names of views that are done already; the others come out the same.
    """
    check_settings(config, "segment.")
    views = scene.training_views
    cameras = [view.camera.limited(config.max_side_px) for view in views]
    of_views = [depths[view.name] for view in views]
    nearest = nearest_depths(gaussians, cameras, of_views, config.occlusion_tolerance)
    usual = usual_depths(gaussians, cameras, of_views, config.occlusion_tolerance)
    for view, camera in zip(views, cameras, strict=True):
        if view.name in skip:
            continue
        depth = depths[view.name]
        sparse = nearest_depth_map(
            gaussians, camera, depth, nearest, config.occlusion_tolerance, config.reference_quirks
        )
        yield (
            view.name,
            segment_view(
                view.image(config.max_side_px),
                depth,
                sparse,
                segmenter,
                config,
                zlib.crc32(view.name.encode()),
                relative_depth_map(gaussians, camera, depth, usual),
            ),
        )


def segment_view(
    image: UInt8[Tensor, "height width 3"],
    depth: Float[Tensor, "height width"],
    sparse_nearest_depth: Float[Tensor, "height width"],
    segmenter: Segmenter,
    config: SegmentConfig,
    view_seed: int = 0,
    relative_depth: Float[Tensor, "height width"] | None = None,
) -> ViewMasks:
    """Masks of one view.

    Args:
        depth: rendered depth, 0 where empty.
        sparse_nearest_depth: nearest depth of the Gaussians at their pixels, 0 where there is none.
        view_seed: joins the config's seed, so that a view's prompts do not depend on which other views there are.
        relative_depth: for the segmenter: ``depth`` over the usual depth of what a pixel shows, 1 where that is not known.
    """
    if config.prompts == "uniform":
        points = uniform_prompts(depth, sparse_nearest_depth, config.min_per_side, config.max_per_side)
    else:
        points = depth_prompts(
            depth,
            sparse_nearest_depth,
            (config.seed, view_seed),
            config.min_per_side,
            config.max_per_side,
            config.reference_quirks,
        )
    levels = _propose(segmenter.prepare(image, depth, relative_depth), points, config)
    label_sets = [distinct(Candidates.concatenated(levels), config.reference_quirks), *levels]
    return assemble([_suppressed(candidates, config) for candidates in label_sets], points)


def _propose(
    prepared: PreparedImage, points_xy_px: Float[Tensor, "prompt 2"], config: SegmentConfig
) -> list[Candidates]:
    """The distinct masks of each level (s, m, l) that pass both quality thresholds."""
    batches: list[list[Candidates]] = [[], [], []]
    for points in prepared.distinct_prompts(points_xy_px).split(config.prompts_per_batch):
        proposals = prepared.propose(points)
        good = (proposals.predicted_iou >= config.min_predicted_iou) & (proposals.stability >= config.min_stability)
        for level, batch in enumerate(batches):
            kept = good[:, level]
            iou, stability = proposals.predicted_iou[kept, level], proposals.stability[kept, level]
            proposed = Candidates(proposals.masks[kept, level], iou, stability)
            batch.append(distinct(proposed, config.reference_quirks))
    return [distinct(Candidates.concatenated(batch), config.reference_quirks) for batch in batches]


def _suppressed(candidates: Candidates, config: SegmentConfig) -> Candidates:
    cleaned = clean(candidates, config.min_region_px, config.max_box_iou)
    # islands and holes removed, two masks may have become one
    cleaned = distinct(cleaned, config.reference_quirks)
    quirks = config.reference_quirks
    return cleaned[
        mask_nms(cleaned.masks, cleaned.score, config.max_mask_iou, config.min_score, reference_quirks=quirks)
    ]
