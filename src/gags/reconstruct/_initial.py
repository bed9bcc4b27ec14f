"""Where training starts: Gaussians at the sparse points, and the size of the scene."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gags.errors import GagsError
from gags.gaussians import SH_C0, Gaussians
from gags.scene import Scene, View

_NEIGHBOURS = 3


def scene_extent(views: Sequence[View], points: Float[Tensor, "point 3"]) -> float:
    """1.1 times the largest distance of a camera from the cameras' mean, scene units (as 3DGS and gsplat have it).

    Cameras in one place (a panorama, a single view) span nothing: then it is their median distance to the points.
    """
    centers = torch.stack([view.camera.center_world for view in views]).double()
    mean_center = centers.mean(dim=0)
    radius = float((centers - mean_center).norm(dim=1).max())
    distance = float((points.double() - mean_center).norm(dim=1).median())
    # Below a thousandth of the scene, the baseline is the noise of the poses.
    return 1.1 * radius if radius > 1e-3 * distance else 1.1 * distance


def initial_gaussians(
    scene: Scene, extent: float, opacity: float, sh_degree: int, max_gaussians: int | None, seed: int
) -> Gaussians:
    """One round Gaussian a sparse point, as large as its mean distance from its three nearest neighbours.

    Args:
        scene: gives points and their colours; GagsError if it has none.
        extent: size of the scene, scene units: bounds the size of points without neighbours.
        opacity: in 0..1, of every Gaussian.
        sh_degree: bands above the first start at zero.
        max_gaussians: of more points, so many are drawn without replacement; None takes all.
        seed: of that draw.
    """
    number = len(scene.points)
    if number == 0:
        raise GagsError(
            "reconstruct: expected a scene with sparse 3D points, found none; run COLMAP's triangulation first"
        )
    chosen = np.arange(number)
    if max_gaussians is not None and number > max_gaussians:
        chosen = np.sort(np.random.default_rng(seed).choice(number, max_gaussians, replace=False))
    points = scene.points[torch.from_numpy(chosen)].float().contiguous()
    colors = scene.point_colors[torch.from_numpy(chosen)].float() / 255
    sh = torch.zeros(len(points), (sh_degree + 1) ** 2, 3)
    sh[:, 0] = (colors - 0.5) / SH_C0
    quats = torch.zeros(len(points), 4)
    quats[:, 0] = 1
    return Gaussians(
        means=points,
        quats=quats,
        log_scales=_neighbour_distance(points, extent).log()[:, None].repeat(1, 3),
        opacity_logits=torch.full((len(points),), math.log(opacity / (1 - opacity))),
        sh=sh,
    )


def _neighbour_distance(points: Float[Tensor, "point 3"], extent: float) -> Float[Tensor, " point"]:
    """Root mean square distance to the nearest neighbours, between 1e-6 and a tenth of the extent."""
    from scipy.spatial import cKDTree

    neighbours = min(_NEIGHBOURS, len(points) - 1)
    if neighbours == 0:
        return torch.full((1,), 0.1 * extent)
    # The nearest point to a point is itself; axis 1 stays for a single neighbour because k is a list.
    distances, _ = cKDTree(points.numpy()).query(points.numpy(), k=list(range(2, neighbours + 2)))
    root_mean_square = np.sqrt(np.mean(distances**2, axis=1))
    # Twins have distance 0, which has no logarithm; a lone far point would cover every picture.
    return torch.from_numpy(root_mean_square).float().clamp(1e-6 * extent, 0.1 * extent)
