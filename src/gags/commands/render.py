"""gags render: pictures of any view, and moving pictures along a path of cameras."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from jaxtyping import UInt8
from torch import Tensor

from gags.commands._report import say, slug
from gags.errors import GagsError
from gags.geometry import Camera
from gags.images import write_image
from gags.paths import ellipse_path, interpolated_path
from gags.pictures import Painter, RenderMode, painter
from gags.progress import track
from gags.query import QueryConfig
from gags.runs import FieldKind, Run, file_name, open_run
from gags.scene import View, read_cameras
from gags.settings import Count, Positive, Side, check_settings
from gags.video import check_video_name, write_video

_ASKING: tuple[RenderMode, ...] = ("relevancy", "heat")
"""The modes that show where a phrase is."""


@dataclass(frozen=True)
class Arguments:
    """Render views of a run as PNGs, or a flight through it as a video."""

    run: tyro.conf.Positional[Path]
    """A run folder made by 'gags run'."""
    view: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """File name of a view (repeatable), or 'all'; without it, the first view. With --path: the views that carry it, without
    it all of them."""
    mode: RenderMode = "rgb"
    """feature: three principal components; granularity: red subpart, green part, blue whole; relevancy (0 to 1) and heat (the
    upper half of its range, over the colours) need --phrase."""
    phrase: str | None = None
    """What relevancy and heat are of."""
    side_by_side: bool = False
    """Put the colours (mode rgb) at the left of every picture."""
    path: str | None = None
    """Fly: 'interpolate' (a spline through the views in the order of their names), 'ellipse' (a round through the cloud of
    cameras), or a JSON file of cameras (a spline through them)."""
    video: Path | None = None
    """.mp4 file (H.264) of the flight; without --path, of 'interpolate'."""
    frames: bool = False
    """With --video: write every frame as a PNG as well. Without --video they always are."""
    seconds: Positive = 8.0
    """Duration of the flight in seconds."""
    fps: Count = 24
    """Frames per second of the flight."""
    key_views: Count = 16
    """Of more views than this, so many evenly spread ones carry the spline: the flight stays calm."""
    query: tyro.conf.OmitArgPrefixes[QueryConfig] = dataclasses.field(default_factory=QueryConfig)
    """How relevancy is computed."""
    field: FieldKind | None = None
    """Which of the run's fields to show; without it, the one the run was made with."""
    max_side_px: Side | None = None
    """Longer side of a picture in pixels; without it, the size of the photograph."""
    out: Path | None = None
    """Folder for the pictures (default: RUN/renders/MODE, for frames RUN/renders/MODE/PATH)."""


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, render, print the paths."""
    options = tyro.cli(Arguments, args=list(arguments), prog="gags render")
    check_settings(options)
    check_settings(options.query)
    if options.mode in _ASKING and not (options.phrase or "").strip():
        raise GagsError(f'render --mode {options.mode}: expected a phrase, found none; add --phrase "red mug"')
    if options.mode not in _ASKING and options.phrase is not None:
        raise GagsError(
            f"render --phrase {options.phrase!r}: expected --mode {' or '.join(_ASKING)} beside it, "
            f"found {options.mode}; leave it out"
        )
    if options.video is not None:
        check_video_name(options.video)
    run = open_run(options.run)
    options = dataclasses.replace(options, query=run.query_config(options.query))
    if options.path is not None or options.video is not None:
        _render_flight(run, options)
    else:
        _render_views(run, options)


def _render_views(run: Run, options: Arguments) -> None:
    views = _views(run, options) or run.scene.views[:1]
    out = options.out or options.run / "renders" / options.mode
    suffix = f"_{slug(options.phrase)}" if options.phrase else ""
    suffix = f"_{options.mode}{suffix}{'_side_by_side' if options.side_by_side else ''}.png"
    for view in views:
        camera = view.camera.limited(options.max_side_px)
        # each picture has the colours that fit it
        picture = _painter(run, [camera], options)(camera)
        path = out / file_name(view.name, suffix)
        write_image(path, picture)
        sys.stdout.write(f"{path}\n")


def _render_flight(run: Run, options: Arguments) -> None:
    path_name = options.path or "interpolate"
    cameras = [camera.limited(options.max_side_px) for camera in _flight(run, path_name, options)]
    paint = _painter(run, cameras, options)
    folder = None
    if options.frames or options.video is None:
        folder = options.out or options.run / "renders" / options.mode / Path(path_name).stem

    def pictures() -> Iterator[UInt8[Tensor, "height width 3"]]:
        for index, camera in enumerate(track(cameras, "render")):
            picture = paint(camera)
            if folder is not None:
                write_image(folder / f"frame_{index:05d}.png", picture)
            yield picture

    if options.video is not None:
        count = write_video(options.video, pictures(), options.fps)
        sys.stdout.write(f"{options.video}\n")
    else:
        count = sum(1 for _ in pictures())
    if folder is not None:
        sys.stdout.write(f"{folder}\n")
    say(f"{count} frames of {cameras[0].width * (1 + options.side_by_side)}x{cameras[0].height} pixels")


def _flight(run: Run, path_name: str, options: Arguments) -> list[Camera]:
    n_frames = max(1, round(options.seconds * options.fps))
    cameras = [view.camera for view in _views(run, options) or run.scene.views]
    if path_name == "ellipse":
        return ellipse_path(cameras, n_frames)
    if path_name == "interpolate":
        spread = torch.linspace(0, len(cameras) - 1, min(len(cameras), options.key_views)).round().long().tolist()
        return interpolated_path([cameras[index] for index in spread], n_frames)
    if not Path(path_name).is_file():
        raise GagsError(
            f"render --path {path_name}: expected interpolate, ellipse or a JSON file of cameras, found no such file"
        )
    return interpolated_path(read_cameras(Path(path_name)), n_frames)


def _views(run: Run, options: Arguments) -> Sequence[View]:
    return run.scene.views if "all" in options.view else [run.scene.view(name) for name in options.view]


def _painter(run: Run, cameras: Sequence[Camera], options: Arguments) -> Painter:
    paint = painter(run, cameras, options.mode, options.phrase, options.field, options.query)
    if not options.side_by_side:
        return paint
    paint_rgb = painter(run, cameras, "rgb", None, None, options.query)
    return lambda camera: torch.cat([paint_rgb(camera), paint(camera)], dim=1)
