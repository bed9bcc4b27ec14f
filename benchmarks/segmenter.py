"""How good the built-in segmenter's masks are on labelled photographs: the best mask for each labelled object.

    python benchmarks/segmenter.py --scenes-dir ../shared/scenes [--max-side 404] [--pictures DIR]

Prints a table and writes JSON: per category the oracle IoU (the best of a view's masks, over the three levels, against the label),
and per view the masks, how much of it is labelled on all three levels, and CPU seconds. The photographs are segmented without
rendered depth, with 16 prompts a patch. ``--pictures`` writes the label maps of the three levels as PNGs to look at.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from gags.evaluate import FrameLabels, load_labels
from gags.geometry import Camera
from gags.images import read_image, resize_image, write_image
from gags.segment import (
    LEVELS,
    HierarchySegmenter,
    PreparedImage,
    SegmentConfig,
    Segmenter,
    ViewMasks,
    segment_view,
)


def small_mask(mask: Bool[Tensor, "height width"], width: int, height: int) -> Bool[Tensor, "small_height small_width"]:
    """The label at the segmented size: pixels of which it covers more than half."""
    return functional.interpolate(mask[None, None].float(), size=(height, width), mode="area")[0, 0] > 0.5


def ious(masks: Bool[Tensor, "mask height width"], target: Bool[Tensor, "height width"]) -> Float[Tensor, " mask"]:
    """IoU of each mask with the target."""
    shared = (masks & target).flatten(1).sum(1)
    return shared / (masks | target).flatten(1).sum(1)


def colored(label_map: Int[Tensor, "height width"]) -> UInt8[Tensor, "height width 3"]:
    """A random colour a label, black where unlabelled."""
    palette = np.random.default_rng(1).integers(48, 255, (int(label_map.max()) + 2, 3), dtype=np.uint8)
    return torch.from_numpy(np.where(label_map[..., None] >= 0, palette[label_map.clamp(min=0)], np.uint8(0)))


def measure_view(
    frame: FrameLabels, photo: Path, segmenter: Segmenter, max_side: int, index: int
) -> tuple[dict, ViewMasks]:
    """Oracle IoU by category and figures of one labelled view."""
    camera = Camera(torch.eye(4), 1.0, 1.0, 0.0, 0.0, frame.width, frame.height).limited(max_side)
    image = resize_image(read_image(photo), camera.width, camera.height)
    # Depth and nearest depth equal everywhere: each patch gets the 16 prompts of a surface seen from near.
    everywhere = torch.ones(camera.height, camera.width)
    config = SegmentConfig(max_side_px=max_side)
    start = time.process_time()
    masks = segment_view(image, everywhere, everywhere, WithoutDepth(segmenter), config, index)
    seconds = time.process_time() - start
    of_levels = masks.masks[masks.granularity > 0]
    found = {}
    for label in frame.labels:
        best = ious(of_levels, small_mask(label.mask, camera.width, camera.height))
        found[label.category] = float(best.max()) if len(best) else 0.0
    figures = {
        "cpu_s": seconds,
        "masks": {level.name.lower(): int((masks.granularity == level).sum()) for level in LEVELS},
        "labelled_on_all_levels": float((masks.label_maps[1:] >= 0).all(0).float().mean()),
        "oracle_iou": found,
    }
    return figures, masks


class WithoutDepth:
    """A segmenter that is not shown the depth."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.name = segmenter.name
        self._segmenter = segmenter

    def prepare(
        self, image: UInt8[Tensor, "height width 3"], depth: Float[Tensor, "height width"] | None
    ) -> PreparedImage:
        return self._segmenter.prepare(image, None)


def report(views: dict[str, dict]) -> dict[str, float]:
    """Print the tables; the mean oracle IoU by category and in total over (view, category) pairs."""
    by_category: dict[str, list[float]] = defaultdict(list)
    print(f"{'view':16}{'CPU s':>7}{'s':>5}{'m':>5}{'l':>5}{'labelled':>10}{'oracle IoU':>12}")
    for name, figures in views.items():
        oracle = figures["oracle_iou"]
        masks = "".join(f"{count:5d}" for count in figures["masks"].values())
        mean = statistics.mean(oracle.values())
        print(f"{name:16}{figures['cpu_s']:7.2f}{masks}{figures['labelled_on_all_levels']:10.2f}{mean:12.3f}")
        for category, iou in oracle.items():
            by_category[category].append(iou)
    print()
    for category, values in sorted(by_category.items()):
        print(f"{category:24}{statistics.mean(values):6.3f}   " + " ".join(f"{value:.2f}" for value in values))
    result = {category: statistics.mean(values) for category, values in sorted(by_category.items())}
    result["all"] = statistics.mean(value for values in by_category.values() for value in values)
    print(f"{'all':24}{result['all']:6.3f}")
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--max-side", type=int, default=404)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    folder = options.scenes_dir / "bonsai"
    segmenter = HierarchySegmenter()
    views = {}
    for index, frame in enumerate(load_labels(folder / "labels").frames):
        photo = folder / "images" / frame.image_name
        views[frame.image_name], masks = measure_view(frame, photo, segmenter, options.max_side, index)
        if options.pictures is not None:
            options.pictures.mkdir(parents=True, exist_ok=True)
            image = resize_image(read_image(photo), masks.masks.shape[2], masks.masks.shape[1])
            maps = [colored(masks.label_maps[level]) for level in LEVELS]
            write_image(options.pictures / f"{photo.stem}.png", torch.cat([image, *maps], dim=1))
    oracle = report(views)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    versions = {name: version(name) for name in ("higra", "numpy", "scikit-image", "torch")}
    versions["python"] = platform.python_version()
    found = {"segmenter": segmenter.name, "max_side_px": options.max_side, "oracle_iou": oracle, "views": views}
    options.out.write_text(json.dumps({"machine": machine, "versions": versions, **found}, indent=1) + "\n")
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
