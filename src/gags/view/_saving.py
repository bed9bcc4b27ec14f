"""Files that a page hands to the browser."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from gags.gaussians import Gaussians, write_splats
from gags.geometry import Camera
from gags.query import Selection
from gags.scene import camera_to_json
from gags.view._state import ViewState


def splat_bytes(gaussians: Gaussians, suffix: str) -> bytes:
    """A .ply or .spz file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"selection{suffix}"
        write_splats(path, gaussians)
        return path.read_bytes()


def selection_bytes(
    state: ViewState,
    selections: Sequence[Selection],
    chosen: Bool[Tensor, " gaussian"],
    means: Float[Tensor, "gaussian 3"],
) -> bytes:
    """Boxes and masks as JSON: what the page was asked, what every phrase found, and what is chosen in all.

    Masks are lists of the chosen Gaussians' rows in ``splats.ply``; boxes are [smallest, largest] coordinates.
    """
    centers = means[chosen]
    content = {
        "state": asdict(state),
        "box_world": [centers.amin(dim=0).tolist(), centers.amax(dim=0).tolist()],
        "mask": chosen.nonzero()[:, 0].tolist(),
        "phrases": [
            {
                "phrase": selection.phrase,
                "score": selection.score,
                "box_world": None if selection.box_world is None else selection.box_world.tolist(),
                "centroid_world": None if selection.centroid_world is None else selection.centroid_world.tolist(),
                "mask": selection.gaussian_ids.tolist(),
            }
            for selection in selections
        ],
    }
    return json.dumps(content).encode()


def camera_bytes(camera: Camera) -> bytes:
    """A camera that ``gags query --camera`` takes."""
    return (json.dumps(camera_to_json(camera), indent=2) + "\n").encode()


def picture_bytes(picture: UInt8[Tensor, "height width 3"]) -> bytes:
    """A PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture.numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
