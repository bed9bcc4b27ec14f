"""gags ablate: what granularity is worth, by leaving parts of it out."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from gags.commands._report import print_json, print_table, say
from gags.commands.run import preset_config
from gags.distill import Levels
from gags.encode import ImageTextEncoder
from gags.errors import GagsError
from gags.evaluate import Evaluation, Protocol, conditions
from gags.pipeline import RunConfig, run
from gags.presets import PresetName
from gags.query import QueryConfig
from gags.runs import FieldKind, evaluate_once, share_stages
from gags.segment import Prompts, Segmenter
from gags.settings import Count, check_settings
from gags.store import RunFolder, to_json, write_json

SettingName = Literal[
    "uniform-s",
    "uniform-m",
    "uniform-l",
    "uniform-mean",
    "uniform-gad",
    "depth-mean",
    "depth-gad",
    "depth-lift",
    "depth-galift",
]


@dataclass(frozen=True)
class Setting:
    """What a row of the ablation does its own way."""

    prompts: Prompts
    levels: Levels
    """What gad learns from; the lift blends all three alike, galift weighs them itself."""
    field: FieldKind = "gad"


SETTINGS: Mapping[SettingName, Setting] = {
    "uniform-s": Setting("uniform", "s"),
    "uniform-m": Setting("uniform", "m"),
    "uniform-l": Setting("uniform", "l"),
    "uniform-mean": Setting("uniform", "mean"),
    "uniform-gad": Setting("uniform", "gad"),
    "depth-mean": Setting("depth", "mean"),
    "depth-gad": Setting("depth", "gad"),
    "depth-lift": Setting("depth", "mean", "lift"),
    "depth-galift": Setting("depth", "gad", "galift"),
}
PAPER: tuple[SettingName, ...] = tuple(name for name, setting in SETTINGS.items() if setting.field == "gad")
"""Each level alone and their mean as the baselines, then GaD alone, GaS alone, and both."""


@dataclass(frozen=True)
class Outcome:
    """What one setting came to with one seed."""

    evaluation: Evaluation
    field_seconds: float
    """Spent on the field, from masks and features on."""


@dataclass(frozen=True)
class Arguments:
    """The seven settings of the paper's ablation on one scene: which levels are distilled, with and without GaS. On request
    also the training-free fields, with GaS.

    Every setting and seed has its own run folder in OUT, which holds the stages that do not differ as links. The same command goes
    on where an earlier one stopped.
    """

    source: tyro.conf.Positional[Path]
    """A COLMAP scene or a folder of photographs, with labels: SCENE/labels, or --labels DIR."""
    out: Path
    """Folder for the runs and ablation.json."""
    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    """Every setting, starting from the preset."""
    query: QueryConfig = dataclasses.field(default_factory=QueryConfig)
    """How relevancy becomes points and masks."""
    preset: PresetName = "fast"
    """What the settings start from: fast, balanced or paper."""
    settings: tuple[SettingName, ...] = PAPER
    """Which rows: the way of prompting (depth: GaS) and the levels that gad learns from, or a training-free field."""
    seeds: Count = 3
    """Repetitions: each has its own prompts (where GaS draws them) and its own training."""
    protocol: Protocol = "rendered"
    """How the field answers; see gags evaluate."""
    json: bool = False
    """Print JSON instead of a table (OUT/ablation.json has it either way)."""


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, make and evaluate every run, print the table."""
    default: Any = {"source": tyro.MISSING, "out": tyro.MISSING}
    options = tyro.cli(
        Arguments,
        args=list(arguments),
        prog="gags ablate",
        default=Arguments(**default, config=preset_config(arguments)),
    )
    check_settings(options)
    found = ablate(
        options.source,
        options.out,
        options.config,
        options.query,
        options.settings,
        options.seeds,
        options.protocol,
    )
    report = ablation_json(found)
    write_json(
        options.out / "ablation.json", {**report, "config": to_json(options.config), "query": to_json(options.query)}
    )
    if options.json:
        print_json(report)
    else:
        print_table(ablation_table(found))


def ablate(
    source: Path,
    out: Path,
    config: RunConfig,
    query_config: QueryConfig,
    settings: Sequence[SettingName],
    seeds: int,
    protocol: Protocol = "rendered",
    segmenter: Segmenter | None = None,
    encoder: ImageTextEncoder | None = None,
) -> dict[SettingName, list[Outcome]]:
    """What every setting came to, one outcome a seed. Scene, splats and depth are made once, masks and features once for each way
    of prompting (and seed, where that draws), a field for each setting and seed.

    Args:
        config: levels, prompts and field are set by the ablation, seeds are counted up from it.
        segmenter, encoder: models to use instead of those that the config names.

    Raises:
        GagsError: settings out of range, no labels, or as ``pipeline.run`` and ``runs.evaluate_run`` do.
    """
    check_settings(query_config, "query.")
    labels = config.labels or source / "labels"
    if not labels.is_dir():
        raise GagsError(
            f"ablate: expected labels in {source / 'labels'} or --labels DIR, found none; settings are told apart by them"
        )
    for flag, brought in (("--language-features", config.language_features), ("--decoders", config.decoders)):
        if brought is not None:
            raise GagsError(
                f"ablate {flag} {brought}: expected masks and fields to be made, found ready ones; leave it out"
            )
    if not settings:
        raise GagsError(f"--settings: expected one of {', '.join(SETTINGS)}, found none")
    found: dict[SettingName, list[Outcome]] = {name: [] for name in settings}
    geometry: RunFolder | None = None
    features: dict[tuple[Prompts, int], RunFolder] = {}
    for seed in range(seeds):
        for name in found:
            setting = SETTINGS[name]
            # an even grid draws nothing: its masks are the same for every seed
            asked = (setting.prompts, seed if setting.prompts == "depth" else 0)
            root = out / f"{name}-{seed}"
            say(f"{root.name}: seed {seed + 1} of {seeds}")
            if geometry is not None:
                share_stages(geometry, root, ("scene", "splats", "depth"))
            if asked in features:
                share_stages(features[asked], root, ("masks", "features"))
            made = run(source, root, _config(config, setting, seed, asked[1]), segmenter=segmenter, encoder=encoder)
            # models are loaded once
            segmenter, encoder = made.segmenter_override, made.encoder_override
            geometry = geometry or made.folder
            features.setdefault(asked, made.folder)
            evaluation = evaluate_once(made, labels, setting.field, query_config, protocol)
            found[name].append(Outcome(evaluation, made.folder.finished_stage(f"field/{setting.field}").seconds))
    return found


def _config(config: RunConfig, setting: Setting, seed: int, prompt_seed: int) -> RunConfig:
    return dataclasses.replace(
        config,
        segment=dataclasses.replace(config.segment, prompts=setting.prompts, seed=config.segment.seed + prompt_seed),
        distill=dataclasses.replace(config.distill, levels=setting.levels, seed=config.distill.seed + seed),
        lift=dataclasses.replace(config.lift, levels="mean"),
        field=setting.field,
    )


def ablation_json(found: Mapping[SettingName, Sequence[Outcome]]) -> dict[str, Any]:
    """Every setting's numbers, seed by seed, with mean and spread."""
    evaluation = _any_evaluation(found)
    return {
        "protocol": evaluation.protocol,
        "split": evaluation.split,
        "n_pairs": len(evaluation.pairs),
        "settings": [_row(name, outcomes) for name, outcomes in found.items()],
    }


def _row(name: SettingName, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    evaluations = [outcome.evaluation for outcome in outcomes]
    return {
        "name": name,
        **to_json(SETTINGS[name]),
        "miou": _spread([evaluation.miou for evaluation in evaluations]),
        "localisation_accuracy": _spread([evaluation.localisation_accuracy for evaluation in evaluations]),
        "miou_interval_95": list(evaluations[0].miou_interval),
        "field_seconds": _spread([outcome.field_seconds for outcome in outcomes]),
    }


def ablation_table(found: Mapping[SettingName, Sequence[Outcome]]) -> Table:
    """A row a setting: means over the seeds, and the standard deviation between seeds."""
    evaluation = _any_evaluation(found)
    table = Table(
        title=conditions(evaluation),
        caption=f"{len(evaluation.pairs)} pairs of frame and phrase; ± is the standard deviation over seeds; in brackets the 95 % "
        "bootstrap interval of the first seed over the labels",
    )
    for heading in ("prompts", "field", "levels"):
        table.add_column(heading)
    for heading in ("mIoU %", "localised %", "field, s", "seeds"):
        table.add_column(heading, justify="right")
    for name, outcomes in found.items():
        setting, row = SETTINGS[name], _row(name, outcomes)
        low, high = row["miou_interval_95"]
        table.add_row(
            "depth (GaS)" if setting.prompts == "depth" else setting.prompts,
            setting.field,
            setting.levels if setting.field != "galift" else "weighed",
            f"{_with_spread(row['miou'])} ({100 * low:.1f} to {100 * high:.1f})",
            _with_spread(row["localisation_accuracy"]),
            f"{row['field_seconds']['mean']:.0f}",
            str(len(outcomes)),
        )
    return table


def _any_evaluation(found: Mapping[SettingName, Sequence[Outcome]]) -> Evaluation:
    return next(iter(found.values()))[0].evaluation


def _with_spread(numbers: dict[str, Any]) -> str:
    spread = "" if numbers["deviation"] is None else f" ± {100 * numbers['deviation']:.1f}"
    return f"{100 * numbers['mean']:.1f}{spread}"


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None of a single value) and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "by_seed": list(values)}
