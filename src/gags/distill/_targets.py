"""What a pixel should decode to: the embeddings of its masks, mixed by granularity (docs/method.md, stage 3; fixture 07).

Label maps here have three levels (subpart, part, whole); labels are rows of the view's embeddings, -1 is unlabelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from gags.errors import GagsError
from gags.geometry import Camera
from gags.scene import View
from gags.segment import LEVELS, ViewMasks

TargetMode = Literal["soft", "hard", "median"]
"""How granularity weights mix the levels: as they are, winner takes all, or their median over the pixel's subpart."""


@dataclass(frozen=True)
class ViewLabels:
    """What a training view teaches, at the size it is rendered."""

    camera: Camera
    """The view's camera at the size of the label maps."""
    label_maps: Int[Tensor, "3 height width"]
    """Subpart, part, whole; labels are rows of ``embeddings``, -1 unlabelled."""
    embeddings: Float[Tensor, "mask embedding"]
    """Unit vectors of the view's masks."""


def view_labels(
    view: View,
    masks: Mapping[str, ViewMasks],
    embeddings: Mapping[str, Float[Tensor, "mask embedding"]],
    downscale: int,
) -> ViewLabels:
    """A view's labels and embeddings at 1 / ``downscale`` of the size of its label maps; the masks are not kept.

    Raises:
        GagsError: the view has no masks or no embeddings, or they are not of each other.
    """
    for name, products in (("masks", masks), ("embeddings", embeddings)):
        if view.name not in products:
            raise GagsError(
                f"{name}: expected those of every training view, found none of {view.name}; make them again"
            )
    label_maps = masks[view.name].label_maps[list(LEVELS)]
    vectors = embeddings[view.name]
    if int(label_maps.max()) >= len(vectors):
        raise GagsError(
            f"view {view.name}: expected an embedding for each of its {int(label_maps.max()) + 1} masks, found "
            f"{len(vectors)}; encode the masks again"
        )
    height, width = (downscaled(side, downscale) for side in label_maps.shape[1:])
    return ViewLabels(view.camera.resized(width, height), resize_labels(label_maps, height, width), vectors.float())


def downscaled(size_px: int, factor: int) -> int:
    """A side of an image after downscaling, rounded half to even as the reference's loader has it; at least 1."""
    return max(1, round(size_px / factor))


def resize_labels(
    label_maps: Int[Tensor, "level height width"], height: int, width: int
) -> Int[Tensor, "level new_height new_width"]:
    """Nearest neighbour: the source index is the floor of target index x source size / target size."""
    rows, columns = (
        torch.arange(new, device=label_maps.device) * old // new
        for new, old in zip((height, width), label_maps.shape[1:], strict=True)
    )
    return label_maps[:, rows[:, None], columns]


def mixed_label_map(
    weights: Float[Tensor, "height width 3"], label_maps: Int[Tensor, "3 height width"]
) -> Int[Tensor, "height width"]:
    """The region of each pixel: its label in the level that wins after a 5 x 5 mean of the weights (zeros outside).

    -1 where the winning level has no label, even if others have one. No gradient passes.
    """
    planes = weights.detach().movedim(-1, 0)
    smooth = functional.avg_pool2d(planes[None], kernel_size=5, stride=1, padding=2, count_include_pad=True)[0]
    # max, for its indices are found ten times as fast as argmax's; both name the first of equals
    return label_maps.gather(0, smooth.max(dim=0, keepdim=True).indices)[0]


def mixing_weights(
    weights: Float[Tensor, "height width 3"], label_maps: Int[Tensor, "3 height width"], mode: TargetMode
) -> Float[Tensor, "height width 3"]:
    """Granularity weights as the target uses them; gradients pass except through ``hard``.

    ``hard`` is one-hot, and zero where the winning level (the first of equals) has no label.
    """
    if mode == "hard":
        return functional.one_hot(weights.argmax(dim=-1), 3) * (label_maps >= 0).movedim(0, -1).to(weights.dtype)
    if mode == "median":
        return _region_medians(weights.flatten(0, 1), label_maps[0].flatten()).view_as(weights)
    return weights


def valid_pixels(
    label_maps: Int[Tensor, "3 height width"], mixing: Float[Tensor, "height width 3"], mode: TargetMode
) -> Bool[Tensor, "height width"]:
    """Where a target counts: all three levels are labelled (``hard``: the winning level is)."""
    return (mixing > 0).any(dim=-1) if mode == "hard" else (label_maps >= 0).all(dim=0)


def mixed_embeddings(
    labels: Int[Tensor, "row 3"], embeddings: Float[Tensor, "mask embedding"], weights: Float[Tensor, "row 3"]
) -> Float[Tensor, "row embedding"]:
    """The target of pixels that are labelled in every level with weight: sum over levels of weight x embedding.

    It is not normalised again. Labels of -1 are allowed where the weight is 0.
    """
    index = labels.clamp(min=0).long()
    levels = (weights[:, level, None] * embeddings[index[:, level]] for level in range(3))
    return next(levels) + next(levels) + next(levels)


def target_feature_map(
    label_maps: Int[Tensor, "3 height width"],
    embeddings: Float[Tensor, "mask embedding"],
    weights: Float[Tensor, "new_height new_width 3"],
    mode: TargetMode = "soft",
    reference_quirks: bool = False,
) -> tuple[Float[Tensor, "new_height new_width embedding"], Bool[Tensor, "new_height new_width"]]:
    """The target features of a whole view, and where they count.

    Embeddings are looked up at the label maps' size and resized to the weights' size bilinearly with corners aligned,
    labels by nearest neighbour. Valid are pixels labelled in all three levels (``hard``: in the winning level).

    ``reference_quirks``: unlabelled pixels take the table's last embedding (here: zeros), and ``hard`` is valid where
    the first channel of the target is not exactly 0.
    """
    new_height, new_width, _ = weights.shape
    new_labels = resize_labels(label_maps, new_height, new_width)
    mixing = mixing_weights(weights, new_labels, mode)
    unlabelled_embedding = embeddings[-1:] if reference_quirks else torch.zeros_like(embeddings[:1])
    table = torch.cat([embeddings, unlabelled_embedding])
    target = torch.zeros(new_height, new_width, embeddings.shape[1], dtype=embeddings.dtype, device=embeddings.device)
    for level in range(3):
        # A label of -1 reads the row that was appended for it.
        index = torch.where(label_maps[level] < 0, len(embeddings), label_maps[level]).long()
        target = target + mixing[..., level, None] * _resize_bilinear(table[index], new_height, new_width)
    if mode == "hard" and reference_quirks:
        return target, target[..., 0] != 0
    return target, valid_pixels(new_labels, mixing, mode)


def _resize_bilinear(
    image: Float[Tensor, "height width channel"], height: int, width: int
) -> Float[Tensor, "new_height new_width channel"]:
    if image.shape[:2] == (height, width):
        return image
    planes = image.movedim(-1, 0)[None]
    return functional.interpolate(planes, (height, width), mode="bilinear", align_corners=True)[0].movedim(0, -1)


def _region_medians(weights: Float[Tensor, "pixel 3"], labels: Int[Tensor, " pixel"]) -> Float[Tensor, "pixel 3"]:
    """Per region and channel the lower median, rescaled to sum 1 over the channels; pixels in no region keep theirs."""
    pixel_ids = (labels >= 0).nonzero()[:, 0]
    region = labels[pixel_ids].long()
    sizes = torch.bincount(region)
    middle = (sizes.cumsum(0) - sizes + (sizes - 1) // 2)[region]
    medians = []
    for channel in weights[pixel_ids].unbind(dim=1):
        by_value = channel.detach().argsort(stable=True)
        by_region_and_value = by_value[region[by_value].argsort(stable=True)]
        medians.append(channel[by_region_and_value[middle]])
    median = torch.stack(medians, dim=1)
    return weights.index_put((pixel_ids,), median / median.sum(dim=1, keepdim=True))
