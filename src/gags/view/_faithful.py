"""The server's own picture of what a browser sees: what the metrics measure, not what a browser can draw.

Colours depend on the direction of view, features are blended before they are decoded, and relevancy is a pixel's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Bool, UInt8
from scipy import ndimage
from torch import Tensor

from gags.errors import GagsError
from gags.geometry import Camera
from gags.images import as_bytes, colormap, depth_colors, feature_colors, overlay, resize_image
from gags.query import Hit, QueryConfig, find, relevancy_maps
from gags.rasterize import render
from gags.view._colors import NO_GRANULARITY, highlighted, visible_splats
from gags.view._search import Answer, SearchIndex
from gags.view._state import ViewState

_COARSE_PX = 320


def faithful_pictures(
    index: SearchIndex,
    state: ViewState,
    answer: Answer | None,
    selected: Bool[Tensor, "phrase gaussian"] | None,
    camera: Camera,
) -> Iterator[UInt8[Tensor, "height width 3"]]:
    """Pictures of the state in the camera's size, each better than the one before; the last one is what there is to see.

    Without an answer there is one. Decoding every pixel takes seconds without a GPU, so that relevancy comes coarse first.

    Raises:
        GagsError: granularity of a field that knows none; nothing is left to show.
    """
    if answer is None or selected is None:
        yield _plain(index, state, camera, None)
        return
    visible = visible_splats(state, selected)
    if state.mode in ("isolate", "delete") and state.display != "relevancy":
        # what is drawn was chosen in 3D: no pixel needs decoding
        yield _plain(index, state, camera, visible)
        return
    coarse = camera.limited(_COARSE_PX)
    if coarse is not camera:
        yield resize_image(_answered(index, state, answer, coarse, visible), camera.width, camera.height)
    yield _answered(index, state, answer, camera, visible)


def _plain(
    index: SearchIndex, state: ViewState, camera: Camera, visible: Bool[Tensor, " gaussian"] | None
) -> UInt8[Tensor, "height width 3"]:
    """The display mode, of the visible splats alone."""
    field = index.field
    if visible is not None:
        if not bool(visible.any()):
            raise GagsError("nothing is left to show: lower the threshold, or choose another mode")
        weights = None if field.level_weights is None else field.level_weights[visible]
        field = replace(
            field,
            gaussians=field.gaussians.subset(visible),
            features=field.features[visible],
            level_weights=weights,
        )
    if state.display == "depth":
        return depth_colors(render(field.gaussians, camera).depth)
    if state.display == "feature":
        return feature_colors(field.render(camera))
    if state.display == "granularity":
        weights = field.granularity(camera)
        if weights is None:
            raise GagsError(NO_GRANULARITY)
        return as_bytes(weights)
    return as_bytes(render(field.gaussians, camera).colors)


def _answered(
    index: SearchIndex, state: ViewState, answer: Answer, camera: Camera, visible: Bool[Tensor, " gaussian"]
) -> UInt8[Tensor, "height width 3"]:
    """The answer as ``query`` gives it for this view, over the display mode."""
    field, question = index.field, answer.question
    config: QueryConfig = replace(
        index.config, negatives=(*index.config.negatives, *question.negatives), threshold=state.threshold
    )
    maps = relevancy_maps(field, camera, question.phrases, index.encoder, config)
    if state.display == "relevancy":
        base = colormap(maps.amax(dim=0))
        if state.mode in ("isolate", "delete"):
            alone = render(field.gaussians.subset(visible), camera).alpha if bool(visible.any()) else 0 * maps[0]
            return (base * alone[..., None]).round().to(torch.uint8)
    else:
        base = _plain(index, state, camera, None)
    hits = [find(phrase, relevancy, config) for phrase, relevancy in zip(question.phrases, maps, strict=True)]
    heat = torch.stack([hit.heat for hit in hits])
    if state.mode == "heat":
        return overlay(base, heat.amax(dim=0))
    masks = torch.stack([_largest(hit) if state.largest else hit.mask for hit in hits])
    return highlighted(state, base, heat, masks)


def _largest(hit: Hit) -> Bool[Tensor, "height width"]:
    """The largest connected part of a mask."""
    parts, count = ndimage.label(hit.mask.numpy())
    if count == 0:
        return hit.mask
    sizes = ndimage.sum_labels(parts > 0, parts, range(1, count + 1))
    return torch.from_numpy(parts == 1 + int(sizes.argmax()))
