"""What the rows of ``run.py`` measure with: figures with targets, times of repeated work, the scenes."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from gags.gaussians import Gaussians
from gags.geometry import Camera
from gags.runs import Run
from gags.scene import Scene

PHRASE = "piano"
_numbers = itertools.count()


def new_phrase() -> str:
    """A phrase that was not asked before: encoders remember those that were."""
    return f"{PHRASE} {next(_numbers)}"


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    what: str
    value: float
    unit: str
    target: str = ""
    """As written in the table: "<= 30", ">= 20", or nothing."""

    @property
    def met(self) -> bool | None:
        if not self.target:
            return None
        sign, bound = self.target.split()
        return self.value <= float(bound) if sign == "<=" else self.value >= float(bound)


@dataclass(frozen=True)
class Times:
    """Of repeated work, in milliseconds."""

    wall_ms: float
    """Median."""
    cpu_ms: float
    """Least, over all threads."""

    def figures(self, what: str, target: str = "") -> list[Figure]:
        return [Figure(what, self.wall_ms, "ms", target), Figure(f"{what}, CPU", self.cpu_ms, "ms")]


@dataclass(frozen=True)
class Bench:
    """What the rows measure, and how often."""

    scenes_dir: Path
    run: Run
    out: Path
    quick: bool

    def time(self, *works: Callable[[], object], repeats: int = 9) -> list[Times]:
        """Times of each work; they take turns, so that a change of the machine's speed meets all."""
        wall: list[list[float]] = [[] for _ in works]
        cpu: list[list[float]] = [[] for _ in works]
        for work in works:
            work()
        for _ in range(1 if self.quick else repeats):
            for index, work in enumerate(works):
                wall_start, cpu_start = time.perf_counter(), time.process_time()
                work()
                wall[index].append(1e3 * (time.perf_counter() - wall_start))
                cpu[index].append(1e3 * (time.process_time() - cpu_start))
        return [Times(statistics.median(w), min(c)) for w, c in zip(wall, cpu, strict=True)]

    @cached_property
    def garden(self) -> tuple[Gaussians, Camera]:
        """The garden scene of scenes/README.md: 138 766 Gaussians at 648x420, view 0."""
        arrays = np.load(self.scenes_dir / "garden_points" / "garden.npz")
        tensor = {name: torch.from_numpy(arrays[name]) for name in arrays}
        K = arrays["Ks"][0].tolist()
        # degree 0 of the spherical harmonics is (colour - 1/2) / Y_00
        sh = (tensor["colors"][:, None] - 0.5) / 0.28209479177387814
        gaussians = Gaussians(
            tensor["means"], tensor["quats"], tensor["scales"].log(), torch.logit(tensor["opacities"]), sh
        )
        size = int(arrays["width"]), int(arrays["height"])
        camera = Camera(tensor["viewmats"][0], K[0][0], K[1][1], K[0][2], K[1][2], *size)
        return resampled(gaussians, 5000) if self.quick else gaussians, camera.limited(160) if self.quick else camera

    @cached_property
    def scene(self) -> Scene:
        """The run's scene; of the first three training views alone if there is no time."""
        return self.first_views(3) if self.quick else self.run.scene

    def first_views(self, count: int) -> Scene:
        """The run's scene with so many training views alone."""
        return dataclasses.replace(self.run.scene, views=self.run.scene.training_views[:count])

    @cached_property
    def query_camera(self) -> Camera:
        """The middle view, at the size of bonsai's photographs."""
        views = self.run.scene.views
        camera = views[len(views) // 2].camera
        return camera.limited(100) if self.quick else camera.resized(808, 534)


def resampled(gaussians: Gaussians, number: int) -> Gaussians:
    """A random choice of so many Gaussians (with repeats, if there are not enough), as large as to cover the same surface."""
    generator = torch.Generator().manual_seed(0)
    rounds = -(-number // len(gaussians))
    ids = torch.cat([torch.randperm(len(gaussians), generator=generator) for _ in range(rounds)])[:number]
    chosen = gaussians.subset(ids)
    # area per Gaussian grows as their number falls
    log_scales = chosen.log_scales + 0.5 * float(np.log(len(gaussians) / number))
    shift = 0.5 * torch.randn(chosen.means.shape, generator=generator) * log_scales.exp()
    return dataclasses.replace(chosen, means=chosen.means + shift * (rounds > 1), log_scales=log_scales)
