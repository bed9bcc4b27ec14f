"""Evaluations as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from gags.evaluate._consistency import Consistency
from gags.evaluate._evaluate import Evaluation, PairScore, bootstrap, mean, summary
from gags.evaluate._published import PublicBenchmark

_PROTOCOLS = {
    "rendered": "rendered maps (as LangSplat, GAGS)",
    "teacher": "2D teacher (each view's own masks and features, no 3D)",
    "selected": "Gaussians selected in 3D, then rendered alone (as OpenGaussian)",
}
_SPLITS = {
    "published": "published (the labelled views were trained on)",
    "strict": "strict (no labelled view was trained on)",
    "mixed": "mixed (some of the labelled views were trained on)",
}


def conditions(*evaluations: Evaluation) -> str:
    """Protocol and split in words: what every table of scores says first. A line each, one more for every further split."""
    lines = [f"protocol: {_PROTOCOLS.get(name, name)}" for name in _distinct(found.protocol for found in evaluations)]
    lines += [f"split: {_SPLITS.get(name, name)}" for name in _distinct(found.split for found in evaluations)]
    return "\n".join(lines)


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def evaluation_table(evaluation: Evaluation) -> Table:
    """A table with a row a phrase and a total; its title names protocol and split."""
    table = Table(
        title=conditions(evaluation),
        caption=f"mIoU 95 % bootstrap interval over frames and phrases: {_interval(evaluation.miou_interval)}; "
        f"IoU above 0.25: {100 * evaluation.accuracy_at_25:.1f} %",
    )
    table.add_column("phrase")
    for heading in ("mIoU %", "localised %", "frames"):
        table.add_column(heading, justify="right")
    for phrase, pairs in evaluation.by_phrase.items():
        table.add_row(phrase, *_percentages(pairs), str(len(pairs)))
    table.add_section()
    table.add_row("all pairs", *_percentages(evaluation.pairs), str(len(evaluation.by_frame)), style="bold")
    return table


def benchmark_table(benchmark: PublicBenchmark, evaluations: Mapping[str, Evaluation], made_with: str) -> Table:
    """A row a scene, their mean, and what others report.

    Published means are over scenes, so the mean here is too; its interval draws frames and phrases inside each scene.

    Args:
        made_with: models, preset and field of this run, in words.
    """
    by_scene = [figure for figure in benchmark.figures if figure.scene_miou]
    title = f"{benchmark.title}\n{conditions(*evaluations.values())}\nthis run: {made_with}"
    table = Table(title=title, caption=_caption(benchmark, evaluations))
    table.add_column("scene")
    for heading in ("split", "frames", "phrases", "pairs", "mIoU %", "95 % interval", "localised %"):
        table.add_column(heading, justify="right")
    for figure in by_scene:
        table.add_column(f"{figure.method}, mIoU %", justify="right")
    table.add_column("source")
    for scene, evaluation in evaluations.items():
        miou, localised = _percentages(evaluation.pairs)
        counts = (evaluation.split, len(evaluation.by_frame), len(evaluation.by_phrase), len(evaluation.pairs))
        others = [f"{figure.scene_miou[scene]:.1f}" if scene in figure.scene_miou else "-" for figure in by_scene]
        table.add_row(
            scene, *map(str, counts), miou, _interval(evaluation.miou_interval), localised, *others, "this run"
        )
    table.add_section()
    means = scene_means(evaluations)
    pairs = sum(len(evaluation.pairs) for evaluation in evaluations.values())
    cells = (
        f"{100 * means['miou']:.1f}",
        _interval(means["miou_interval_95"]),
        f"{100 * means['localisation_accuracy']:.1f}",
    )
    others = [f"{figure.miou:.1f}" for figure in by_scene]
    table.add_row(f"mean of {len(evaluations)}", "", "", "", str(pairs), *cells, *others, "this run", style="bold")
    table.add_section()
    for figure in benchmark.figures:
        localisation = "-" if figure.localisation is None else f"{figure.localisation:.1f}"
        source = f"{figure.source}; {figure.remark}" if figure.remark else figure.source
        table.add_row(
            figure.method,
            "",
            "",
            "",
            "",
            f"{figure.miou:.1f}",
            "",
            localisation,
            *[""] * len(by_scene),
            source,
            style="dim",
        )
    return table


def scene_means(evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Means over scenes, every scene weighing the same, as publications print them."""
    scenes = list(evaluations.values())
    return {
        "miou": mean([evaluation.miou for evaluation in scenes]),
        "miou_interval_95": list(bootstrap([evaluation.pairs for evaluation in scenes])),
        "localisation_accuracy": mean([evaluation.localisation_accuracy for evaluation in scenes]),
    }


def consistency_table(consistency: Consistency) -> Table:
    """A row a level or mixture: how well views agree on one Gaussian, and how alike different Gaussians are."""
    report = consistency.to_json()
    table = Table(
        title="multiview consistency: mean cosine of mask features between views",
        caption=f"{report['n_gaussians']} Gaussians ({100 * report['share_of_gaussians']:.0f} %) in two views or more, "
        f"{report['mean_views']:.1f} on average",
    )
    table.add_column("level")
    for heading in ("same Gaussian", "different Gaussians"):
        table.add_column(heading, justify="right")
    for name, cosines in report["cosine"].items():
        table.add_row(name, f"{cosines['same_gaussian']:.4f}", f"{cosines['different_gaussians']:.4f}")
    return table


def _caption(benchmark: PublicBenchmark, evaluations: Mapping[str, Evaluation]) -> str:
    """What stands between this table and the published figures."""
    reasons = []
    if any(evaluation.protocol != "rendered" for evaluation in evaluations.values()):
        reasons.append("they are of protocol rendered")
    if any(evaluation.split != "published" for evaluation in evaluations.values()):
        reasons.append("they trained on the labelled views (split published)")
    missing = [scene for scene in benchmark.scenes if scene not in evaluations]
    if missing:
        reasons.append(f"their mean includes {', '.join(missing)}")
    extra = [scene for scene in evaluations if scene not in benchmark.scenes]
    if extra:
        reasons.append(f"their mean is without {', '.join(extra)}")
    not_comparable = f"published figures are not comparable: {'; '.join(reasons)}" if reasons else ""
    models = "published figures are made with SAM and CLIP"
    return "\n".join(part for part in (benchmark.size, models, not_comparable) if part)


def _interval(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _percentages(pairs: Sequence[PairScore]) -> tuple[str, str]:
    """mIoU and localisation accuracy of some pairs."""
    scores = summary(pairs)
    return f"{100 * scores['miou']:.1f}", f"{100 * scores['localisation_accuracy']:.1f}"
