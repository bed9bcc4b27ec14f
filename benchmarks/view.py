"""The page of ``gags view`` on a large scene: what getting ready, a question and a step of the threshold cost.

    python benchmarks/view.py [--splats 300000] [--width 512] [--repeats 5] [--json view.json]

Gaussians on the walls of a room with random features of a linear decoder; phrases are random unit vectors. A question is timed
from Enter until the colours are handed to viser, as the page's own worker does it; the first of a page sends every splat, a later
one the chunks that change. The browser's part is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import viser
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gags.distill import FeatureDecoder, FieldMeta, LanguageField
from gags.gaussians import Gaussians
from gags.query import QueryConfig
from gags.view._colors import plain_colors, splat_colors
from gags.view._frame import DisplayFrame
from gags.view._search import SearchIndex
from gags.view._splats import SplatCloud, make_chunks
from gags.view._state import ViewState, parse_question


class RandomEncoder:
    """A phrase is a random direction, always the same."""

    name, tile_px = "random", 1

    def __init__(self, width: int) -> None:
        self.width = width

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        raise AssertionError("a page encodes no tiles")

    def encode_phrases(self, phrases: Sequence[str]) -> Float[Tensor, "phrase width"]:
        rows = [
            torch.randn(self.width, generator=torch.Generator().manual_seed(sum(phrase.encode()))) for phrase in phrases
        ]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def room(number: int, width: int) -> LanguageField:
    """Flat Gaussians on the six sides of a cube, with features that change slowly along them."""
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(number, 3, generator=generator) * 2 - 1
    side = torch.randint(3, (number, 1), generator=generator)
    means = means.scatter(1, side, means.gather(1, side).sign())
    log_scales = torch.full((number, 3), 0.01).log().scatter(1, side, torch.full((number, 1), 0.001).log())
    waves = torch.randn(3, 16, generator=generator)
    gaussians = Gaussians(
        means=means,
        quats=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(number, 1),
        log_scales=log_scales,
        opacity_logits=torch.full((number,), 2.0),
        sh=torch.randn(number, 9, 3, generator=generator) * 0.3,
    )
    torch.manual_seed(0)
    decoder = FeatureDecoder(16, width).eval()
    return LanguageField(gaussians, (means @ waves).sin(), decoder, None, FieldMeta("gad", 16, width))


def measure(number: int, width: int, repeats: int) -> dict[str, float]:
    """Seconds, and splats sent."""
    warnings.filterwarnings("ignore", category=UserWarning)
    field = room(number, width)
    gaussians = field.gaussians
    started = time.perf_counter()
    index = SearchIndex.build(field, RandomEncoder(width), QueryConfig())
    ready_s = time.perf_counter() - started
    frame = DisplayFrame(torch.zeros(3), 4.0, torch.tensor([0.0, 0.0, 1.0]))
    started = time.perf_counter()
    chunks = make_chunks(gaussians, frame, number)
    chunks_s = time.perf_counter() - started
    base = plain_colors(gaussians)
    server = viser.ViserServer(port=0, verbose=False)
    cloud = SplatCloud(server.scene, chunks, splat_colors(ViewState(), base, gaussians.opacities, None, None))
    asked, moved, sent = [], [], []
    for repeat in range(repeats):
        state = ViewState(text=f"thing {repeat}")
        started = time.perf_counter()
        question = parse_question(state.text)
        assert question is not None
        answer = index.ask(question)
        selected = index.select(answer, state.threshold, largest=False)
        index.describe(answer, selected)
        sent.append(cloud.recolor(splat_colors(state, base, gaussians.opacities, answer, selected)))
        asked.append(time.perf_counter() - started)
        started = time.perf_counter()
        selected = index.select(answer, 0.5, largest=False)
        cloud.recolor(splat_colors(state, base, gaussians.opacities, answer, selected))
        moved.append(time.perf_counter() - started)
    server.stop()
    return {
        "splats": number,
        "width": width,
        "getting ready, s": ready_s,
        "chunks, s": chunks_s,
        "first question, s": asked[0],
        "question, s (median of the others)": statistics.median(asked[1:]),
        "threshold, s (median)": statistics.median(moved),
        "splats sent, first": sent[0],
        "splats sent, later (median)": statistics.median(sent[1:]),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splats", type=int, default=300_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = measure(options.splats, options.width, options.repeats)
    table = Table("what", "figure", title=f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.3f}" if name.endswith((", s", ")")) and "sent" not in name else f"{value:,.0f}")
    Console().print(table)
    if options.json:
        machine = {"system": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__}
        options.json.write_text(json.dumps({"machine": machine, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
