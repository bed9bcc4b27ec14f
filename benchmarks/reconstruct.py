"""RGB training on real photographs: seconds an iteration, held-out PSNR, and what the hand-written loss saves.

python benchmarks/reconstruct.py ../shared/scenes/bonsai --preset fast --iterations 300 --every 4 --out reconstruct.json

``--iterations`` shortens a preset for a quick look; leave it out for the figures of the preset.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import torch

from gags.presets import PRESETS
from gags.reconstruct import ReconstructConfig, ReconstructState, measure_views, reconstruct
from gags.reconstruct._ssim import photometric_loss, photometric_loss_by_convolution
from gags.scene import Scene, SceneConfig, load_scene


def median_ms(call: Callable[[], Any], repeats: int) -> float:
    """Median wall time of a call that has run once before."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def compare_losses(width: int, height: int) -> dict[str, float]:
    """Loss and gradient by the numba kernels and by torch's convolutions, in the same process."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(height, width, 3, generator=generator).requires_grad_()
    reference = torch.rand(height, width, 3, generator=generator)
    kernels = median_ms(lambda: photometric_loss(image, reference, 0.2).backward(), 15)
    convolutions = median_ms(lambda: photometric_loss_by_convolution(image, reference, 0.2).backward(), 5)
    return {"kernels_ms": kernels, "convolutions_ms": convolutions, "ratio": convolutions / kernels}


def train(scene: Scene, config: ReconstructConfig) -> dict[str, Any]:
    """Train, time every stretch between checkpoints, measure the held-out views."""
    stretches: list[dict[str, float]] = []
    wall, cpu = time.perf_counter(), time.process_time()
    start_wall, start_cpu, start_step = wall, cpu, 0

    def mark(state: ReconstructState) -> None:
        nonlocal wall, cpu, start_step
        now, now_cpu, steps = time.perf_counter(), time.process_time(), state.step - start_step
        number = len(state.tensors["parameter/means"])
        stretch = {"step": state.step, "gaussians": number, "wall_ms": (now - wall) / steps * 1e3}
        stretches.append(stretch | {"cpu_ms": (now_cpu - cpu) / steps * 1e3})
        wall, cpu, start_step = now, now_cpu, state.step

    gaussians = reconstruct(scene, config, on_checkpoint=mark)
    result: dict[str, Any] = {
        "wall_s": time.perf_counter() - start_wall,
        "cpu_s": time.process_time() - start_cpu,
        "gaussians": len(gaussians),
        "stretches": stretches,
    }
    quality = measure_views(gaussians, scene.held_out_views, config.max_side_px)
    if quality:
        result["psnr_db"] = statistics.mean(view.psnr for view in quality)
        result["ssim"] = statistics.mean(view.ssim for view in quality)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--preset", choices=list(PRESETS), default="fast")
    parser.add_argument("--iterations", type=int, default=None)
    parser.add_argument("--every", type=int, default=1, help="use every so many photographs")
    parser.add_argument("--out", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()
    config = PRESETS[arguments.preset].reconstruct
    config = dataclasses.replace(config, iterations=arguments.iterations or config.iterations)
    config = dataclasses.replace(config, checkpoint_every=max(1, config.iterations // 10))
    with tempfile.TemporaryDirectory() as work:
        scene = load_scene(arguments.scene, SceneConfig(), Path(work))
        views = scene.views[:: arguments.every]
        views = tuple(dataclasses.replace(view, held_out=index % 8 == 0) for index, view in enumerate(views))
        scene = dataclasses.replace(scene, views=views)
        camera = views[0].camera.limited(config.max_side_px)
        result = {
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numba": numba.__version__},
            "command": {"preset": arguments.preset, "iterations": config.iterations, "views": len(views)},
            "loss": compare_losses(camera.width, camera.height),
            "training": train(scene, config),
            # Linux reports kilobytes.
            "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        }
    loss, training = result["loss"], result["training"]
    print(f"loss and gradient at {camera.width}x{camera.height}: {loss['kernels_ms']:.1f} ms, by convolutions "
          f"{loss['convolutions_ms']:.1f} ms, {loss['ratio']:.1f} times as long")  # fmt: skip
    print("| iteration | Gaussians | wall ms | CPU ms |\n|---|---|---|---|")
    for row in training["stretches"]:
        print(f"| {row['step']} | {row['gaussians']} | {row['wall_ms']:.0f} | {row['cpu_ms']:.0f} |")
    quality = (
        f", held-out PSNR {training['psnr_db']:.2f} dB, SSIM {training['ssim']:.3f}" if "psnr_db" in training else ""
    )
    print(f"{training['wall_s']:.0f} s, CPU {training['cpu_s']:.0f} s, {training['gaussians']} Gaussians{quality}, "
          f"peak memory {result['peak_memory_gb']:.1f} GB")  # fmt: skip
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
