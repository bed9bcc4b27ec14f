"""gags run: photographs or a COLMAP scene -> a searchable run folder."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gags.commands._report import say, say_costs
from gags.commands.report import write_report
from gags.commands.view import show
from gags.distill import Levels
from gags.errors import GagsError
from gags.pipeline import RunConfig, run
from gags.presets import PRESETS, PresetName
from gags.query import QueryConfig
from gags.report import ReportConfig
from gags.runs import Run
from gags.segment import Prompts
from gags.view import LiveView, ViewConfig


@dataclass(frozen=True)
class Arguments:
    """Photographs or a COLMAP scene -> cameras -> splats -> masks -> features -> language field.

    The same command goes on where an earlier one stopped; a changed flag rebuilds only what follows it.
    """

    source: tyro.conf.Positional[Path]
    """A COLMAP scene (images/ and sparse/0/) or a folder of photographs."""
    out: Path
    """The run folder."""
    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    """Every setting, starting from the preset."""
    preset: PresetName = "fast"
    """What the settings start from: fast (minutes on a laptop), balanced, paper (the publication's numbers)."""
    levels: Levels | None = None
    """Short for --distill.levels, and --lift.levels where it is one of them: which levels the field learns from."""
    view: bool = False
    """Serve a page on which the trainings can be watched, and that of 'gags view' when they are done, until interrupted."""
    page: ViewConfig = dataclasses.field(default_factory=ViewConfig)
    """Where that page is served."""
    report: bool = True
    """Write RUN/report.html when all is done: a page with pictures, curves, costs and answers ('gags report')."""
    prompts: Prompts | None = None
    """Short for --segment.prompts: depth (GaS) or uniform (a grid of as many points)."""


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, make the run, say what it cost."""
    default = Arguments(source=Path(), out=Path(), config=preset_config(arguments))
    required = dataclasses.replace(default, source=tyro.MISSING, out=tyro.MISSING)
    options = tyro.cli(Arguments, args=list(arguments), prog="gags run", default=required)
    live = LiveView(options.page) if options.view else None
    try:
        if live is not None:
            say(f"watch it at {live.url}")
        result = run(options.source, options.out, _with_short_flags(options), watcher=live)
    finally:
        if live is not None:
            live.stop()
    page = _report(result) if options.report else None
    say_costs(result.folder)
    if page is not None:
        say(f"\nThe run on one page:   {page}")
    say(f'\nNow ask it something:  gags query {options.out} "your words"')
    say(f"or in the browser:     gags view {options.out}")
    if options.view:
        show(result, None, result.query_config(QueryConfig()), options.page, browser=False)


def _report(result: Run) -> Path | None:
    """The report's path; None, and a word on why, where it cannot be made: the run itself is there all the same."""
    try:
        return write_report(result, None, QueryConfig(), ReportConfig())
    except GagsError as error:
        say(f"no report: {error}")
        return None


def _with_short_flags(options: Arguments) -> RunConfig:
    config = options.config
    if options.prompts is not None:
        config = dataclasses.replace(config, segment=dataclasses.replace(config.segment, prompts=options.prompts))
    if options.levels is not None:
        if config.field == "galift":
            raise GagsError(
                f"--levels {options.levels}: expected --field gad, lift or all, found galift, which weighs the levels itself"
            )
        config = dataclasses.replace(config, distill=dataclasses.replace(config.distill, levels=options.levels))
        if options.levels != "gad":
            config = dataclasses.replace(config, lift=dataclasses.replace(config.lift, levels=options.levels))
    return config


def preset_config(arguments: Sequence[str]) -> RunConfig:
    """The preset named on the command line: it must be known before the other flags can be parsed against it."""
    values = [argument.partition("=")[2] for argument in arguments if argument.startswith("--preset=")]
    values += [value for flag, value in itertools.pairwise(arguments) if flag == "--preset"]
    # the last one counts, as for every flag; what is no preset is for the parser to refuse
    return PRESETS[next((name for name in PRESETS if values and name == values[-1]), "fast")]
