"""Rows of ``run.py``: the rasterizer, training on colour, blend weights."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from gags.gaussians import Gaussians
from gags.geometry import Camera
from gags.presets import FAST, PRESETS, PresetName
from gags.rasterize import blend_weights, rasterization
from gags.reconstruct import measure_views, reconstruct, scene_extent
from gags.reconstruct._ssim import photometric_loss, photometric_loss_by_convolution
from gags.reconstruct._state import start_training
from gags.reconstruct._train import _photographs, _strategy, _train_step
from gags.simd import LANES, constant, kernel, lane_sum, parallel_kernel, splat
from measuring import Bench, Figure, resampled

# Operations of one pixel-Gaussian evaluation in RGB: offset 1, exponent 4, exp2 13, alpha and transmittance 3, colours 6.
FLOP_PER_EVALUATION = 27


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


ramp = constant(*range(LANES))


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
