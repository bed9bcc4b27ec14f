"""Ground truth in LERF-OVS form: a JSON a frame, with polygons, boxes and categories."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gags.errors import GagsError

_MAX_COORDINATE_PX = 1_000_000


@dataclass(frozen=True)
class Label:
    """All instances of one category in one frame."""

    category: str
    """What it is called: the phrase to query."""
    mask: Bool[Tensor, "height width"]
    """Union of the instances' polygons, outlines included."""
    boxes_xyxy_px: Float[Tensor, "box 4"]
    """Boxes as written in the file (float64), one an instance; corners may come in either order."""


@dataclass(frozen=True)
class FrameLabels:
    """The labels of one image."""

    path: Path
    """The label file."""
    image_name: str
    """Exact file name of the image."""
    width: int
    """Image width in pixels at which it was labelled."""
    height: int
    """Image height in pixels at which it was labelled."""
    labels: tuple[Label, ...]
    """By category, in order of first appearance."""


@dataclass(frozen=True)
class Labels:
    """The labelled frames of a scene."""

    frames: tuple[FrameLabels, ...]
    """Sorted by label file name."""

    @property
    def image_names(self) -> tuple[str, ...]:
        """The labelled images."""
        return tuple(frame.image_name for frame in self.frames)

    @property
    def phrases(self) -> tuple[str, ...]:
        """Every category once, in order of first appearance."""
        return tuple(dict.fromkeys(label.category for frame in self.frames for label in frame.labels))


def load_labels(folder: Path) -> Labels:
    """Read every ``*.json`` of a folder; other files (images, a README) are passed over.

    Raises:
        GagsError: no such folder, no label file in it, two files for one image, or a malformed file.
    """
    if not folder.is_dir():
        raise GagsError(f"labels {folder}: expected a folder with a JSON file a frame, found none; check --labels")
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    if not paths:
        raise GagsError(f"labels {folder}: expected LERF-OVS labels (*.json), found none; check --labels")
    frames = tuple(read_frame(path) for path in paths)
    by_image: dict[str, Path] = {}
    for frame in frames:
        other = by_image.setdefault(frame.image_name, frame.path)
        if other is not frame.path:
            raise GagsError(
                f"{frame.path}: expected one label file an image, found {other.name} for {frame.image_name} as well; "
                "remove one of them"
            )
    return Labels(frames)


def reference_labels(labels: Labels, training_names: Sequence[str]) -> Labels:
    """The labels as the reference implementation reads them: which image, and at which size (fixture 03).

    A frame's image is the one at position (number at the end of the image name) - 1 of the sorted training images,
    which is the right one only where those are numbered 1, 2, 3 and so on; every frame has the size of the last file.

    Raises:
        GagsError: an image name without a number, or with one that no training image has.
    """
    last, ordered = labels.frames[-1], sorted(training_names)
    frames = []
    for frame in labels.frames:
        key = reference_key(frame)
        if not 0 <= key < len(ordered):
            raise GagsError(
                f"{frame.path}: expected a number of 1 to {len(ordered)} at the end of the image name, found "
                f"{frame.image_name!r} (the reference finds images by number); leave --reference-quirks out"
            )
        redrawn = read_frame(frame.path, (last.width, last.height))
        frames.append(dataclasses.replace(redrawn, image_name=ordered[key]))
    return Labels(tuple(frames))


def reference_key(frame: FrameLabels) -> int:
    """The reference's position of a frame's image: the number at the end of its name, minus one; -1 without a number."""
    number = re.search(r"(\d+)$", Path(frame.image_name).stem)
    return int(number[1]) - 1 if number else -1


def read_frame(path: Path, size: tuple[int, int] | None = None) -> FrameLabels:
    """Read one label file, its masks at ``size`` (width, height) or at that of the file.

    Raises:
        GagsError: the file is not of the form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise GagsError(f"{path}: expected a LERF-OVS label file, found no readable JSON ({error})") from error
    try:
        info = content["info"]
        name, (width, height) = str(info["name"]), size or (int(info["width"]), int(info["height"]))
        if min(width, height) < 1:
            raise ValueError(f"a size of {width} x {height}")
        masks: dict[str, np.ndarray] = {}
        boxes: dict[str, list[list[float]]] = {}
        for entry in content["objects"]:
            polygons, category = _polygons(entry["segmentation"]), str(entry["category"])
            mask = masks.setdefault(category, np.zeros((height, width), dtype=bool))
            for polygon in polygons:
                # Truncated towards zero, as in the reference implementation; results change without it.
                fill_polygon(mask, np.trunc(polygon).astype(np.int64))
            boxes.setdefault(category, []).append(_box(entry.get("bbox"), polygons))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise GagsError(
            f"{path}: expected info (name, width, height) and objects (category, segmentation), "
            f"found {type(error).__name__}: {error}; correct the file or take it out of the folder"
        ) from error
    labels = tuple(
        Label(category, torch.from_numpy(mask), torch.tensor(boxes[category], dtype=torch.float64))
        for category, mask in masks.items()
    )
    return FrameLabels(path, name, width, height, labels)


def moved_frame(frame: FrameLabels, xy_px: Float[Tensor, "height width 2"]) -> FrameLabels:
    """The labels in another picture of the same place, whose pixels lie at ``xy_px`` (centres at +0.5) in the labelled one.

    Masks move pixel by pixel; a box becomes that of its pixels. Labels that no pixel shows are left out.
    """
    index_xy = xy_px.floor().long()
    size = torch.tensor([frame.width, frame.height])
    inside = ((index_xy >= 0) & (index_xy < size)).all(dim=-1)
    columns, rows = torch.where(inside[..., None], index_xy, 0).unbind(dim=-1)
    labels = []
    for label in frame.labels:
        mask = label.mask[rows, columns] & inside
        corners = label.boxes_xyxy_px.unflatten(1, (2, 2))
        low, high = corners.amin(dim=1), corners.amax(dim=1)
        boxed = ((index_xy >= low[:, None, None]) & (index_xy <= high[:, None, None])).all(dim=-1)
        pixels = [box.nonzero().flip(1) for box in boxed if box.any()]
        boxes = [torch.cat([xy.amin(dim=0), xy.amax(dim=0)]).double() for xy in pixels]
        if mask.any():
            labels.append(Label(label.category, mask, torch.stack(boxes) if boxes else torch.zeros(0, 4).double()))
    height, width = inside.shape
    return dataclasses.replace(frame, width=width, height=height, labels=tuple(labels))


def _polygons(segmentation: Any) -> list[np.ndarray]:
    """The polygons of an object, float64 [n, 2] each: one list of x y pairs, or several."""
    several = bool(segmentation) and isinstance(segmentation[0][0], list)
    polygons = [np.array(points, dtype=np.float64) for points in (segmentation if several else [segmentation])]
    for polygon in polygons:
        if polygon.ndim != 2 or polygon.shape[1] != 2:
            raise ValueError(f"a polygon that is no list of x y pairs: {str(segmentation)[:60]}")
        if not (np.abs(polygon) < _MAX_COORDINATE_PX).all():
            raise ValueError(f"a polygon with coordinates up to {np.abs(polygon).max()}")
    return polygons


def _box(box: Any, polygons: list[np.ndarray]) -> list[float]:
    """The object's box as written, or around its polygons when there is none."""
    if not box:
        points = np.concatenate(polygons)
        return [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
    values = [float(value) for value in box]
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise ValueError(f"a bbox that is no x1 y1 x2 y2: {box}")
    return values


def fill_polygon(mask: Bool[np.ndarray, "height width"], polygon: np.ndarray) -> None:
    """Set, in place, the pixels inside a polygon of integer vertices [n, 2] (x, y) and those on its outline.

    Inside is by the even-odd rule; the outline is 8-connected; what is outside the image is cut off. Two points make a
    line. On the fixtures this sets the pixels that OpenCV 5 sets, but for a few where an edge leaves the image.
    """
    height, width = mask.shape
    starts, stops = polygon, np.roll(polygon, -1, axis=0)
    for edge in zip(starts.tolist(), stops.tolist(), strict=True):
        # Always from the left: halves are rounded towards the start, and so the same way whatever the winding.
        (x0, y0), (x1, y1) = sorted(edge, key=lambda vertex: vertex[0])
        steps = max(abs(x1 - x0), abs(y1 - y0))
        along = np.arange(steps + 1)
        xs, ys = (_rounded(start, stop, along, steps) for start, stop in ((x0, x1), (y0, y1)))
        seen = (xs >= 0) & (xs < width) & (ys >= 0) & (ys < height)
        mask[ys[seen], xs[seen]] = True

    first, last = max(int(polygon[:, 1].min()), 0), min(int(polygon[:, 1].max()), height - 1)
    # An edge counts for the rows from its upper end up to, not including, its lower end: each crossing once.
    low, high = np.minimum(starts[:, 1], stops[:, 1]), np.maximum(starts[:, 1], stops[:, 1])
    for y in range(first, last + 1):
        crossed = (low <= y) & (y < high)
        (x0, y0), (x1, y1) = starts[crossed].T, stops[crossed].T
        crossings = np.sort(x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        for left, right in zip(crossings[::2], crossings[1::2], strict=True):
            mask[y, max(math.ceil(left), 0) : max(math.floor(right) + 1, 0)] = True


def _rounded(start: int, stop: int, along: np.ndarray, steps: int) -> np.ndarray:
    """``steps + 1`` integers from start to stop, nearest to evenly spaced; halves go towards the start."""
    distance = abs(stop - start)
    return start + np.sign(stop - start) * ((2 * along * distance + steps - 1) // max(2 * steps, 1))
