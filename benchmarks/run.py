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
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from gags.distill import DistillConfig, FeatureDecoder, FieldMeta, LanguageField, distill, galift, lift
from gags.encode import EncodeConfig, encode
from gags.gaussians import Gaussians
from gags.geometry import Camera
from gags.presets import FAST, PRESETS, PresetName
from gags.query import QueryConfig, nearest_gaussians, phrase_vectors, query, query_3d, relevancy, relevancy_maps
from gags.rasterize import blend_weights, rasterization
from gags.rasterize._simd import LANES, kernel, lane_sum, parallel_kernel, ramp, splat
from gags.reconstruct import measure_views, reconstruct, scene_extent
from gags.reconstruct._ssim import photometric_loss, photometric_loss_by_convolution
from gags.reconstruct._state import start_training
from gags.reconstruct._train import _photographs, _strategy, _train_step
from gags.runs import Run, open_run
from gags.scene import Scene
from gags.segment import HierarchySegmenter, SegmentConfig, segment

# Operations of one pixel-Gaussian evaluation in RGB: offset 1, exponent 4, exp2 13, alpha and transmittance 3, colours 6.
FLOP_PER_EVALUATION = 27
PHRASE = "piano"


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


def forward(gaussians: Gaussians, camera: Camera, colors: Float[Tensor, "gaussian channel"]) -> Tensor:
    """A picture, with gradients where an argument has them."""
    geometry = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities)
    pose, K = camera.T_camera_world[None], camera.K[None]
    return rasterization(*geometry, colors, pose, K, camera.width, camera.height)[0]


def forward_backward(gaussians: Gaussians, camera: Camera, colors: Float[Tensor, "gaussian channel"]) -> None:
    """A picture and the gradients of everything."""
    geometry = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities)
    leaves = [tensor.detach().requires_grad_() for tensor in (*geometry, colors)]
    pose, K = camera.T_camera_world[None], camera.K[None]
    rasterization(*leaves, pose, K, camera.width, camera.height)[0].sum().backward()


def rasterizer(bench: Bench) -> list[Figure]:
    """RGB forward, 16 channels, forward and backward; the share of the machine's multiply-adds that they are."""
    gaussians, camera = bench.garden
    generator = torch.Generator().manual_seed(0)
    rgb = torch.rand(len(gaussians), 3, generator=generator)
    features = torch.randn(len(gaussians), 16, generator=generator)
    one, wide, both = bench.time(
        lambda: forward(gaussians, camera, rgb),
        lambda: forward(gaussians, camera, features),
        lambda: forward_backward(gaussians, camera, rgb),
    )
    drawn, listed = len(blend_weights(gaussians, camera).rows.ids), listed_pairs(gaussians, camera)
    threads = numba.get_num_threads()
    steps = 10**5 if bench.quick else 10**7
    (peak,) = bench.time(lambda: multiply_add(steps, threads))
    peak_gflops = 2 * 12 * LANES * steps * threads / peak.wall_ms / 1e6
    useful_gflops = FLOP_PER_EVALUATION * drawn / one.wall_ms / 1e6
    return [
        *one.figures("RGB forward", "<= 30"),
        Figure("pixel-Gaussian pairs in the lists of 16x16 tiles", listed / 1e6, "million"),
        Figure("RGB forward, a listed pair", 1e6 * one.wall_ms / listed, "ns", "<= 0.35"),
        Figure("pixel-Gaussian pairs that are drawn", drawn / 1e6, "million"),
        Figure("RGB forward, a drawn pair", 1e6 * one.wall_ms / drawn, "ns"),
        Figure("16 channels : RGB, wall", wide.wall_ms / one.wall_ms, "x", "<= 1.5"),
        Figure("16 channels : RGB, CPU", wide.cpu_ms / one.cpu_ms, "x"),
        Figure("forward + backward : forward, wall", both.wall_ms / one.wall_ms, "x", "<= 3.5"),
        Figure("forward + backward : forward, CPU", both.cpu_ms / one.cpu_ms, "x"),
        Figure("multiply-add peak", peak_gflops, "GFLOP/s"),
        Figure("useful operations of RGB forward", 100 * useful_gflops / peak_gflops, "% of peak", ">= 25"),
    ]


def listed_pairs(gaussians: Gaussians, camera: Camera, side: int = 16) -> int:
    """What a rasterizer of square tiles evaluates: every pixel of a tile with every Gaussian whose box (3 sigma) reaches it."""
    geometry = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities)
    pose, K = camera.T_camera_world[None], camera.K[None]
    info = rasterization(*geometry, gaussians.means, pose, K, camera.width, camera.height)[2]
    means, radii = info["means2d"][0], info["radii"][0]
    last = torch.tensor([camera.width - 1, camera.height - 1]) // side
    low, high = (((means + sign * radii) / side).floor().clamp(min=0).minimum(last) for sign in (-1, 1))
    seen = radii.amin(dim=1) > 0
    return int((high - low + 1)[seen].prod(dim=1).sum()) * side * side


@kernel
def _multiply_add_chain(steps: int) -> float:
    # enough independent chains to hide the latency of an instruction
    a, b = splat(np.float32(0.999999)), splat(np.float32(1e-6))
    x0, x1, x2, x3, x4, x5 = ramp(), ramp(), ramp(), ramp(), ramp(), ramp()
    y0, y1, y2, y3, y4, y5 = ramp(), ramp(), ramp(), ramp(), ramp(), ramp()
    for _ in range(steps):
        x0, x1, x2, x3, x4, x5 = x0 * a + b, x1 * b + a, x2 * a + a, x3 * b + b, x4 * a + x0, x5 * b + x1
        y0, y1, y2, y3, y4, y5 = y0 * a + b, y1 * b + a, y2 * a + a, y3 * b + b, y4 * a + y0, y5 * b + y1
    return lane_sum(x0 + x1 + x2 + x3 + x4 + x5 + y0 + y1 + y2 + y3 + y4 + y5)


@parallel_kernel
def multiply_add(steps: int, threads: int) -> Float32[np.ndarray, " thread"]:
    """Fused multiply-adds in registers: 12 vectors a step on every thread."""
    sums = np.empty(threads, np.float32)
    for thread in numba.prange(threads):
        sums[thread] = _multiply_add_chain(steps)
    return sums


def peers(bench: Bench) -> list[Figure]:
    """A rasterizer of plain torch operations, tile by tile, on the same Gaussians."""
    gaussians, camera = bench.garden
    rgb = torch.rand(len(gaussians), 3, generator=torch.Generator().manual_seed(0))
    geometry = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities)
    pose, K = camera.T_camera_world[None], camera.K[None]
    ours_picture, _, info = rasterization(*geometry, rgb, pose, K, camera.width, camera.height)
    difference = float((torch_tiles(info, rgb, camera.width, camera.height) - ours_picture[0]).abs().max())
    ours, theirs = bench.time(
        lambda: forward(gaussians, camera, rgb),
        lambda: torch_tiles(info, rgb, camera.width, camera.height),
        repeats=3,
    )
    return [
        Figure("torch tiles (without projection)", theirs.wall_ms, "ms"),
        Figure("torch tiles : gags, wall", theirs.wall_ms / ours.wall_ms, "x", ">= 10"),
        Figure("torch tiles : gags, CPU", theirs.cpu_ms / ours.cpu_ms, "x"),
        Figure("largest difference of the pictures", difference, ""),
    ]


def torch_tiles(
    info: dict[str, Any], colors: Float[Tensor, "gaussian channel"], width: int, height: int, side: int = 16
) -> Float[Tensor, "height width channel"]:
    """Projected Gaussians blended with torch alone: of every tile, the Gaussians whose box reaches it, all at once."""
    means, conics, opacities, radii = (info[name][0] for name in ("means2d", "conics", "opacities", "radii"))
    order = info["depths"][0].argsort()
    order = order[radii[order].amin(dim=1) > 0]
    low, high = means - radii, means + radii
    picture = torch.zeros(height, width, colors.shape[1])
    for top in range(0, height, side):
        row = order[(high[order, 1] >= top) & (low[order, 1] <= top + side)]
        for left in range(0, width, side):
            ids = row[(high[row, 0] >= left) & (low[row, 0] <= left + side)]
            y, x = torch.meshgrid(
                torch.arange(top, min(top + side, height)) + 0.5,
                torch.arange(left, min(left + side, width)) + 0.5,
                indexing="ij",
            )
            dx, dy = x[..., None] - means[ids, 0], y[..., None] - means[ids, 1]
            a, b, c = conics[ids].unbind(dim=1)
            alpha = (opacities[ids] * (-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy).exp()).clamp(max=0.999)
            alpha = alpha.where(alpha >= 1 / 255, 0.0)
            behind = (1 - alpha).cumprod(dim=-1)
            weights = alpha * behind / (1 - alpha) * (behind > 1e-4)
            picture[top : top + side, left : left + side] = weights @ colors[ids]
    return picture


def training_iteration(bench: Bench) -> list[Figure]:
    """Iterations in the middle of a training: projection, loss, optimisers and a densification every hundredth."""
    count = 10 if bench.quick else 100
    config = dataclasses.replace(FAST.reconstruct, max_gaussians=80_000)
    scene = bench.scene
    extent = scene_extent(scene.training_views, scene.points)
    start = resampled(bench.run.gaussians, 2000 if bench.quick else 80_000)
    # the demo's splats look the same from everywhere
    bands = (config.sh_degree + 1) ** 2
    start = dataclasses.replace(start, sh=torch.nn.functional.pad(start.sh, (0, 0, 0, bands - start.sh.shape[1])))
    training = start_training(start, extent, config)
    targets, strategy = _photographs(scene.training_views[:20], config.max_side_px), _strategy(config)
    # harmonics in full, refinement still on
    training.step = 2000

    def iterations() -> None:
        for _ in range(count):
            _train_step(training, strategy, targets[training.step % len(targets)], extent, config)
            training.step += 1

    (times,) = bench.time(iterations, repeats=3)
    camera = targets[0].camera
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(camera.height, camera.width, 3, generator=generator).requires_grad_()
    reference = torch.rand(camera.height, camera.width, 3, generator=generator)
    kernels, convolutions = bench.time(
        lambda: photometric_loss(image, reference, 0.2).backward(),
        lambda: photometric_loss_by_convolution(image, reference, 0.2).backward(),
    )
    return [
        Figure("one iteration, all in", times.wall_ms / count, "ms", "<= 60"),
        Figure("one iteration, all in, CPU", times.cpu_ms / count, "ms"),
        Figure("Gaussians at the end", float(len(training.parameters["means"])), ""),
        *kernels.figures("of it, loss and its gradient"),
        Figure("the loss by convolutions : by kernels", convolutions.wall_ms / kernels.wall_ms, "x"),
    ]


def reconstruction(bench: Bench, preset: PresetName, minutes: int, psnr_db: int) -> list[Figure]:
    """A whole training and its held-out views (every eighth, as the run was made)."""
    config = PRESETS[preset].reconstruct
    started = time.perf_counter()
    gaussians = reconstruct(bench.run.scene, config)
    seconds = time.perf_counter() - started
    quality = measure_views(gaussians, bench.run.scene.held_out_views, config.max_side_px)
    return [
        Figure(f"preset {preset}", seconds / 60, "min", f"<= {minutes}"),
        Figure("PSNR held out", statistics.mean(view.psnr for view in quality), "dB", f">= {psnr_db}"),
        Figure("Gaussians", float(len(gaussians)), ""),
    ]


def blending(bench: Bench) -> list[Figure]:
    """The matrices of all views at the size that fields are made at, and what their options cost in exactness."""
    config = FAST.distill
    label_size = FAST.segment.max_side_px or 0
    cameras = [view.camera.limited(label_size // config.downscale) for view in bench.scene.views]
    gaussians = bench.run.gaussians

    def all_views(**options: Any) -> list[Any]:
        return [blend_weights(gaussians, camera, **options) for camera in cameras]

    blend_weights(gaussians, cameras[0])
    started = time.perf_counter()
    kept = all_views(min_weight=config.min_blend_weight)
    seconds = time.perf_counter() - started
    figures = [
        Figure(f"{len(cameras)} views", seconds, "s", "<= 60"),
        Figure("memory of all", sum(matrix_bytes(each) for each in kept) / 1e9, "GB", "<= 1.5"),
    ]
    everything = blend_weights(gaussians, cameras[0])
    values = torch.rand(len(gaussians), 16, generator=torch.Generator().manual_seed(0))
    options: list[dict[str, Any]] = [{"min_weight": config.min_blend_weight}, {"top_k": 16}, {"top_k": 8}]
    for option in options:
        smaller = blend_weights(gaussians, cameras[0], **option)
        name = ", ".join(f"{key} {value}" for key, value in option.items())
        off = (smaller.render(values) - everything.render(values)).abs().max()
        figures.append(Figure(f"{name}: memory", 100 * matrix_bytes(smaller) / matrix_bytes(everything), "% of all"))
        figures.append(Figure(f"{name}: largest error of values in 0..1", float(off), ""))
    return figures


def matrix_bytes(blend: Any) -> int:
    """Of the rows of a view's blend weights."""
    return sum(tensor.nbytes for tensor in (blend.rows.starts, blend.rows.ids, blend.rows.weights))


def fields(bench: Bench, kind: str) -> list[Figure]:
    """A field from masks and features."""
    run, make = bench.run, {"lift": lift, "galift": galift}[kind]
    config: Any = getattr(FAST, kind)
    if bench.quick:
        config = dataclasses.replace(config, feature_width=8)
    masks, embeddings = dict(run.masks), dict(run.embeddings)
    started, cpu = time.perf_counter(), time.process_time()
    make(bench.scene, run.gaussians, masks, embeddings, config)
    return [
        Figure(kind, time.perf_counter() - started, "s", "<= 30"),
        Figure(f"{kind}, CPU", time.process_time() - cpu, "s"),
    ]


def distillation(bench: Bench, iterations: int | None) -> list[Figure]:
    """GaD from masks and features; with a number of iterations, those of a whole training are extrapolated."""
    config: DistillConfig = dataclasses.replace(FAST.distill, iterations=iterations or FAST.distill.iterations)
    masks, embeddings = dict(bench.run.masks), dict(bench.run.embeddings)
    marks: list[tuple[float, float]] = []

    def mark(_: Any) -> None:
        marks.append((time.perf_counter(), time.process_time()))

    quarter = max(1, config.iterations // 4)
    started = time.perf_counter()
    config = dataclasses.replace(config, checkpoint_every=quarter)
    distill(bench.scene, bench.run.gaussians, masks, embeddings, config, on_checkpoint=mark)
    seconds = time.perf_counter() - started
    steps = quarter * (len(marks) - 1)
    each, each_cpu = ((last - first) / steps for first, last in zip(marks[0], marks[-1], strict=True))
    seconds += each * (FAST.distill.iterations - config.iterations)
    return [
        Figure("gad" if iterations is None else "gad, extrapolated", seconds / 60, "min", "<= 5"),
        Figure("gad, an iteration", 1e3 * each, "ms"),
        Figure("gad, an iteration, CPU", 1e3 * each_cpu, "ms"),
    ]


def segmentation(bench: Bench) -> list[Figure]:
    """Masks and features of a few views by the built-in models, for all."""
    count = 1 if bench.quick else 4
    scene, run = bench.first_views(count), bench.run
    config = SegmentConfig(**run.description["config"]["segment"])
    encoder = run.encoder
    # what is loaded at first use is not a view's
    encoder.encode_tiles(torch.zeros(1, 3, encoder.tile_px, encoder.tile_px))
    seconds = []
    masks = {}
    made = segment(scene, run.gaussians, run.depths, HierarchySegmenter(), config)
    started = time.perf_counter()
    masks = dict(made)
    seconds.append((time.perf_counter() - started) / count)
    started = time.perf_counter()
    dict(encode(scene, masks, encoder, EncodeConfig()))
    seconds.append((time.perf_counter() - started) / count)
    return [
        Figure("segment, a view", seconds[0], "s"),
        Figure("encode, a view", seconds[1], "s"),
        Figure("126 views", 126 * sum(seconds) / 60, "min", "<= 8"),
    ]


def decode_every_pixel(
    field: LanguageField, camera: Camera, bench: Bench, config: QueryConfig
) -> Float[Tensor, "phrase point"]:
    """Relevancy as it is defined: render, decode, compare."""
    positives, negatives = phrase_vectors([PHRASE], bench.run.encoder, config)
    features = field.render(camera).flatten(0, 1)
    parts = [relevancy(field.decode(rows), positives, negatives) for rows in features.split(65536)]
    return torch.cat(parts, dim=1)


def view_query(bench: Bench) -> list[Figure]:
    """One phrase in a new view, of every field of the run."""
    config, camera, encoder = QueryConfig(), bench.query_camera, bench.run.encoder
    figures = []
    for kind in bench.run.field_kinds:
        field = bench.run.field(kind)
        quick = relevancy_maps(field, camera, [PHRASE], encoder, config).flatten(1)
        off = float((quick - decode_every_pixel(field, camera, bench, config)).abs().max())
        found, decoded = bench.time(
            lambda field=field: query(field, camera, [PHRASE], encoder, config),
            lambda field=field: decode_every_pixel(field, camera, bench, config),
            repeats=3,
        )
        figures += [
            *found.figures(f"{kind}, query", "<= 150"),
            Figure(f"{kind}, every pixel decoded : query, wall", decoded.wall_ms / found.wall_ms, "x", ">= 20"),
            Figure(f"{kind}, every pixel decoded : query, CPU", decoded.cpu_ms / found.cpu_ms, "x"),
            Figure(f"{kind}, largest relevancy error", off, "", "<= 0.02"),
        ]
    return figures


def query_in_3d(bench: Bench) -> list[Figure]:
    """One phrase among 300 000 Gaussians, after another one was asked."""
    config, encoder, number = QueryConfig(), bench.run.encoder, 3000 if bench.quick else 300_000
    figures = []
    for kind in bench.run.field_kinds:
        made = bench.run.field(kind)
        gaussians = resampled(made.gaussians, number)
        features = made.features[torch.arange(number) % len(made.features)]
        field = dataclasses.replace(made, gaussians=gaussians, features=features, level_weights=None)
        nearest = nearest_gaussians(gaussians.means, config.smooth_neighbours)
        (times,) = bench.time(lambda field=field, nearest=nearest: query_3d(field, [PHRASE], encoder, config, nearest))
        figures += times.figures(f"{kind}, {number} Gaussians, warm", "<= 40")
    (embedding,) = bench.time(lambda: phrase_vectors([PHRASE], encoder, config))
    return [*figures, *embedding.figures("of it, embedding the phrase")]


def three_fields(bench: Bench) -> list[Figure]:
    """LangSplat's arrangement: a field a level, each rendered and decoded, the best taken; on this engine."""
    torch.manual_seed(0)
    gaussians, camera, encoder = bench.run.gaussians, bench.query_camera, bench.run.encoder
    levels = [
        LanguageField(
            gaussians,
            torch.randn(len(gaussians), 16),
            FeatureDecoder(16, encoder.width).requires_grad_(False),
            None,
            FieldMeta("gad", 16, encoder.width),
        )
        for _ in range(3)
    ]

    def ask(fields: Sequence[LanguageField]) -> Tensor:
        maps = [relevancy_maps(field, camera, [PHRASE], encoder, QueryConfig(exact=True)) for field in fields]
        return torch.stack(maps).amax(dim=0)

    three, one = bench.time(lambda: ask(levels), lambda: ask(levels[:1]), repeats=1)
    return [
        Figure("three fields : one, wall", three.wall_ms / one.wall_ms, "x", ">= 2"),
        Figure("three fields : one, CPU", three.cpu_ms / one.cpu_ms, "x"),
    ]


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
    main()
