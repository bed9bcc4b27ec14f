"""gags render: pictures of any view."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from gags.commands._report import slug
from gags.errors import GagsError
from gags.images import write_image
from gags.pictures import RenderMode, render_picture
from gags.query import QueryConfig
from gags.runs import FieldKind, file_name, open_run
from gags.settings import Side, check_settings


@dataclass(frozen=True)
class Arguments:
    """Render views of a run as PNGs."""

    run: tyro.conf.Positional[Path]
    """A run folder made by 'gags run'."""
    view: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """File name of a view (repeatable), or 'all'; without it, the first view."""
    mode: RenderMode = "rgb"
    """feature: three principal components; granularity: red subpart, green part, blue whole; relevancy: needs --phrase."""
    phrase: str | None = None
    """What the relevancy is of."""
    query: tyro.conf.OmitArgPrefixes[QueryConfig] = dataclasses.field(default_factory=QueryConfig)
    """How relevancy is computed."""
    field: FieldKind | None = None
    """Which of the run's fields to show; without it, the one the run was made with."""
    max_side_px: Side | None = None
    """Longer side of the picture; without it, the size of the photograph."""
    out: Path | None = None
    """Folder for the pictures (default: RUN/renders/MODE)."""


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, render, print the paths."""
    options = tyro.cli(Arguments, args=list(arguments), prog="gags render")
    check_settings(options)
    check_settings(options.query)
    if options.mode == "relevancy" and not (options.phrase or "").strip():
        raise GagsError('render --mode relevancy: expected a phrase, found none; add --phrase "red mug"')
    run = open_run(options.run)
    options = dataclasses.replace(options, query=run.query_config(options.query))
    scene = run.scene
    views = scene.views if "all" in options.view else [scene.view(name) for name in options.view] or scene.views[:1]
    out = options.out or options.run / "renders" / options.mode
    suffix = f"_{slug(options.phrase)}" if options.mode == "relevancy" and options.phrase else ""
    suffix = f"_{options.mode}{suffix}.png"
    for view in views:
        camera = view.camera.limited(options.max_side_px)
        picture = render_picture(run, camera, options.mode, options.phrase, options.field, options.query)
        path = out / file_name(view.name, suffix)
        write_image(path, picture)
        sys.stdout.write(f"{path}\n")
