"""The two numbers of the LERF-OVS benchmark, for one phrase in one frame."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor


def iou(predicted: Bool[Tensor, "height width"], truth: Bool[Tensor, "height width"]) -> float:
    """Intersection over union. Two empty masks agree: 1, where the reference implementation has not-a-number."""
    union = int((predicted | truth).sum())
    return int((predicted & truth).sum()) / union if union else 1.0


def localised(candidates_xy: Int[Tensor, "candidate 2"], boxes_xyxy_px: Float[Tensor, "box 4"]) -> bool:
    """Whether any of the pixels (x, y indices, not centres) lies in any of the boxes, edges included.

    Box corners may come in either order. No boxes: never.
    """
    corners = boxes_xyxy_px.unflatten(1, (2, 2))
    low, high = corners.amin(dim=1), corners.amax(dim=1)
    pixels = candidates_xy[:, None].to(boxes_xyxy_px.dtype)
    return bool(((pixels >= low) & (pixels <= high)).all(dim=2).any())
