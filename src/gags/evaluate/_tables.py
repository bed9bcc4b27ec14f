"""Evaluations as tables for people."""

from __future__ import annotations

from rich.table import Table

from gags.evaluate._evaluate import Evaluation, PairScore

_PROTOCOLS = {
    "rendered": "rendered maps (as LangSplat, GAGS)",
    "teacher": "2D teacher (each view's own masks and features, no 3D)",
    "selected": "Gaussians selected in 3D, then rendered (as OpenGaussian)",
}
_SPLITS = {
    "published": "published (the labelled views were trained on)",
    "strict": "strict (no labelled view was trained on)",
    "mixed": "mixed (some of the labelled views were trained on)",
}


def evaluation_table(evaluation: Evaluation) -> Table:
    """A table with a row a phrase and a total; its title names protocol and split."""
    low, high = evaluation.miou_interval
    protocol = _PROTOCOLS.get(evaluation.protocol, evaluation.protocol)
    split = _SPLITS.get(evaluation.split, evaluation.split)
    table = Table(
        title=f"protocol: {protocol}\nsplit: {split}",
        caption=f"mIoU 95 % interval over pairs: {100 * low:.1f} to {100 * high:.1f}",
    )
    table.add_column("phrase")
    for heading in ("mIoU %", "localised %", "frames"):
        table.add_column(heading, justify="right")
    for phrase, pairs in evaluation.by_phrase.items():
        table.add_row(phrase, *_cells(pairs))
    table.add_section()
    table.add_row("all pairs", *_cells(evaluation.pairs)[:2], str(len(evaluation.by_frame)), style="bold")
    return table


def _cells(pairs: list[PairScore] | tuple[PairScore, ...]) -> list[str]:
    miou = sum(pair.iou for pair in pairs) / len(pairs)
    accuracy = sum(pair.localised for pair in pairs) / len(pairs)
    return [f"{100 * miou:.1f}", f"{100 * accuracy:.1f}", str(len(pairs))]
