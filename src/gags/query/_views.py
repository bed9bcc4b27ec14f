"""Which photograph shows a find best?"""

from __future__ import annotations

from collections.abc import Sequence

from gags.gaussians import Gaussians
from gags.geometry import project
from gags.query._query3d import Selection
from gags.scene import View


def best_view(gaussians: Gaussians, selection: Selection, views: Sequence[View]) -> View:
    """The view in which the selected Gaussians fill the largest part of the picture; the first if nothing is selected.

    Occlusion is not looked at: each Gaussian counts with its opacity times the share of the picture that its cross-section
    would cover.
    """
    rows = selection.gaussian_ids
    means = gaussians.means[rows]
    weight = gaussians.opacities[rows] * gaussians.scales[rows].square().mean(dim=1)

    def shown(view: View) -> float:
        camera = view.camera
        xy_px, depth = project(camera, means)
        inside = (depth > 0) & (xy_px >= 0).all(1) & (xy_px[:, 0] < camera.width) & (xy_px[:, 1] < camera.height)
        share = camera.fx_px * camera.fy_px / (camera.width * camera.height)
        return float((weight[inside] * share / depth[inside].square()).sum())

    return max(views, key=shown)
