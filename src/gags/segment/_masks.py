"""From a segmenter's proposals to the masks and label maps of a view: filters, mask NMS, painting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from scipy import ndimage
from torch import Tensor

from gags.errors import GagsError
from gags.segment._types import Granularity, ViewMasks


@dataclass(frozen=True)
class Candidates:
    """Masks of one label set on their way through the filters."""

    masks: Bool[Tensor, "mask height width"]
    predicted_iou: Float[Tensor, " mask"]
    stability: Float[Tensor, " mask"]

    @property
    def score(self) -> Float[Tensor, " mask"]:
        """Predicted IoU times stability, float64 so that equal products stay equal."""
        return self.predicted_iou.double() * self.stability.double()

    def __getitem__(self, rows: Int[Tensor, " kept"] | Bool[Tensor, " mask"]) -> Candidates:
        return Candidates(self.masks[rows], self.predicted_iou[rows], self.stability[rows])

    @classmethod
    def concatenated(cls, parts: Sequence[Candidates]) -> Candidates:
        """All masks of several sets, in order."""
        return cls(
            torch.cat([part.masks for part in parts]),
            torch.cat([part.predicted_iou for part in parts]),
            torch.cat([part.stability for part in parts]),
        )


def distinct(candidates: Candidates, reference_quirks: bool = False) -> Candidates:
    """The first of every group of equal masks, empty ones left out: many prompts give the same region.

    With ``reference_quirks`` an empty mask stays, as in the reference, whose tile making then fails.
    """
    first: dict[bytes, int] = {}
    packed = np.packbits(candidates.masks.flatten(1).numpy(), axis=1)
    for row in np.flatnonzero(packed.any(1) | reference_quirks).tolist():
        first.setdefault(packed[row].tobytes(), row)
    return candidates[torch.tensor(list(first.values()), dtype=torch.long)]


def mask_boxes(masks: Bool[Tensor, "mask height width"]) -> Int[Tensor, "mask 4"]:
    """Smallest and largest column and row of each mask (x0, y0, x1, y1, ends inclusive); zeros for an empty one."""
    filled = masks.numpy()
    boxes = np.zeros((len(filled), 4), np.int64)
    for axis, lines in ((0, np.any(filled, axis=1)), (1, np.any(filled, axis=2))):
        boxes[:, axis] = lines.argmax(1)
        boxes[:, axis + 2] = lines.shape[1] - 1 - lines[:, ::-1].argmax(1)
    # an empty mask has no first line, which argmax does not tell
    return torch.from_numpy(boxes * np.any(filled, axis=(1, 2))[:, None])


def box_nms(boxes_xyxy: Int[Tensor, "mask 4"], scores: Float[Tensor, " mask"], max_iou: float) -> Int[Tensor, " kept"]:
    """Greedy box suppression, best score first; equal scores keep their order. Returns kept rows, ascending.

    Areas are (x1 - x0) x (y1 - y0), as SAM's generator has them.
    """
    boxes = boxes_xyxy.double().numpy()
    order = np.argsort(-scores.double().numpy(), kind="stable")
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        overlap = np.prod(np.clip(high - low, 0, None), axis=1)
        union = areas[best] + areas[rest] - overlap
        # boxes one pixel wide have no area: they overlap nothing
        iou = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
        order = rest[iou <= max_iou]
    return torch.tensor(sorted(kept), dtype=torch.long)


def without_small_regions(
    mask: Bool[np.ndarray, "height width"], min_region_px: int
) -> Bool[np.ndarray, "height width"]:
    """The mask without islands and holes of fewer pixels (8-connected); the largest island always stays."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return mask
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # a margin of one pixel joins what is outside the mask into one region, which is no hole
    part = np.pad(mask[window], 1)
    holes, n_holes = ndimage.label(~part, structure=np.ones((3, 3)))
    sizes = np.bincount(holes.ravel())
    small = (sizes < min_region_px) & (np.arange(n_holes + 1) != holes[0, 0])
    small[0] = False
    part = part | small[holes]
    islands, n_islands = ndimage.label(part, structure=np.ones((3, 3)))
    if n_islands > 1:
        sizes = np.bincount(islands.ravel())
        sizes[0] = 0
        keep = (sizes >= min_region_px) | (np.arange(n_islands + 1) == sizes.argmax())
        keep[0] = False
        part = keep[islands]
    cleaned = np.zeros_like(mask)
    cleaned[window] = part[1:-1, 1:-1]
    return cleaned


def clean(candidates: Candidates, min_region_px: int, max_box_iou: float) -> Candidates:
    """Box suppression, then islands and holes removed, then box suppression again in which untouched masks go first."""
    thinned = candidates[box_nms(mask_boxes(candidates.masks), candidates.predicted_iou, max_box_iou)]
    if min_region_px <= 0 or not len(thinned.masks):
        return thinned
    cleaned = torch.from_numpy(np.stack([without_small_regions(mask, min_region_px) for mask in thinned.masks.numpy()]))
    untouched = (cleaned == thinned.masks).flatten(1).all(1)
    result = Candidates(cleaned, thinned.predicted_iou, thinned.stability)
    return result[box_nms(mask_boxes(cleaned), untouched.double(), max_box_iou)]


def mask_nms(
    masks: Bool[Tensor, "mask height width"],
    score: Float[Tensor, " mask"],
    max_iou: float = 0.8,
    min_score: float = 0.7,
    inside: float = 0.85,
    covered: float = 0.5,
    reference_quirks: bool = False,
) -> Int[Tensor, " kept"]:
    """Rows that survive mask suppression, in input order (fixture 05); perhaps none.

    A mask stays if its score is above ``min_score``, its IoU with every better-scored mask (kept or not: this is not greedy)
    is at most ``max_iou``, and no other mask holds at least ``inside`` of it while being covered by it by less than
    ``covered``. Equal scores count in input order.

    Raises:
        GagsError: with ``reference_quirks``, when no mask survives: the reference stops there.
    """
    n = len(masks)
    intersection = intersections(masks)
    area = intersection.diagonal()
    union = area[:, None] + area[None] - intersection
    # two empty masks are the same mask
    iou = torch.where(union > 0, intersection / union.clamp(min=1), torch.ones_like(union))
    rank = torch.empty(n, dtype=torch.long)
    rank[torch.argsort(-score, stable=True)] = torch.arange(n)
    better = rank[None] < rank[:, None]
    # ratios and thresholds in float32, as the recorded decisions at the boundaries want it
    duplicate = (better & (iou > torch.tensor(max_iou))).any(1)
    inner_share = intersection / area[:, None].clamp(min=1)
    outer_share = intersection / area[None].clamp(min=1)
    other = ~torch.eye(n, dtype=torch.bool)
    part_of_larger = (other & (inner_share >= torch.tensor(inside)) & (outer_share < torch.tensor(covered))).any(1)
    kept = torch.nonzero((score > min_score) & ~duplicate & ~part_of_larger).flatten()
    if reference_quirks and not len(kept):
        raise GagsError(
            f"mask suppression: expected a mask with a score above {min_score:g}, found none of {n} (as the reference, "
            "this stops); leave --reference-quirks out, and the level is unlabelled"
        )
    return kept


def intersections(masks: Bool[Tensor, "mask height width"]) -> Float[Tensor, "mask mask"]:
    """Pixels that every two masks share."""
    return torch.from_numpy(_intersections(masks.numpy().view(np.uint8), mask_boxes(masks).numpy()))


@numba.njit(cache=True)
def _intersections(
    masks: UInt8[np.ndarray, "mask height width"], boxes: Int[np.ndarray, "mask 4"]
) -> Float[np.ndarray, "mask mask"]:
    """Counted where the boxes of two masks overlap: most masks are small."""
    n = len(masks)
    shared = np.zeros((n, n), np.float32)
    for i in range(n):
        for j in range(i, n):
            x0, y0 = max(boxes[i, 0], boxes[j, 0]), max(boxes[i, 1], boxes[j, 1])
            x1, y1 = min(boxes[i, 2], boxes[j, 2]), min(boxes[i, 3], boxes[j, 3])
            count = 0
            for y in range(y0, y1 + 1):
                for x in range(x0, x1 + 1):
                    count += masks[i, y, x] & masks[j, y, x]
            shared[i, j] = shared[j, i] = count
    return shared


def paint(masks: Bool[Tensor, "mask height width"], first_label: int = 0) -> Int[Tensor, "height width"]:
    """Label map of masks numbered from ``first_label``: later over earlier, -1 where there is none."""
    label_map = torch.full(masks.shape[1:], -1, dtype=torch.int32)
    for i, mask in enumerate(masks):
        label_map[mask] = first_label + i
    return label_map


def assemble(levels: Sequence[Candidates], prompts_xy_px: Float[Tensor, "prompt 2"]) -> ViewMasks:
    """Number the masks of the four label sets (default, s, m, l) through and paint their label maps."""
    offsets = np.cumsum([0] + [len(level.masks) for level in levels])
    pooled = Candidates.concatenated(levels)
    granularity = [torch.full((len(level.masks),), int(g)) for g, level in zip(Granularity, levels, strict=True)]
    return ViewMasks(
        masks=pooled.masks,
        granularity=torch.cat(granularity),
        predicted_iou=pooled.predicted_iou,
        stability=pooled.stability,
        label_maps=torch.stack([paint(level.masks, int(start)) for level, start in zip(levels, offsets, strict=False)]),
        prompts_xy_px=prompts_xy_px,
    )


def view_masks_to_arrays(view: ViewMasks) -> dict[str, Shaped[np.ndarray, ...]]:
    """A view's masks as compact arrays: bits of each mask inside its box."""
    boxes = mask_boxes(view.masks).numpy()
    bits = [
        np.packbits(mask[y0 : y1 + 1, x0 : x1 + 1])
        for mask, (x0, y0, x1, y1) in zip(view.masks.numpy(), boxes, strict=True)
    ]
    return {
        "bits": np.concatenate(bits) if bits else np.zeros(0, np.uint8),
        "boxes": boxes,
        "granularity": view.granularity.numpy(),
        "predicted_iou": view.predicted_iou.numpy(),
        "stability": view.stability.numpy(),
        "label_maps": view.label_maps.numpy(),
        "prompts_xy_px": view.prompts_xy_px.numpy(),
    }


def arrays_to_view_masks(arrays: dict[str, Shaped[np.ndarray, ...]]) -> ViewMasks:
    """The inverse of ``view_masks_to_arrays``."""
    masks = np.zeros((len(arrays["boxes"]), *arrays["label_maps"].shape[1:]), bool)
    start = 0
    for mask, (x0, y0, x1, y1) in zip(masks, arrays["boxes"], strict=True):
        height, width = y1 - y0 + 1, x1 - x0 + 1
        stop = start + (height * width + 7) // 8
        bits = np.unpackbits(arrays["bits"][start:stop], count=height * width)
        mask[y0 : y1 + 1, x0 : x1 + 1] = bits.reshape(height, width)
        start = stop
    tensors = {
        name: torch.from_numpy(arrays[name])
        for name in ("granularity", "predicted_iou", "stability", "label_maps", "prompts_xy_px")
    }
    return ViewMasks(masks=torch.from_numpy(masks), **tensors)
