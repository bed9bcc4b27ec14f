"""Colour and opacity of every splat as a function of the page's state: pure."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from gags.errors import GagsError
from gags.gaussians import SH_C0, Gaussians
from gags.geometry import Camera, project
from gags.images import Rgb, as_bytes, colormap, depth_colors, disparity_span, feature_colors, overlay
from gags.view._search import Answer, SearchIndex
from gags.view._state import Display, ViewState

PHRASE_COLORS: tuple[Rgb, ...] = ((255, 60, 30), (40, 150, 255), (70, 220, 90), (255, 200, 40), (190, 90, 255))
"""Of the first, second, ... phrase of a question; then from the start again."""

_LUMA = torch.tensor([0.299, 0.587, 0.114])
# How bright what was not found stays beside what was.
_DIMMED = 0.55


def plain_colors(gaussians: Gaussians) -> UInt8[Tensor, "gaussian 3"]:
    """The part of the colour that does not depend on where it is seen from."""
    return as_bytes(0.5 + SH_C0 * gaussians.sh[:, 0])


def base_colors(index: SearchIndex, display: Display, camera: Camera | None) -> UInt8[Tensor, "gaussian 3"]:
    """Colours of a display mode (``relevancy`` needs an answer: until then as ``rgb``).

    Args:
        camera: whose depth mode ``depth`` shows.

    Raises:
        GagsError: granularity of a field that knows none.
    """
    gaussians = index.field.gaussians
    if display == "depth" and camera is not None:
        return _depth_colors(gaussians, camera)
    if display == "feature":
        return feature_colors(index.field.features[None])[0]
    if display == "granularity":
        weights = index.level_weights()
        if weights is None:
            raise GagsError(NO_GRANULARITY)
        return as_bytes(weights)
    return plain_colors(gaussians)


def _depth_colors(gaussians: Gaussians, camera: Camera) -> UInt8[Tensor, "gaussian 3"]:
    """All colours for what the camera has in its picture."""
    xy_px, depth = project(camera, gaussians.means)
    inside = (depth > 0) & ((xy_px > 0) & (xy_px < xy_px.new_tensor([camera.width, camera.height]))).all(dim=1)
    return depth_colors(depth[None], disparity_span(depth[None, inside]))[0]


NO_GRANULARITY = "granularity: expected a field that learned it, found a lift of all levels; use --field gad or galift"


def chosen_splats(state: ViewState, selected: Bool[Tensor, "phrase gaussian"]) -> Bool[Tensor, " gaussian"]:
    """What the answers to all phrases together choose, or leave out if inverted."""
    return selected.any(dim=0) ^ state.invert


def visible_splats(state: ViewState, selected: Bool[Tensor, "phrase gaussian"]) -> Bool[Tensor, " gaussian"]:
    """Which splats are drawn at all."""
    chosen = chosen_splats(state, selected)
    if state.mode == "isolate":
        return chosen
    return ~chosen if state.mode == "delete" else torch.ones_like(chosen)


def splat_colors(
    state: ViewState,
    base: UInt8[Tensor, "gaussian 3"],
    opacities: Float[Tensor, " gaussian"],
    answer: Answer | None,
    selected: Bool[Tensor, "phrase gaussian"] | None,
) -> UInt8[Tensor, "gaussian 4"]:
    """RGB and opacity of every splat.

    Args:
        base: colours of the display mode.
        answer, selected: what was found, and what of it is above the threshold; None: nothing was asked.
    """
    alpha = as_bytes(opacities)
    if answer is None or selected is None:
        return torch.cat([base, alpha[:, None]], dim=1)
    rgb = base
    if state.display == "relevancy":
        rgb = colormap(answer.relevancy.amax(dim=0)[None])[0]
    if state.mode == "highlight":
        rgb = highlighted(state, rgb, answer.heat, selected)
    elif state.mode == "heat":
        rgb = overlay(rgb[None], answer.heat.amax(dim=0)[None])[0]
    alpha = alpha * visible_splats(state, selected)
    return torch.cat([rgb, alpha[:, None]], dim=1)


def highlighted(
    state: ViewState,
    base: UInt8[Tensor, "... 3"],
    heat: Float[Tensor, "phrase ..."],
    selected: Bool[Tensor, "phrase ..."],
) -> UInt8[Tensor, "... 3"]:
    """What is selected lights up in the colour of its phrase, the stronger the hotter; the rest is dim and grey."""
    grey = (base.float() @ _LUMA * _DIMMED)[..., None].expand(base.shape)
    hottest = torch.where(selected, heat, -1.0).argmax(dim=0)
    strength = 0.35 + 0.45 * heat.gather(0, hottest[None])[0].clamp(0, 1)[..., None]
    palette = torch.tensor([PHRASE_COLORS[i % len(PHRASE_COLORS)] for i in range(len(heat))], dtype=torch.float32)
    lit = base.float() * (1 - strength) + palette[hottest] * strength
    if state.invert:
        # what the answers leave out belongs to no phrase: it keeps its own colours
        lit = base.float()
    chosen = (selected.any(dim=0) ^ state.invert)[..., None]
    return torch.where(chosen, lit, grey).round().to(torch.uint8)
