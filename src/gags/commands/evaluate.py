"""gags evaluate: how good is it?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from gags.commands._report import print_json, print_table
from gags.errors import GagsError
from gags.evaluate import ConsistencyConfig, Protocol, consistency_table, evaluation_table
from gags.query import QueryConfig
from gags.runs import FieldKind, Run, evaluate_run, open_run, run_consistency
from gags.settings import check_settings
from gags.store import to_json, write_json


@dataclass(frozen=True)
class Arguments:
    """mIoU and localisation accuracy on labels in LERF-OVS form, matched to images by exact file name; multiview consistency."""

    run: tyro.conf.Positional[Path]
    """A run folder made by 'gags run'."""
    labels: Path | None = None
    """Folder with one JSON for each labelled image; only --consistency does without."""
    query: tyro.conf.OmitArgPrefixes[QueryConfig] = dataclasses.field(default_factory=QueryConfig)
    """How relevancy becomes points and masks."""
    field: FieldKind | Literal["teacher"] | None = None
    """What to evaluate: a field (default: the run's own), or teacher: each view's own masks and features, no 3D."""
    protocol: Protocol = "rendered"
    """rendered: features are rendered, then scored (LangSplat, GAGS). selected: Gaussians are selected in 3D, then rendered alone
    (OpenGaussian). Their numbers must not be compared."""
    consistency: bool = False
    """Measure how well the views' mask features agree on each Gaussian, by level and as the run's fields weigh the levels."""
    json: bool = False
    """Print JSON instead of a table (RUN/metrics has it either way)."""


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, evaluate, write and print the metrics."""
    options = tyro.cli(Arguments, args=list(arguments), prog="gags evaluate")
    if options.labels is None and not options.consistency:
        raise GagsError(
            "evaluate: expected --labels DIR or --consistency, found neither; name a folder of LERF-OVS labels"
        )
    check_settings(options.query)
    run = open_run(options.run)
    results: dict[str, Any] = {}
    if options.labels is not None:
        results |= _evaluation(run, options.labels, options)
    if options.consistency:
        results["consistency"] = _consistency(run, options)
    if options.json:
        print_json(results)


def _evaluation(run: Run, labels: Path, options: Arguments) -> dict[str, Any]:
    evaluation = evaluate_run(run, labels, options.field, options.query, options.protocol)
    field = options.field or run.default_field
    result = {"field": field, **evaluation.to_json(), "query": to_json(options.query)}
    name = "_".join(
        [
            "evaluation",
            *([options.field] if options.field else []),
            *(["selected"] if options.protocol == "selected" else []),
        ]
    )
    write_json(run.folder.path(f"metrics/{name}.json"), result)
    if not options.json:
        print_table(evaluation_table(evaluation))
    return result


def _consistency(run: Run, options: Arguments) -> dict[str, Any]:
    config = ConsistencyConfig()
    consistency = run_consistency(run, config)
    result = {**consistency.to_json(), "config": to_json(config)}
    write_json(run.folder.path("metrics/consistency.json"), result)
    if not options.json:
        print_table(consistency_table(consistency))
    return result
