"""gags view: a page to fly through a run, ask it and save what was found."""

from __future__ import annotations

import dataclasses
import sys
import time
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from gags.commands._report import say
from gags.query import VOCABULARY, QueryConfig, read_vocabulary
from gags.runs import FieldKind, Run, open_run
from gags.view import ViewConfig, serve


@dataclass(frozen=True)
class Arguments:
    """A page in the browser: fly through the scene, ask in your own words, edit what is shown, save what was found."""

    run: tyro.conf.Positional[Path]
    """A run folder made by 'gags run'."""
    page: tyro.conf.OmitArgPrefixes[ViewConfig] = dataclasses.field(default_factory=ViewConfig)
    """Where the page is served, and how much it shows."""
    query: tyro.conf.OmitArgPrefixes[QueryConfig] = dataclasses.field(default_factory=QueryConfig)
    """How relevancy is computed."""
    field: FieldKind | None = None
    """Which of the run's fields to ask; without it, the one the run was made with."""
    vocabulary: Path | None = None
    """Text file of phrases, one a line, for the question what a place is; without it, a hundred everyday things."""
    browser: bool = True
    """Open the page in a browser, if this is an interactive terminal."""


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, serve the page until interrupted."""
    options = tyro.cli(Arguments, args=list(arguments), prog="gags view", config=(tyro.conf.FlagCreatePairsOff,))
    vocabulary = VOCABULARY if options.vocabulary is None else read_vocabulary(options.vocabulary)
    run = open_run(options.run)
    show(run, options.field, run.query_config(options.query), options.page, vocabulary, options.browser)


def show(
    run: Run,
    kind: FieldKind | None,
    query_config: QueryConfig,
    config: ViewConfig,
    vocabulary: Sequence[str] = VOCABULARY,
    browser: bool = True,
) -> None:
    """Serve a run's page until interrupted, and say where."""
    page = serve(run, run.field(kind), query_config, config, vocabulary)
    try:
        say(f"{page.url}   (Ctrl-C ends it)")
        if browser and sys.stdout.isatty():
            webbrowser.open(page.url)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        say("the page is closed")
    finally:
        page.stop()
