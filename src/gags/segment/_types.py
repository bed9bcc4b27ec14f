"""What segmentation produces, and the protocol that hides the segmentation model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


class Granularity(IntEnum):
    """SAM's levels; the values are the rows of a view's label maps (the paper's default, s, m, l)."""

    DEFAULT = 0
    """All levels pooled."""
    SUBPART = 1
    PART = 2
    WHOLE = 3


LEVELS = (Granularity.SUBPART, Granularity.PART, Granularity.WHOLE)
"""The three levels that are distilled, finest first."""


@dataclass(frozen=True)
class MaskProposals:
    """A segmenter's answer: three nested masks for every prompt point."""

    masks: Bool[Tensor, "prompt 3 height width"]
    """Subpart, part, whole."""
    predicted_iou: Float[Tensor, "prompt 3"]
    """The segmenter's own estimate of each mask's IoU with the truth, 0..1."""
    stability: Float[Tensor, "prompt 3"]
    """How little the mask changes when its threshold moves, 0..1 (stability score of SAM)."""


class PreparedImage(Protocol):
    """An image the segmenter has digested once, to be prompted many times."""

    def distinct_prompts(self, points_xy_px: Float[Tensor, "prompt 2"]) -> Float[Tensor, "distinct 2"]:
        """The points without those that are known to get the answer of an earlier one, in order."""
        ...

    def propose(self, points_xy_px: Float[Tensor, "prompt 2"]) -> MaskProposals:
        """Three nested masks for each point (x, y; pixel centres at +0.5)."""
        ...


class Segmenter(Protocol):
    """A promptable segmentation model."""

    name: str
    """What run.json records: the model and whatever decides its output (weights, version)."""

    def prepare(
        self,
        image: UInt8[Tensor, "height width 3"],
        depth: Float[Tensor, "height width"] | None,
        relative_depth: Float[Tensor, "height width"] | None = None,
    ) -> PreparedImage:
        """Digest an image.

        A model may ignore what is known of the scene: the rendered depth, 0 where empty, and the same over the depth from which
        the views usually see what a pixel shows, 1 where that is not known.
        """
        ...


@dataclass(frozen=True)
class ViewMasks:
    """The masks of one view that survived filtering, over the four label sets in order (default, s, m, l)."""

    masks: Bool[Tensor, "mask height width"]
    """Row i is the mask with label i."""
    granularity: Int[Tensor, " mask"]
    """The label set each mask belongs to (a ``Granularity`` value), ascending."""
    predicted_iou: Float[Tensor, " mask"]
    stability: Float[Tensor, " mask"]
    label_maps: Int[Tensor, "4 height width"]
    """Label of each pixel in each set, int32; -1 where unlabelled (test ``>= 0``, never index with it)."""
    prompts_xy_px: Float[Tensor, "prompt 2"]
    """The prompt points, for pictures."""


GranularMasks = Mapping[str, ViewMasks]
"""Masks by view name. May read from disk on access: take each view once."""
