"""gags demo: a small built-in scene is made, learned and searched."""

from __future__ import annotations

import dataclasses
import html
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import tyro

from gags.commands._report import print_table, say, say_costs, slug
from gags.evaluate import Labels, evaluation_table, load_labels
from gags.images import write_image
from gags.pictures import render_picture, write_hit_pictures
from gags.pipeline import run
from gags.presets import DEMO
from gags.query import QueryConfig, query
from gags.runs import Run, evaluate_run
from gags.scene.demo import DemoConfig, make_demo_scene
from gags.store import write_json, write_text


@dataclass(frozen=True)
class Arguments:
    """A small room hung with photographs is made, reconstructed, learned and searched: no data of yours, no downloads."""

    out: Path = Path("runs/demo")
    """The run folder; the scene itself goes beside it, into OUT-capture."""
    view: bool = True
    """Open the page of answers in a browser, if this is an interactive terminal."""


def main(arguments: Sequence[str]) -> None:
    """Make the scene, run the chain, evaluate, answer every labelled phrase, say how to look further."""
    options = tyro.cli(Arguments, args=list(arguments), prog="gags demo")
    capture = options.out.parent / f"{options.out.name}-capture"
    if not (capture / "labels").is_dir():
        say(f"making a room of photographs in {capture}")
        make_demo_scene(capture, DemoConfig())
    result = run(capture, options.out, dataclasses.replace(DEMO, labels=capture / "labels"))
    labels = load_labels(capture / "labels")
    evaluation = evaluate_run(result, capture / "labels", None, QueryConfig())
    write_json(result.folder.path("metrics/evaluation.json"), evaluation.to_json())
    page = _write_page(result, labels)
    say_costs(result.folder)
    print_table(evaluation_table(evaluation))
    phrase = labels.phrases[0]
    say(f"\nPictures:         {page}")
    say(f'Ask yourself:     gags query {options.out} "{phrase}"')
    say(f'The splats of it: gags query {options.out} "{phrase}" --3d')
    say("Your own photos:  gags run PHOTOS/ --out runs/mine")
    if options.view and sys.stdout.isatty():
        webbrowser.open(page.resolve().as_uri())


def _write_page(run: Run, labels: Labels) -> Path:
    """One page with every phrase's answer in the labelled view that shows it first."""
    folder = run.folder.path("renders")
    field = run.field()
    rows, asked = [], set()
    for frame in labels.frames:
        view = run.scene.view(frame.image_name)
        phrases = [label.category for label in frame.labels if label.category not in asked]
        asked.update(phrases)
        for hit in query(field, view.camera, phrases, run.encoder, QueryConfig()) if phrases else []:
            paths = write_hit_pictures(hit, view, folder / "query" / slug(hit.phrase))
            pictures = "".join(
                f'<img src="{quote(Path(paths[kind]).relative_to(folder).as_posix())}" alt="{kind}">'
                for kind in ("found", "composite")
            )
            rows.append(f"<h2>{html.escape(hit.phrase)}</h2><p>{view.name}, score {hit.score:.2f}</p>{pictures}")
    camera = run.scene.views[0].camera
    for mode in ("rgb", "depth", "feature", "granularity"):
        write_image(folder / f"{mode}.png", render_picture(run, camera, mode, None, None, QueryConfig()))
        rows.append(f'<h2>{mode}</h2><img src="{mode}.png" alt="{mode}">')
    style = "body{font:16px sans-serif;margin:2em;background:#fafafa}img{margin:0 8px 8px 0;max-width:46%}"
    text = f"<!doctype html><meta charset=utf-8><title>gags demo</title><style>{style}</style>{''.join(rows)}\n"
    page = folder / "index.html"
    write_text(page, text)
    return page
