"""The segmentation models by name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from gags.errors import GagsError
from gags.segment._types import Segmenter
from gags.segment.hierarchy import HierarchySegmenter
from gags.segment.sam import SamSegmenter

SegmenterName = Literal["hierarchy", "sam", "sam2"]


def make_segmenter(name: SegmenterName = "hierarchy", weights: str | Path | None = None) -> Segmenter:
    """The segmenter called ``name``.

    Args:
        name: "hierarchy" is built in; "sam" and "sam2" have weights.
        weights: a folder in transformers form, a hub name, or (sam) a .pth file of Meta's or MobileSAM's .pt; None: the largest.

    Raises:
        GagsError: an unknown name, weights that are not to be had, or weights given to the built-in segmenter.
    """
    if name in ("sam", "sam2"):
        return SamSegmenter(weights, name)
    if name != "hierarchy":
        raise GagsError(
            f"segmenter {name!r}: expected 'hierarchy', 'sam' or 'sam2'; the built-in one is --segmenter hierarchy"
        )
    if weights is not None:
        raise GagsError(
            f"segmenter 'hierarchy': expected no weights, found {weights}; give --segmenter sam or sam2 with them"
        )
    return HierarchySegmenter()
