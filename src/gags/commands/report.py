"""gags report: a run as one HTML file."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from gags.query import QueryConfig
from gags.report import ReportConfig, make_report
from gags.runs import FieldKind, Run, open_run
from gags.settings import check_settings
from gags.store import write_text


@dataclass(frozen=True)
class Arguments:
    """A run as one HTML file that opens anywhere: pictures, masks, curves, costs, metrics, queries, inventory, settings."""

    run: tyro.conf.Positional[Path]
    """A run folder made by 'gags run'."""
    report: tyro.conf.OmitArgPrefixes[ReportConfig] = dataclasses.field(default_factory=ReportConfig)
    """What is in it."""
    query: tyro.conf.OmitArgPrefixes[QueryConfig] = dataclasses.field(default_factory=QueryConfig)
    """How relevancy becomes points and masks."""
    field: FieldKind | None = None
    """Which of the run's fields it is about; without it, the one the run was made with."""
    out: Path | None = None
    """The file (default: RUN/report.html)."""


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, write the file, name it."""
    options = tyro.cli(Arguments, args=list(arguments), prog="gags report")
    check_settings(options.query)
    path = write_report(open_run(options.run), options.field, options.query, options.report, options.out)
    sys.stdout.write(f"{path}\n")


def write_report(
    run: Run, kind: FieldKind | None, query_config: QueryConfig, config: ReportConfig, out: Path | None = None
) -> Path:
    """Write the report of a run, into its folder where nothing else is named; returns where."""
    path = out or run.folder.path("report.html")
    write_text(path, make_report(run, kind, query_config, config))
    return path
