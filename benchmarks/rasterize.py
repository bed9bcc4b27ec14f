"""How fast the CPU rasterizer is: forward and backward, RGB and 16 channels, blend weights and their products.

    python benchmarks/rasterize.py --scenes-dir ../shared/scenes [--out benchmarks/rasterize.json] [--repeats 10]

Prints a table and writes JSON with the machine, the versions and medians in milliseconds (wall, and CPU time over all
threads: the one to compare when the machine is busy).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import llvmlite
import numba
import numpy as np
import torch

from gags.gaussians import Gaussians
from gags.geometry import Camera
from gags.rasterize import blend_weights, rasterization


def garden(folder: Path) -> tuple[Gaussians, Camera]:
    """The garden scene of scenes/README.md: 138 766 Gaussians at 648x420, view 0."""
    arrays = np.load(folder / "garden_points" / "garden.npz")
    tensor = {name: torch.from_numpy(arrays[name]) for name in arrays}
    K = arrays["Ks"][0].tolist()
    # degree 0 of the spherical harmonics is (colour - 1/2) / Y_00
    sh = torch.zeros(len(tensor["means"]), 16, 3)
    sh[:, 0] = (tensor["colors"] - 0.5) / 0.28209479177387814
    gaussians = Gaussians(
        tensor["means"], tensor["quats"], tensor["scales"].log(), torch.logit(tensor["opacities"]), sh
    )
    camera = Camera(
        tensor["viewmats"][0], K[0][0], K[1][1], K[0][2], K[1][2], int(arrays["width"]), int(arrays["height"])
    )
    return gaussians, camera


def training_size(gaussians: Gaussians, camera: Camera, n: int, width: int, height: int) -> tuple[Gaussians, Camera]:
    """A random subset of ``n`` Gaussians, enlarged to cover what all covered, seen at another size."""
    chosen = torch.randperm(len(gaussians), generator=torch.Generator().manual_seed(0))[:n].sort().values
    fields = {name: getattr(gaussians, name)[chosen] for name in gaussians.__dataclass_fields__}
    # surfaces: area per Gaussian grows as their number falls
    fields["log_scales"] = fields["log_scales"] + 0.5 * float(np.log(len(gaussians) / n))
    return Gaussians(**fields), camera.resized(width, height)


def medians(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Medians of ``repeats`` runs after two to compile and warm up, in milliseconds."""
    for _ in range(2):
        work()
    wall, cpu = [], []
    for _ in range(repeats):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        work()
        wall.append(1e3 * (time.perf_counter() - wall_start))
        cpu.append(1e3 * (time.process_time() - cpu_start))
    return {"wall_ms": statistics.median(wall), "cpu_ms": statistics.median(cpu)}


def cases(gaussians: Gaussians, camera: Camera) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(len(gaussians), 16, generator=rng)
    rgb = torch.rand(len(gaussians), 3, generator=rng)
    pose, K, size = camera.T_camera_world[None], camera.K[None], (camera.width, camera.height)
    geometry = [gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities]

    def forward(colors: torch.Tensor, sh_degree: int | None = None) -> object:
        with torch.no_grad():
            return rasterization(*geometry, colors, pose, K, *size, sh_degree=sh_degree)

    def training(colors: torch.Tensor, sh_degree: int | None = None) -> object:
        leaves = [t.detach().requires_grad_() for t in (*geometry, colors)]
        picture, _, _ = rasterization(*leaves, pose, K, *size, sh_degree=sh_degree)
        return picture.sum().backward()

    weights = blend_weights(gaussians, camera)
    pixels = torch.randint(0, camera.width * camera.height, (8192,), generator=rng)
    leaf = features.clone().requires_grad_()
    return {
        "RGB forward": lambda: forward(rgb),
        "RGB forward + backward": lambda: training(rgb),
        "SH degree 3 forward": lambda: forward(gaussians.sh, 3),
        "SH degree 3 forward + backward": lambda: training(gaussians.sh, 3),
        "16 channels forward": lambda: forward(features),
        "16 channels forward + backward": lambda: training(features),
        "blend weights": lambda: blend_weights(gaussians, camera),
        "blend weights, top 16": lambda: blend_weights(gaussians, camera, top_k=16),
        "product, 16 channels": lambda: weights.render(features),
        "transposed product, 16 channels": lambda: weights.scatter(features.new_ones(camera.width * camera.height, 16)),
        "8192 pixels forward + backward": lambda: weights.render_pixels(leaf, pixels).sum().backward(),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    full = garden(options.scenes_dir)
    scenes = {
        f"garden, {len(full[0])} Gaussians, {full[1].width}x{full[1].height}": full,
        "garden, 80000 Gaussians, 404x267": training_size(*full, 80_000, 404, 267),
    }
    results: dict[str, dict[str, dict[str, float]]] = {}
    for scene, (gaussians, camera) in scenes.items():
        print(f"\n{scene}\n{'':34}{'wall ms':>10}{'CPU ms':>10}")
        results[scene] = {}
        for name, work in cases(gaussians, camera).items():
            found = results[scene][name] = medians(work, options.repeats)
            print(f"{name:34}{found['wall_ms']:10.1f}{found['cpu_ms']:10.1f}")
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "numba_threads": numba.get_num_threads(),
        "threading_layer": numba.threading_layer(),
        "load_average": os.getloadavg()[0],
    }
    versions = {m.__name__: m.__version__ for m in (numba, llvmlite, np, torch)} | {"python": platform.python_version()}
    options.out.write_text(json.dumps({"machine": machine, "versions": versions, "medians": results}, indent=1) + "\n")
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
