"""gags benchmark: every scene of a public dataset, beside what others report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from gags.commands._report import print_json, print_table, say
from gags.commands.run import preset_config
from gags.encode import ImageTextEncoder
from gags.errors import GagsError
from gags.evaluate import (
    BENCHMARKS,
    BenchmarkName,
    Evaluation,
    Labels,
    Protocol,
    benchmark_table,
    load_labels,
    scene_means,
)
from gags.pipeline import RunConfig, run
from gags.presets import PresetName
from gags.query import QueryConfig
from gags.runs import evaluate_once
from gags.segment import Segmenter
from gags.settings import check_settings
from gags.store import to_json, write_json


@dataclass(frozen=True)
class Arguments:
    """Run and evaluate every scene of a dataset in its published layout; print it beside the published figures.

    The same command goes on where an earlier one stopped. Every flag of 'gags run' is passed on to every scene;
    --exclude-labelled gives the strict split.
    """

    dataset: tyro.conf.Positional[BenchmarkName]
    """lerf-ovs (LangSplat's labels of four LERF scenes) or mip360-ovs (GAGS's labels of four Mip-NeRF 360 scenes)."""
    folder: tyro.conf.Positional[Path]
    """The dataset: SCENE/images and SCENE/sparse for each scene, with label/SCENE/*.json or SCENE/labels/*.json."""
    out: Path
    """Folder for a run of each scene and benchmark.json."""
    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    """Every setting, starting from the preset."""
    query: QueryConfig = dataclasses.field(default_factory=QueryConfig)
    """How relevancy becomes points and masks."""
    preset: PresetName = "fast"
    """What the settings start from: fast, balanced or paper."""
    only: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A scene to run (repeatable); without it, all that are labelled."""
    protocol: Protocol = "rendered"
    """How the field answers; see gags evaluate. The published figures are of rendered."""
    json: bool = False
    """Print JSON instead of a table (OUT/benchmark.json has it either way)."""


@dataclass(frozen=True)
class LabelledScene:
    """A scene of a dataset folder."""

    source: Path
    labels: Path


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, run and evaluate every scene, print the table."""
    default: Any = {"dataset": tyro.MISSING, "folder": tyro.MISSING, "out": tyro.MISSING}
    options = tyro.cli(
        Arguments,
        args=list(arguments),
        prog="gags benchmark",
        default=Arguments(**default, config=preset_config(arguments)),
    )
    scenes = find_scenes(options.folder, options.only)
    chosen = ("segmenter", "segmenter_weights", "encoder", "encoder_weights", "field")
    made_with = {"preset": options.preset} | {name: getattr(options.config, name) for name in chosen}
    found = benchmark(scenes, options.out, options.config, options.query, options.protocol)
    public = BENCHMARKS[options.dataset]
    report = {
        "dataset": options.dataset,
        "made_with": made_with,
        "protocol": options.protocol,
        "split": {name: evaluation.split for name, evaluation in found.items()},
        "mean_over_scenes": scene_means(found),
        "scenes": {name: evaluation.to_json() for name, evaluation in found.items()},
        "published": to_json(public.figures),
    }
    write_json(options.out / "benchmark.json", {**report, "config": options.config, "query": options.query})
    if options.json:
        print_json(report)
    else:
        words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in made_with.items() if value)
        print_table(benchmark_table(public, found, words))


def find_scenes(folder: Path, only: Sequence[str] = ()) -> dict[str, LabelledScene]:
    """The labelled scenes of a dataset folder, by name; folders without labels are passed over.

    Raises:
        GagsError: there are none, one of ``only`` is not among them, labels lie in two places, or there are labels of a scene
            that is not there.
    """
    found = {}
    for source in sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []:
        labels = [path for path in (folder / "label" / source.name, source / "labels") if any(path.glob("*.json"))]
        if len(labels) > 1:
            raise GagsError(
                f"{labels[1]}: expected a scene's labels in one place, found others in {labels[0]}; remove one"
            )
        if labels:
            found[source.name] = LabelledScene(source, labels[0])
    orphans = sorted({path.parent.name for path in folder.glob("label/*/*.json")} - found.keys())
    if orphans:
        raise GagsError(
            f"{folder / 'label' / orphans[0]}: expected the scene of these labels in {folder / orphans[0]}, found no such folder; "
            "download it, or remove the labels"
        )
    if not found:
        raise GagsError(
            f"{folder}: expected scenes (SCENE/images, SCENE/sparse) with labels in label/SCENE/*.json or SCENE/labels/*.json, "
            "found none; give the folder that holds the scenes"
        )
    unknown = set(only) - found.keys()
    if unknown:
        raise GagsError(
            f"--only {', '.join(sorted(unknown))}: expected labelled scenes of {folder} ({', '.join(found)}), found others"
        )
    return {name: scene for name, scene in found.items() if not only or name in only}


def benchmark(
    scenes: dict[str, LabelledScene],
    out: Path,
    config: RunConfig,
    query_config: QueryConfig,
    protocol: Protocol = "rendered",
    segmenter: Segmenter | None = None,
    encoder: ImageTextEncoder | None = None,
) -> dict[str, Evaluation]:
    """Run and evaluate the scenes, each in its own run folder OUT/SCENE.

    Args:
        segmenter, encoder: models to use instead of those that the config names.

    Raises:
        GagsError: settings out of range, files of a single scene in the config, a dataset that is not whole, or as
            ``pipeline.run`` and ``runs.evaluate_run`` do.
    """
    check_settings(query_config, "query.")
    brought_along = {
        "--labels": config.labels,
        "--splats": config.splats,
        "--language-features": config.language_features,
        "--decoders": config.decoders,
    }
    for flag, brought in brought_along.items():
        if brought is not None:
            raise GagsError(
                f"benchmark {flag} {brought}: expected the dataset's own files, found those of one scene; leave it out"
            )
    for scene in scenes.values():
        # hours of work come first
        _check_scene(scene, load_labels(scene.labels), config)
    found = {}
    for name, scene in scenes.items():
        say(f"{name}: {scene.source}, labels in {scene.labels}")
        settings = dataclasses.replace(config, labels=scene.labels)
        made = run(scene.source, out / name, settings, segmenter=segmenter, encoder=encoder)
        # models are loaded once
        segmenter, encoder = made.segmenter_override, made.encoder_override
        found[name] = evaluate_once(made, scene.labels, made.default_field, query_config, protocol)
    return found


def _check_scene(scene: LabelledScene, labels: Labels, config: RunConfig) -> None:
    if not labels.phrases:
        raise GagsError(
            f"{scene.labels}: expected at least one labelled object, found none in {len(labels.frames)} files; "
            "download the labels again, or choose other scenes with --only"
        )
    folder = scene.source / config.scene.images_folder
    if not folder.is_dir():
        raise GagsError(f"{folder}: expected a scene's photographs, found no such folder; see --scene.images-folder")
    missing = [name for name in labels.image_names if not (folder / name).is_file()]
    # the reference takes the number in a name for a place in the list
    if missing and not config.reference_quirks:
        raise GagsError(
            f"{scene.labels}: expected labels of photographs in {folder}, found some of {missing[0]}, which is not there; "
            "labels are matched by exact file name"
        )
