"""gags query: where is it?"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from gags.commands._report import print_json, print_rows, say, slug
from gags.distill import LanguageField
from gags.errors import GagsError
from gags.gaussians import write_splats
from gags.pictures import render_picture, write_hit_pictures
from gags.query import Hit, QueryConfig, Selection, best_view, query, query_3d
from gags.runs import FieldKind, Run, open_run
from gags.scene import View, read_camera
from gags.settings import check_settings


@dataclass(frozen=True)
class Arguments:
    """Where is it? Points, boxes, masks and pictures for phrases in views of a run, or the Gaussians themselves."""

    run: tyro.conf.Positional[Path]
    """A run folder made by 'gags run'."""
    phrases: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PHRASE ...", help_behavior_hint="(at least one)")
    ]
    """What to look for, one phrase an argument."""
    query: tyro.conf.OmitArgPrefixes[QueryConfig] = dataclasses.field(default_factory=QueryConfig)
    """How relevancy becomes points, masks and selections."""
    view: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """File name of a view to look in (repeatable), or 'all'; without it, the view that shows the find best."""
    camera: Path | None = None
    """File with a camera, as the page of 'gags view' saves it: look from there instead of from a photograph's place."""
    select_3d: Annotated[bool, tyro.conf.arg(name="3d")] = False
    """Find the Gaussians instead: ids, centroid, box and a .ply of the selection."""
    field: FieldKind | None = None
    """Which of the run's fields to ask; without it, the one the run was made with."""
    out: Path | None = None
    """Folder for pictures and .ply files (default: RUN/renders/query)."""
    json: bool = False
    """Print JSON instead of a table."""
    pictures: bool = True
    """Write heat map, composite, mask and marked photograph as PNGs."""


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, answer every phrase, print the answers."""
    options = tyro.cli(Arguments, args=list(arguments), prog="gags query")
    check_settings(options.query)
    if options.select_3d and options.view:
        raise GagsError(
            f"query --3d: expected no --view, since it searches the whole scene, found --view {options.view[0]}; leave one out"
        )
    if options.camera is not None and (options.select_3d or options.view):
        raise GagsError(
            f"query --camera {options.camera}: expected no other place to look, found "
            f"{'--3d' if options.select_3d else f'--view {options.view[0]}'}; leave one out"
        )
    run = open_run(options.run)
    options = dataclasses.replace(options, query=run.query_config(options.query))
    field = run.field(options.field)
    # models of text are loaded when they are first used: that is no part of a query's seconds
    run.encoder.encode_phrases(options.query.negatives)
    out = options.out or options.run / "renders" / "query"
    if options.select_3d:
        selections = query_3d(field, options.phrases, run.encoder, options.query)
        rows = [_selection_row(selection, run, out) for selection in selections]
    else:
        rows = _hit_rows(options, run, field, out)
    if options.json:
        print_json(rows)
        return
    if len(run.field_kinds) > 1:
        say(f"asked the field {options.field or run.default_field}; the run has {', '.join(run.field_kinds)}")
    print_rows(rows, hidden=("pictures", "gaussian_ids"))
    for row in rows:
        if "pictures" in row:
            say(f"{row['phrase']}: {row['pictures']['found']}")


def _hit_rows(options: Arguments, run: Run, field: LanguageField, out: Path) -> list[dict[str, Any]]:
    """A row for every phrase and view, phrase by phrase; a view is rendered once for all its phrases."""
    wanted = _phrases_by_view(options, run, field)
    rows = []
    for view, phrases in wanted:
        photo = None if options.camera is None else render_picture(run, view.camera, "rgb", None, None, options.query)
        started = time.perf_counter()
        hits = query(field, view.camera, phrases, run.encoder, options.query)
        seconds = (time.perf_counter() - started) / len(phrases)
        for hit in hits:
            row = _hit_row(hit, view, seconds)
            if options.pictures:
                row["pictures"] = write_hit_pictures(hit, view, out / slug(hit.phrase), photo)
            rows.append(row)
    return sorted(rows, key=lambda row: options.phrases.index(row["phrase"]))


def _phrases_by_view(options: Arguments, run: Run, field: LanguageField) -> list[tuple[View, Sequence[str]]]:
    if options.camera is not None:
        # no photograph was taken there: a view by the name of the file stands in
        return [(View(options.camera.stem, read_camera(options.camera), options.camera), options.phrases)]
    if "all" in options.view:
        return [(view, options.phrases) for view in run.scene.views]
    if options.view:
        return [(run.scene.view(name), options.phrases) for name in options.view]
    selections = query_3d(field, options.phrases, run.encoder, options.query)
    return [(best_view(field.gaussians, selection, run.scene.views), [selection.phrase]) for selection in selections]


def _hit_row(hit: Hit, view: View, seconds: float) -> dict[str, Any]:
    return {
        "phrase": hit.phrase,
        "view": view.name,
        "score": round(hit.score, 4),
        "point_xy_px": [float(value) for value in hit.point_xy_px],
        "box_xyxy_px": None if hit.box_xyxy_px is None else [float(value) for value in hit.box_xyxy_px],
        "mask_px": int(hit.mask.sum()),
        "seconds": round(seconds, 3),
    }


def _selection_row(selection: Selection, run: Run, out: Path) -> dict[str, Any]:
    row: dict[str, Any] = {
        "phrase": selection.phrase,
        "score": round(selection.score, 4),
        "n_gaussians": len(selection.gaussian_ids),
        "centroid_world": None,
        "box_world": None,
        "ply": None,
    }
    if selection.centroid_world is not None and selection.box_world is not None:
        path = out / f"{slug(selection.phrase)}.ply"
        write_splats(path, run.gaussians.subset(selection.gaussian_ids))
        row["centroid_world"] = _rounded(selection.centroid_world)
        row["box_world"] = [_rounded(corner) for corner in selection.box_world]
        row["ply"] = str(path)
    row["gaussian_ids"] = selection.gaussian_ids.tolist()
    return row


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]
