"""gags demo: a small built-in scene is made, learned and searched."""

from __future__ import annotations

import dataclasses
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from gags.commands._report import print_table, say, say_costs
from gags.commands.report import write_report
from gags.evaluate import evaluation_table, load_labels
from gags.pipeline import run
from gags.presets import DEMO
from gags.query import QueryConfig
from gags.report import ReportConfig
from gags.runs import evaluate_run
from gags.scene.demo import DemoConfig, make_demo_scene
from gags.store import write_json


@dataclass(frozen=True)
class Arguments:
    """A small room hung with photographs is made, reconstructed, learned and searched: no data of yours, no downloads."""

    out: Path = Path("runs/demo")
    """The run folder; the scene itself goes beside it, into OUT-capture."""
    view: bool = True
    """Open the report in a browser, if this is an interactive terminal."""


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
    page = write_report(result, None, QueryConfig(), ReportConfig())
    say_costs(result.folder)
    print_table(evaluation_table(evaluation))
    phrase = labels.phrases[0]
    say(f"\nOn one page:      {page}")
    say(f"Look around:      gags view {options.out}")
    say(f'Ask yourself:     gags query {options.out} "{phrase}"')
    say(f'The splats of it: gags query {options.out} "{phrase}" --3d')
    say("Your own photos:  gags run PHOTOS/ --out runs/mine")
    if options.view and sys.stdout.isatty():
        webbrowser.open(page.resolve().as_uri())
