"""Pictures of what a run holds: renders of a view in several modes, and of what a query found."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from gags.errors import GagsError
from gags.geometry import Camera
from gags.images import colormap, depth_colors, draw_box, draw_mask, draw_point, feature_colors, overlay, write_image
from gags.query import Hit, QueryConfig, relevancy_maps
from gags.rasterize import render
from gags.runs import FieldKind, Run, file_name
from gags.scene import View

RenderMode = Literal["rgb", "depth", "feature", "granularity", "relevancy"]

FOUND_COLOR = (255, 60, 30)


def render_picture(
    run: Run, camera: Camera, mode: RenderMode, phrase: str | None, kind: FieldKind | None, config: QueryConfig
) -> UInt8[Tensor, "height width 3"]:
    """A picture of what a camera sees in one mode.

    Args:
        phrase: what the relevancy is of (mode relevancy only).
        kind: the field to show (None: the run's own).

    Raises GagsError for granularity of a field that knows none.
    """
    if mode == "rgb":
        return (render(run.gaussians, camera).colors.clamp(0, 1) * 255).round().to(torch.uint8)
    if mode == "depth":
        return depth_colors(render(run.gaussians, camera).depth)
    field = run.field(kind)
    if mode == "feature":
        return feature_colors(field.render(camera))
    if mode == "granularity":
        weights = field.granularity(camera)
        if weights is None:
            raise GagsError(
                f"{run.folder.root}: expected a field that learned granularity, found a lift; use --field gad or galift"
            )
        return (weights * 255).round().to(torch.uint8)
    return colormap(relevancy_maps(field, camera, [phrase or ""], run.encoder, config)[0])


def write_hit_pictures(hit: Hit, view: View, folder: Path) -> dict[str, str]:
    """Write what a query found in a view as four PNGs; returns their paths.

    ``heat`` is the heat map, ``composite`` the photograph under it, ``mask`` the mask alone, ``found`` the photograph with
    mask, box and point.
    """
    photo = view.image()
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
