"""The two numbers of the LERF-OVS benchmark, for one phrase in one frame."""

from __future__ import annotations

import math

from jaxtyping import Bool, Float, Int
from torch import Tensor


def iou(
    predicted: Bool[Tensor, "height width"], truth: Bool[Tensor, "height width"], reference_quirks: bool = False
) -> float:
    """Intersection over union. Two empty masks agree: 1; with ``reference_quirks`` not-a-number, as in the reference."""
    union = int((predicted | truth).sum())
    if union == 0:
        return math.nan if reference_quirks else 1.0
    return int((predicted & truth).sum()) / union


def localised(candidates_xy: Int[Tensor, "candidate 2"], boxes_xyxy_px: Float[Tensor, "box 4"]) -> bool:
    """Whether any of the pixels (x, y indices, not centres) lies in any of the boxes, edges included.

    Box corners may come in either order. No boxes: never.
    """
    corners = boxes_xyxy_px.unflatten(1, (2, 2))
    low, high = corners.amin(dim=1), corners.amax(dim=1)
    pixels = candidates_xy[:, None].to(boxes_xyxy_px.dtype)
    return bool(((pixels >= low) & (pixels <= high)).all(dim=2).any())
