"""The public benchmarks: their scenes, and what others report on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

BenchmarkName = Literal["lerf-ovs", "mip360-ovs"]


@dataclass(frozen=True)
class PublishedFigure:
    """What a publication reports, in per cent: protocol *rendered*, split *published*."""

    method: str
    source: str
    """Where the figures are printed."""
    miou: float
    localisation: float | None
    """None: not reported."""
    scene_miou: Mapping[str, float] = field(default_factory=dict)
    """By scene, where known."""
    remark: str = ""
    """What others found when they repeated it."""


@dataclass(frozen=True)
class PublicBenchmark:
    """A set of labelled scenes that publications share."""

    title: str
    scenes: tuple[str, ...]
    """The folders that the published mean is over."""
    figures: tuple[PublishedFigure, ...]
    size: str = ""
    """How many labels there are, to read differences by."""


BENCHMARKS: dict[BenchmarkName, PublicBenchmark] = {
    "lerf-ovs": PublicBenchmark(
        "LERF-OVS",
        ("figurines", "ramen", "teatime", "waldo_kitchen"),
        (
            PublishedFigure("LangSplat", "Qin et al., CVPR 2024", 51.4, 84.3, remark="re-runs: 44-48 / 73"),
            PublishedFigure("GAGS", "Peng et al., AAAI-26, arXiv 2412.13654", 54.1, 81.7),
            PublishedFigure("LangSplatV2", "Li et al., NeurIPS 2025, arXiv 2507.07136", 59.9, 84.1),
            PublishedFigure("Occam's LGS", "Cheng et al., BMVC 2025", 61.3, 82.5, remark="re-run: 63.6"),
            PublishedFigure("LEGO", "GAGS's authors, ECCV 2026", 68.4, 88.4),
        ),
        "22 frames, 208 phrases: 1 to 3 points are noise",
    ),
    "mip360-ovs": PublicBenchmark(
        "Mip-NeRF 360-OVS",
        ("room", "counter", "garden", "bonsai"),
        (
            PublishedFigure(
                "GAGS",
                "Peng et al., AAAI-26, arXiv 2412.13654",
                64.5,
                None,
                {"room": 65.2, "counter": 61.1, "garden": 61.2, "bonsai": 70.5},
            ),
        ),
    ),
}
"""By the name on the command line."""
