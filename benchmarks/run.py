"""How fast everything is: a row a target, measured in one process, with JSON and plots.

    python benchmarks/run.py --scenes-dir ../shared/scenes --run runs/bonsai [--only ROW ...] [--long] [--out DIR]
    python benchmarks/run.py --scenes-dir ../shared/scenes --run runs/demo --quick

``--run`` is a finished run of *bonsai*, preset fast, with ``--field all``; it is read, never written. Times are wall medians after
a run to compile and warm up; beside them is the CPU time over all threads (least of the repeats), which is what to compare while
the machine is busy with other things. Both sides of a ratio are measured in turn. ``--long`` adds the rows that train for minutes;
``--quick`` takes tiny sizes and only shows that every row runs. Plots need matplotlib (``pip install ".[bench]"``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import llvmlite
import numba
import numpy as np
import torch

from engine_rows import blending, forward, peers, rasterizer, reconstruction, training_iteration
from field_rows import distillation, fields, query_in_3d, segmentation, three_fields, view_query
from gags.errors import GagsError
from gags.query import QueryConfig, relevancy_maps
from gags.rasterize import blend_weights
from gags.runs import open_run
from measuring import PHRASE, Bench, Figure, resampled


def importing(bench: Bench) -> list[Figure]:
    """A new process each time."""

    def start(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    library, command = bench.time(
        lambda: start("-c", "import gags"),
        lambda: start("-c", "from gags.cli import main; main(['--help'])"),
        repeats=5,
    )
    return [
        Figure("import gags", library.wall_ms / 1e3, "s", "<= 0.3"),
        Figure("gags --help", command.wall_ms / 1e3, "s", "<= 0.3"),
    ]


def growth(bench: Bench) -> list[Figure]:
    """How time grows with Gaussians, pixels, views and phrases: the exponent, over the larger sizes."""
    gaussians, camera = bench.garden
    scale = 100 if bench.quick else 1
    rgb = torch.rand(2_000_000, 3, generator=torch.Generator().manual_seed(0))
    field, encoder = bench.run.field(), bench.run.encoder
    config, memory_of = QueryConfig(), bench.run.gaussians
    small = bench.scene.views[0].camera.limited(202 if not bench.quick else 40)
    curves: dict[str, dict[int, Callable[[], object]]] = {"Gaussians": {}, "pixels": {}, "views": {}, "phrases": {}}
    for number in (50_000, 125_000, 250_000, 500_000, 1_000_000, 2_000_000):
        more = resampled(gaussians, number // scale)
        curves["Gaussians"][number // scale] = lambda more=more: forward(more, camera, rgb[: len(more)])
    for number in (100_000, 250_000, 500_000, 1_000_000, 2_000_000):
        side = (number / scale / (camera.width * camera.height)) ** 0.5
        larger = camera.resized(round(camera.width * side), round(camera.height * side))
        curves["pixels"][number // scale] = lambda larger=larger: forward(gaussians, larger, rgb[: len(gaussians)])
    for number in (30, 60, 120, 250, 500):
        count = max(1, number // scale)
        curves["views"][count] = lambda count=count: [blend_weights(memory_of, small) for _ in range(count)]
    for number in (1, 3, 10, 30, 100):
        phrases = [f"{PHRASE} {index}" for index in range(number)]
        curves["phrases"][number] = lambda phrases=phrases: relevancy_maps(field, small, phrases, encoder, config)
    figures = []
    for name, works in curves.items():
        chosen = list(works.items())[: 2 if bench.quick else None]
        times = {size: bench.time(work, repeats=1)[0].cpu_ms for size, work in chosen}
        sizes = list(times)[len(times) // 2 - 1 :]
        exponent = np.polyfit(np.log(sizes), np.log([max(times[size], 1e-3) for size in sizes]), 1)[0]
        figures.append(Figure(f"{name}: exponent of CPU time", float(exponent), "", "<= 1.1"))
        figures += [Figure(f"{name}: {size}", each, "ms CPU") for size, each in times.items()]
        plot(bench.out / f"growth_{name.lower()}.png", name, times)
    # Linux reports kilobytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return [*figures, Figure("peak memory of the process", peak, "GB")]


def plot(path: Path, name: str, times: dict[int, float]) -> None:
    """Time by size, both logarithmic, and the line of linear growth."""
    try:
        import matplotlib
    except ImportError:
        print(f'{path.name} is not drawn: pip install ".[bench]"')
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes, values = list(times), list(times.values())
    figure, axes = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
    axes.loglog(sizes, values, "o-")
    axes.loglog(sizes, [values[-1] * size / sizes[-1] for size in sizes], "--", color="grey", label="linear")
    axes.set(xlabel=name, ylabel="CPU ms")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


ROWS: dict[str, Callable[[Bench], list[Figure]]] = {
    "rasterize": rasterizer,
    "peers": peers,
    "iteration": training_iteration,
    "blend": blending,
    "lift": lambda bench: fields(bench, "lift"),
    "galift": lambda bench: fields(bench, "galift"),
    "gad": lambda bench: distillation(bench, 8 if bench.quick else 200),
    "segment": segmentation,
    "query": view_query,
    "query-3d": query_in_3d,
    "three-fields": three_fields,
    "import": importing,
    "growth": growth,
}


LONG_ROWS: dict[str, Callable[[Bench], list[Figure]]] = {
    "reconstruct": lambda bench: reconstruction(bench, "fast", 8, 25),
    "reconstruct-balanced": lambda bench: reconstruction(bench, "balanced", 30, 27),
    "gad-long": lambda bench: distillation(bench, None),
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes-dir", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    parser.add_argument("--only", choices=[*ROWS, *LONG_ROWS], nargs="+")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.scenes_dir, open_run(options.run), options.out, options.quick)
    every = ROWS | LONG_ROWS
    results = {}
    for name in options.only or (every if options.long else ROWS):
        print(f"\n{name}")
        results[name] = []
        for figure in every[name](bench):
            met = {None: "", True: "met", False: "missed"}[figure.met]
            print(f"  {figure.what:58}{figure.value:12.4g} {figure.unit:10} {figure.target:>8} {met}", flush=True)
            results[name].append(dataclasses.asdict(figure) | {"met": figure.met})
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "numba_threads": numba.get_num_threads(),
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
    }
    versions = {m.__name__: m.__version__ for m in (numba, llvmlite, np, torch)} | {"python": platform.python_version()}
    path = options.out / "run.json"
    path.write_text(json.dumps({"machine": machine, "versions": versions, "rows": results}, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    try:
        main()
    except (GagsError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
