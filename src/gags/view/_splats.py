"""Splats in a browser: in chunks of neighbours, of which a recolouring sends those alone that changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from gags.gaussians import Gaussians
from gags.view._frame import DisplayFrame

if TYPE_CHECKING:
    import viser

NODE = "/splats"
"""Parent of the chunks in the page's scene."""

CHUNK = 4096
"""Splats in a chunk: 128 KB."""


def morton_order(means: Float[Tensor, "gaussian 3"]) -> Int[Tensor, " gaussian"]:
    """Ids along a Z-order curve: neighbours in the list are neighbours in space."""
    low, high = means.amin(dim=0), means.amax(dim=0)
    # 1e-12: a flat scene has one cell across
    cell = ((means - low) / (high - low).clamp_min(1e-12) * 1023).to(torch.int64)
    code = torch.zeros(len(means), dtype=torch.int64)
    for bit in range(10):
        for axis in range(3):
            code |= ((cell[:, axis] >> bit) & 1) << (3 * bit + axis)
    return code.argsort(stable=True)


def display_ids(gaussians: Gaussians, limit: int) -> list[Int[Tensor, " chunk"]]:
    """Which Gaussians the page draws, chunk by chunk along ``morton_order``: at most ``limit`` of them.

    Where there are too many, every neighbourhood keeps the same share: those that cover most, by opacity and area.
    """
    order = morton_order(gaussians.means)
    share = min(1.0, limit / len(gaussians))
    chunks = order.split(max(1, int(CHUNK / share)))
    if share == 1.0:
        return list(chunks)
    largest_two = gaussians.scales.sort(dim=1).values[:, 1:]
    cover = gaussians.opacities * largest_two.prod(dim=1)
    # rounding down keeps the sum below the limit; a chunk of one is kept by the share of its neighbours
    kept = [chunk[cover[chunk].topk(int(len(chunk) * share)).indices.sort().values] for chunk in chunks]
    return [ids for ids in kept if len(ids)]


def covariances(gaussians: Gaussians) -> Float[Tensor, "gaussian 3 3"]:
    """R S S^T R^T of every Gaussian (Kerbl et al. 2023, eq. 6), in squared scene units."""
    w, x, y, z = torch.nn.functional.normalize(gaussians.quats, dim=1).unbind(dim=1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    rotations = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    axes = rotations * gaussians.scales[:, None, :]
    return axes @ axes.transpose(1, 2)


@dataclass(frozen=True)
class Chunk:
    """Splats that are sent together."""

    ids: Int[Tensor, " splat"]
    """Rows of the scene's Gaussians."""
    centers: Float[np.ndarray, "splat 3"]
    """In display coordinates."""
    covariances: Float[np.ndarray, "splat 3 3"]
    """In squared display units."""


def make_chunks(gaussians: Gaussians, frame: DisplayFrame, limit: int) -> list[Chunk]:
    """The splats that a page shows, without their colours."""
    chunks = []
    for ids in display_ids(gaussians, limit):
        part = gaussians.subset(ids)
        # half precision ends at 65504: what is larger fills the sky either way
        spread = (covariances(part) * frame.scale**2).clamp(-6e4, 6e4)
        chunks.append(Chunk(ids, frame.points(part.means), spread.numpy()))
    return chunks


class SplatCloud:
    """The splats in one page, or (``scene`` of a server) in all."""

    def __init__(self, scene: viser.SceneApi, chunks: Sequence[Chunk], rgba: UInt8[Tensor, "gaussian 4"]) -> None:
        self._frame = scene.add_frame(NODE, show_axes=False)
        self._chunks = chunks
        self._handles = []
        for number, chunk in enumerate(chunks):
            colors = rgba[chunk.ids].numpy()
            handle = scene.add_gaussian_splats(
                f"{NODE}/{number}", chunk.centers, chunk.covariances, colors[:, :3], colors[:, 3:]
            )
            self._handles.append(handle)

    def recolor(self, rgba: UInt8[Tensor, "gaussian 4"]) -> int:
        """Show other colours and opacities; the number of splats that were sent for it."""
        sent = 0
        for chunk, handle in zip(self._chunks, self._handles, strict=True):
            colors = np.ascontiguousarray(rgba[chunk.ids].numpy()).view(np.uint32)[:, 0]
            # the last of a splat's eight words is its colour
            if not np.array_equal(handle.buffer[:, 7], colors):
                buffer = handle.buffer.copy()
                buffer[:, 7] = colors
                handle.buffer = buffer
                sent += len(colors)
        return sent

    @property
    def visible(self) -> bool:
        """Whether the splats are drawn at all."""
        return self._frame.visible

    @visible.setter
    def visible(self, visible: bool) -> None:
        self._frame.visible = visible

    def remove(self) -> None:
        """Take the splats off the page."""
        self._frame.remove()
