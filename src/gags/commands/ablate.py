"""gags ablate: what granularity is worth, by leaving parts of it out."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

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
from gags.runs import evaluate_once, share_stages
from gags.segment import Prompts, Segmenter
from gags.settings import Count, check_settings
from gags.store import RunFolder, to_json, write_json


@dataclass(frozen=True)
class Setting:
    """One row of the ablation."""

    prompts: Prompts
    levels: Levels


SETTINGS = (
    *(Setting("uniform", levels) for levels in ("s", "m", "l", "mean", "gad")),
    Setting("depth", "mean"),
    Setting("depth", "gad"),
)
"""The paper's: each level alone and their mean as the baselines, then GaD alone, GaS alone, and both."""


@dataclass(frozen=True)
class Arguments:
    """The seven settings of the paper's ablation on one scene: which levels are distilled, with and without GaS.

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
    found = ablate(options.source, options.out, options.config, options.query, options.seeds, options.protocol)
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
    seeds: int,
    protocol: Protocol = "rendered",
    segmenter: Segmenter | None = None,
    encoder: ImageTextEncoder | None = None,
) -> dict[Setting, list[Evaluation]]:
    """The evaluations of every setting, one a seed. Scene, splats and depth are made once, masks and features once for each way
    of prompting (and seed, where that draws), a field for each setting and seed.

    Args:
        config: levels, prompts and field are set by the ablation, seeds are counted up from it.
        segmenter, encoder: models to use instead of those that the config names.

    Raises:
        GagsError: there are no labels, or as ``pipeline.run`` and ``runs.evaluate_run`` do.
    """
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
    found: dict[Setting, list[Evaluation]] = {setting: [] for setting in SETTINGS}
    geometry: RunFolder | None = None
    features: dict[tuple[Prompts, int], RunFolder] = {}
    for seed in range(seeds):
        for setting in SETTINGS:
            # an even grid draws nothing: its masks are the same for every seed
            asked = (setting.prompts, seed if setting.prompts == "depth" else 0)
            root = out / f"{setting.prompts}-{setting.levels}-{seed}"
            say(f"{root.name}: prompts {setting.prompts}, levels {setting.levels}, seed {seed} of {seeds}")
            if geometry is not None:
                share_stages(geometry, root, ("scene", "splats", "depth"))
            if asked in features:
                share_stages(features[asked], root, ("masks", "features"))
            made = run(source, root, _config(config, setting, seed, asked[1]), segmenter=segmenter, encoder=encoder)
            # models are loaded once
            segmenter, encoder = made.segmenter_override, made.encoder_override
            geometry = geometry or made.folder
            features.setdefault(asked, made.folder)
            found[setting].append(evaluate_once(made, labels, "gad", query_config, protocol))
    return found


def _config(config: RunConfig, setting: Setting, seed: int, prompt_seed: int) -> RunConfig:
    return dataclasses.replace(
        config,
        segment=dataclasses.replace(config.segment, prompts=setting.prompts, seed=config.segment.seed + prompt_seed),
        distill=dataclasses.replace(config.distill, levels=setting.levels, seed=config.distill.seed + seed),
        field="gad",
    )


def ablation_json(found: dict[Setting, list[Evaluation]]) -> dict[str, Any]:
    """Every setting's numbers, seed by seed, with mean and spread."""
    first = next(iter(found.values()))[0]
    rows = []
    for setting, evaluations in found.items():
        row: dict[str, Any] = to_json(setting)
        for name in ("miou", "localisation_accuracy"):
            values = [getattr(evaluation, name) for evaluation in evaluations]
            row[name] = {"mean": statistics.fmean(values), "deviation": _deviation(values), "by_seed": values}
        rows.append(row)
    return {
        "protocol": first.protocol,
        "split": first.split,
        "n_pairs": len(first.pairs),
        "miou_interval_95": list(first.miou_interval),
        "settings": rows,
    }


def ablation_table(found: dict[Setting, list[Evaluation]]) -> Table:
    """A row a setting: means over the seeds, and the standard deviation between seeds."""
    report = ablation_json(found)
    first = next(iter(found.values()))[0]
    half_width = 50 * (first.miou_interval[1] - first.miou_interval[0])
    table = Table(
        title=conditions(first),
        caption=f"{report['n_pairs']} pairs of frame and phrase; ± is the standard deviation over seeds; another choice of labels "
        f"might move all mIoU by about {half_width:.0f} points (95 % bootstrap)",
    )
    for heading in ("prompts", "levels"):
        table.add_column(heading)
    for heading in ("mIoU %", "localised %", "seeds"):
        table.add_column(heading, justify="right")
    for row, evaluations in zip(report["settings"], found.values(), strict=True):
        cells = [_with_spread(row[name]) for name in ("miou", "localisation_accuracy")]
        prompts = "depth (GaS)" if row["prompts"] == "depth" else row["prompts"]
        table.add_row(prompts, row["levels"], *cells, str(len(evaluations)))
    return table


def _with_spread(numbers: dict[str, Any]) -> str:
    spread = "" if numbers["deviation"] is None else f" ± {100 * numbers['deviation']:.1f}"
    return f"{100 * numbers['mean']:.1f}{spread}"


def _deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None
