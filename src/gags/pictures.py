"""Pictures of what a run holds: renders of a view in several modes, and of what a query found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from gags.distill import LanguageField
from gags.errors import GagsError
from gags.geometry import Camera
from gags.images import (
    as_bytes,
    colormap,
    depth_colors,
    disparity_span,
    draw_box,
    draw_mask,
    draw_point,
    feature_colors,
    feature_palette,
    overlay,
    write_image,
)
from gags.inventory import Thing
from gags.query import Hit, QueryConfig, relevancy_maps
from gags.rasterize import render
from gags.runs import FieldKind, Run, file_name
from gags.scene import Scene, View

RenderMode = Literal["rgb", "depth", "feature", "granularity", "relevancy", "heat"]

Painter = Callable[[Camera], UInt8[Tensor, "height width 3"]]

FOUND_COLOR = (255, 60, 30)
# As many views tell the range of a whole path's depths and features.
_SCALE_VIEWS = 6


def render_picture(
    run: Run, camera: Camera, mode: RenderMode, phrase: str | None, kind: FieldKind | None, config: QueryConfig
) -> UInt8[Tensor, "height width 3"]:
    """A picture of what a camera sees in one mode, as ``painter`` has it."""
    return painter(run, [camera], mode, phrase, kind, config)(camera)


def painter(
    run: Run,
    cameras: Sequence[Camera],
    mode: RenderMode,
    phrase: str | None,
    kind: FieldKind | None,
    config: QueryConfig,
) -> Painter:
    """A function from cameras to pictures in one mode, in which a colour means the same in every picture.

    Args:
        cameras: what the colours of depth, features and heat are made to fit; a few of them, evenly spread, are looked at.
        phrase: what relevancy (0..1 as it is) and heat (the upper half of its range, over the colours) are of.
        kind: the field to show (None: the run's own).

    Raises GagsError for granularity of a field that knows none.
    """
    gaussians = run.gaussians
    sample = cameras[:: -(-len(cameras) // _SCALE_VIEWS)]
    if mode == "rgb":
        return lambda camera: as_bytes(render(gaussians, camera).colors)
    if mode == "depth":
        span = disparity_span(torch.cat([render(gaussians, camera).depth.flatten() for camera in sample]))
        return lambda camera: depth_colors(render(gaussians, camera).depth, span)
    field = run.field(kind)
    if mode == "feature":
        palette = feature_palette(torch.cat([field.render(camera).flatten(0, 1) for camera in sample]))
        return lambda camera: feature_colors(field.render(camera), palette)
    if mode == "granularity":
        return lambda camera: _granularity_picture(run, field, camera)

    def relevancy_map(camera: Camera) -> Float[Tensor, "height width"]:
        return relevancy_maps(field, camera, [phrase or ""], run.encoder, config)[0]

    if mode == "relevancy":
        return lambda camera: colormap(relevancy_map(camera))
    low, high = torch.cat([relevancy_map(camera).flatten() for camera in sample]).aminmax()
    return lambda camera: _heat_picture(run, camera, relevancy_map(camera), float(low), float(high))


def _heat_picture(
    run: Run, camera: Camera, relevancy_map: Float[Tensor, "height width"], low: float, high: float
) -> UInt8[Tensor, "height width 3"]:
    colors = as_bytes(render(run.gaussians, camera).colors)
    # 1e-9: where all is equally relevant nothing is hot
    return overlay(colors, (2 * (relevancy_map - low) / (high - low + 1e-9) - 1).clamp(0, 1))


def _granularity_picture(run: Run, field: LanguageField, camera: Camera) -> UInt8[Tensor, "height width 3"]:
    weights = field.granularity(camera)
    if weights is None:
        raise GagsError(
            f"{run.folder.root}: expected a field that learned granularity, found a lift; use --field gad or galift"
        )
    return as_bytes(weights)


def write_hit_pictures(
    hit: Hit, view: View, folder: Path, photo: UInt8[Tensor, "height width 3"] | None = None
) -> dict[str, str]:
    """Write what a query found in a view as four PNGs; returns their paths.

    ``heat`` is the heat map, ``composite`` the photograph under it, ``mask`` the mask alone, ``found`` the photograph with
    mask, box and point. ``photo`` stands in for the view's photograph.
    """
    photo = view.image() if photo is None else photo
    found = draw_mask(photo, hit.mask, FOUND_COLOR)
    if hit.box_xyxy_px is not None:
        found = draw_box(found, hit.box_xyxy_px, FOUND_COLOR)
    pictures = {
        "heat": colormap(hit.heat),
        "composite": overlay(photo, hit.heat),
        "mask": (hit.mask.to(torch.uint8) * 255)[..., None].expand(-1, -1, 3),
        "found": draw_point(found, hit.point_xy_px, (255, 255, 255)),
    }
    paths = {}
    for kind, picture in pictures.items():
        path = folder / file_name(view.name, f"_{kind}.png")
        write_image(path, picture)
        paths[kind] = str(path)
    return paths


def thing_crop(scene: Scene, thing: Thing) -> UInt8[Tensor, "rows columns 3"] | None:
    """The part of the photograph that shows a thing best, what is around it dimmed; None where no view shows it."""
    if thing.box_xyxy_px is None or thing.mask is None:
        return None
    left, top, right, bottom = thing.box_xyxy_px
    photo = scene.view(thing.view_name).image()
    mask = functional.interpolate(thing.mask[None, None].float(), (bottom - top, right - left))[0, 0]
    weight = torch.full(photo.shape[:2], 0.4)
    weight[top:bottom, left:right] += 0.6 * mask
    margin = round(0.1 * max(right - left, bottom - top))
    part = (slice(max(0, top - margin), bottom + margin), slice(max(0, left - margin), right + margin))
    return (photo[part] * weight[part][..., None]).round().to(torch.uint8)


def write_thing_crops(scene: Scene, things: Sequence[Thing], folder: Path) -> list[Path | None]:
    """Write the crop of every thing as a PNG; returns their paths, None for things that no view shows."""
    paths: list[Path | None] = []
    for index, thing in enumerate(things):
        crop = thing_crop(scene, thing)
        path = None if crop is None else folder / f"thing_{index:02d}.png"
        if crop is not None and path is not None:
            write_image(path, crop)
        paths.append(path)
    return paths
