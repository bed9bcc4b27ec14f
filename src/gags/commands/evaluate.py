"""gags evaluate: how good is it?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from gags.commands._report import print_json, print_table
from gags.evaluate import evaluation_table
from gags.query import QueryConfig
from gags.runs import evaluate_run, open_run
from gags.store import to_json, write_json


@dataclass(frozen=True)
class Arguments:
    """mIoU and localisation accuracy on labels in LERF-OVS form, matched to images by exact file name."""

    run: tyro.conf.Positional[Path]
    """A run folder made by 'gags run'."""
    labels: Path
    """Folder with one JSON for each labelled image."""
    query: tyro.conf.OmitArgPrefixes[QueryConfig] = dataclasses.field(default_factory=QueryConfig)
    """How relevancy becomes points and masks."""
    field: Literal["gad", "lift", "teacher"] | None = None
    """What to evaluate: a field (default: the run's own), or teacher: each view's own masks and features, no 3D."""
    json: bool = False
    """Print JSON instead of a table (RUN/metrics has it either way)."""


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, evaluate, write and print the metrics."""
    options = tyro.cli(Arguments, args=list(arguments), prog="gags evaluate")
    run = open_run(options.run)
    evaluation = evaluate_run(run, options.labels, options.field, options.query)
    field = options.field or run.default_field
    result = {"field": field, **evaluation.to_json(), "query": to_json(options.query)}
    name = f"evaluation_{options.field}" if options.field else "evaluation"
    write_json(run.folder.path(f"metrics/{name}.json"), result)
    if options.json:
        print_json(result)
    else:
        print_table(evaluation_table(evaluation))
