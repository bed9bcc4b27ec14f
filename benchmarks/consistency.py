"""Does GaS make masks agree between views? Depth prompts against an even grid of as many points, on a finished run.

    python benchmarks/consistency.py runs/bonsai [--every 4] [--seeds 3] [--min-per-side 4] [--json consistency.json]

Takes the run's splats, depths and models; segments and encodes every ``--every``-th training view anew, once with the even grid
(it draws nothing, so one seed is all) and once a seed with depth prompts; measures the mean cosine between two views of a
Gaussian, over those Gaussians that all ways of prompting show in two views. The nearest-view depths are of all training views.
``--min-per-side`` scales both counts of prompts (n^2 a patch, at least): a segmenter with few distinct answers is exhausted by
the paper's 4, and then both ways give the same masks. Where the run's fields know granularity, their mixtures are measured too:
they were learned on the run's own masks.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gags.encode import encode
from gags.evaluate import Consistency, ConsistencyConfig, consistency
from gags.progress import track
from gags.runs import Run, open_run
from gags.segment import SegmentConfig, segment


def measure(run: Run, config: SegmentConfig, every: int) -> tuple[Consistency, dict[str, float]]:
    """The consistency of some views' masks when prompted like this; prompts and masks a view, and seconds."""
    names = {view.name for view in run.scene.training_views[::every]}
    others = {view.name for view in run.scene.training_views} - names
    started = time.perf_counter()
    made = segment(run.scene, run.gaussians, run.depths, run.segmenter, config, skip=others)
    masks = dict(track(made, f"segment ({config.prompts})", total=len(names)))
    scene = run.scene.holding_out(others)
    embeddings = dict(track(encode(scene, masks, run.tile_encoder, run.encode_config), "encode", total=len(names)))
    fields = {str(kind): run.field(kind) for kind in run.field_kinds}
    fields = {name: field for name, field in fields.items() if field.knows_granularity}
    found = consistency(scene, run.gaussians, masks, embeddings, ConsistencyConfig(), fields)
    costs = {
        "prompts": statistics.fmean(len(view.prompts_xy_px) for view in masks.values()),
        "masks": statistics.fmean(int((view.granularity > 0).sum()) for view in masks.values()),
        "labelled": statistics.fmean(
            float((view.label_maps[1:] >= 0).all(dim=0).float().mean()) for view in masks.values()
        ),
        "seconds": time.perf_counter() - started,
    }
    return found, costs


def spread(values: list[float]) -> str:
    """Mean and, of several, sample standard deviation."""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def main() -> None:
    """Measure both ways of prompting, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--every", type=int, default=4, help="use every n-th training view")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the depth prompts")
    parser.add_argument(
        "--min-per-side", type=int, help="prompts along a side of a patch seen from nearest (default: the run's)"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    run = open_run(arguments.run)
    base = run.segment_config
    if arguments.min_per_side is not None:
        base = replace(base, min_per_side=arguments.min_per_side)
    ways = {"uniform": [replace(base, prompts="uniform")]}
    ways["depth"] = [replace(base, prompts="depth", seed=base.seed + seed) for seed in range(arguments.seeds)]
    found = {way: [measure(run, config, arguments.every) for config in configs] for way, configs in ways.items()}

    everything = [result for results in found.values() for result, _ in results]
    shared = torch.stack([result.view_counts >= 2 for result in everything]).all(dim=0)
    report: dict[str, Any] = {"n_gaussians": int(shared.sum()), "ways": {}}
    print(f"{int(shared.sum())} Gaussians in two views or more, whatever the prompts\n")
    names = list(everything[0].cosines)
    print(f"{'prompts':<9}" + "".join(f"{name:>19}" for name in names))
    for way, results in found.items():
        same = {name: [result.mean(name, shared) for result, _ in results] for name in names}
        different = {name: [result.between[name] for result, _ in results] for name in names}
        costs = {key: statistics.fmean(cost[key] for _, cost in results) for key in results[0][1]}
        report["ways"][way] = {"same_gaussian": same, "different_gaussians": different, **costs}
        print(f"{way:<9}" + "".join(f"{spread(same[name]):>19}" for name in names))
        print(f"{'':<9}" + "".join(f"{spread(different[name]):>19}" for name in names) + "   (different Gaussians)")
        numbers = (
            f"{costs['prompts']:.0f} prompts, {costs['masks']:.0f} masks, {100 * costs['labelled']:.0f} % labelled"
        )
        print(f"{'':<9}  {numbers} a view, {costs['seconds']:.0f} s")
    if arguments.json:
        report |= {
            "run": str(arguments.run),
            "every": arguments.every,
            "min_per_side": base.min_per_side,
            "machine": platform.platform(),
        }
        report |= {"versions": {name: version(name) for name in ("gags", "torch", "numba")}}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
