"""Fixtures 01 to 03 and 10: relevancy, what is made of it in pictures and in 3D, labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from slow_reference._distill import decode
from slow_reference._shared import WIDTH_LOW, Arrays, D, half_precision, unit

# 01


def probabilities(
    embeddings: np.ndarray, positive: np.ndarray, negatives: np.ndarray, temperature: float
) -> np.ndarray:
    """Of the phrase and of the negative that leaves it least, for each embedding."""
    pairs = []
    for negative in negatives:
        weights = np.exp(temperature * np.stack([embeddings @ positive, embeddings @ negative], axis=-1))
        pairs.append(weights / weights.sum(axis=-1, keepdims=True))
    return np.take_along_axis(np.array(pairs), np.argmin(np.array(pairs)[..., :1], axis=0)[None], axis=0)[0]


def relevancy_fixture(rng: np.random.Generator) -> Arrays:
    embeddings = unit(rng, 35, D).astype(np.float32)
    positives, negatives = half_precision(unit(rng, 2, D)), half_precision(unit(rng, 3, D))
    pairs = np.array([probabilities(embeddings.astype(float), p, negatives.astype(float), 7.0) for p in positives])
    return {
        **{"embeds": embeddings, "pos_embeds": positives, "neg_embeds": negatives, "temperature": np.array(7.0)},
        **{"prob_pair": pairs.astype(np.float32), "relevancy": pairs[..., 0].astype(np.float32)},
        **{"map_hw": np.array([5, 7]), "relevancy_map": pairs[None, ..., 0].reshape(1, 2, 5, 7).astype(np.float32)},
    }


# 02


def mirrored(index: int, size: int) -> int:
    while not 0 <= index < size:
        index = -index if index < 0 else 2 * (size - 1) - index
    return index


def mean_filtered(image: np.ndarray, kernel: int) -> np.ndarray:
    height, width = image.shape
    result = np.zeros((height, width))
    for v in range(height):
        rows = [mirrored(v + i, height) for i in range(-(kernel // 2), kernel - kernel // 2)]
        for u in range(width):
            columns = [mirrored(u + i, width) for i in range(-(kernel // 2), kernel - kernel // 2)]
            result[v, u] = image[np.ix_(rows, columns)].mean()
    return result


def majority(mask: np.ndarray, radius: int) -> np.ndarray:
    height, width = mask.shape
    result = np.zeros((height, width), np.uint8)
    for v in range(height):
        for u in range(width):
            # the last row and column are never read
            window = mask[
                max(v - radius, 0) : min(v + radius + 1, height - 1),
                max(u - radius, 0) : min(u + radius + 1, width - 1),
            ]
            result[v, u] = 2 * window.sum() > window.size
    return result


def stretched(values: np.ndarray) -> np.ndarray:
    shifted = values - values.min()
    return np.clip(2 * shifted / (shifted.max() + 1e-9) - 1, 0, 1)


def chain(image: np.ndarray, kernel: int, threshold: float, radius: int) -> Arrays:
    filtered = mean_filtered(image.astype(float), kernel)
    blended = (image + filtered) / 2
    heat = stretched(blended)
    assert np.abs(heat - threshold).min() > 1e-5, "a pixel's side of the threshold would hang on rounding"
    raw = (heat > threshold).astype(np.uint8)
    arrays = {"relevancy": image, "mean_filtered": filtered, "blended": blended, "heat": heat}
    return {key: value.astype(np.float32) for key, value in arrays.items()} | {
        "mask_thresholded": raw,
        "mask_majority": majority(raw, radius),
    }


def bump(rng: np.random.Generator, height: int, width: int, x: float, y: float) -> np.ndarray:
    v, u = np.mgrid[:height, :width]
    wave = 0.3 + 0.5 * np.exp(-((u - x) ** 2 + (v - y) ** 2) / 60) + 0.05 * rng.random((height, width))
    return wave.astype(np.float32)


def postprocess_fixture(rng: np.random.Generator) -> Arrays:
    height, width, kernel, radius, threshold = 43, 58, 8, 2, np.float32(0.45)
    chains = [
        chain(bump(rng, height, width, x, y), kernel, float(threshold), radius)
        for x, y in ((20, 15), (40, 30), (30, 22))
    ]
    main = {key: np.stack([each[key] for each in chains]) for key in chains[0]}
    truth = np.zeros((3, height, width), np.uint8)
    truth[0, 8:24, 12:30], truth[1, 20:36, 38:50] = 1, 1
    predicted = main["mask_majority"] > 0
    both, either = (predicted & (truth > 0)).sum(axis=(1, 2)), (predicted | (truth > 0)).sum(axis=(1, 2))
    peaks = [np.argwhere(each["mean_filtered"] == each["mean_filtered"].max())[:, ::-1] for each in chains]
    x, y = peaks[0][0]
    boxes = np.array([[x, y, x, y], [0, 0, 5, 5], [50, 40, 35, 25], [0.5, 0.5, 3, 2]], np.float32)
    hits = [True, True, False]
    owner = np.array([0, 1, 1, 2])
    bits = rng.integers(0, 2, (23, 18)).astype(np.uint8)
    bits[-1], bits[:, -1] = 1, 1
    return {
        **main,
        **{
            f"small_{key}": value
            for key, value in chain(bump(rng, 7, 11, 5, 3), kernel, float(threshold), radius).items()
        },
        **{"kernel_size": np.array(kernel), "majority_radius": np.array(radius), "threshold": np.array(threshold)},
        **{"gt_masks": truth, "intersection": both, "union": either, "iou": both / either},
        **{"peak_xy": np.array([peak[0] for peak in peaks]), "peak_count": np.array([len(peak) for peak in peaks])},
        **{"boxes_xyxy": boxes, "box_phrase": owner, "hit": np.array(hits, np.uint8)},
        **{"majority_in": bits, "majority_out": majority(bits, radius)},
    }


# 03


def labels_fixture(folder: Path) -> Arrays:
    folder.mkdir(parents=True)
    height, width = 57, 83
    files = {
        "frame_00002": [("mug", [[5.9, 6.2], [40.7, 8.1], [33.3, 44.9]]), ("hairline", [[50.2, 9.9], [70.8, 31.4]])],
        "frame_00009": [
            ("lamp", [[10, 10], [30, 10], [30, 30], [10, 30]]),
            ("mug", [[-0.9, 40.5], [35.2, 37.1], [30.1, 55.8]]),
            ("lamp", [[45, 12], [80.6, 15.2], [70.3, 50.5]]),
        ],
    }
    arrays: Arrays = {"image_hw": np.array([height, width])}
    for index, (name, objects) in enumerate(files.items()):
        categories = list(dict.fromkeys(category for category, _ in objects))
        masks = np.zeros((len(categories), height, width), np.uint8)
        boxes, entries = [], []
        for category, polygon in objects:
            picture = Image.new("L", (width, height))
            vertices = [(int(x), int(y)) for x, y in polygon]
            ImageDraw.Draw(picture).polygon(vertices, fill=1, outline=1)
            masks[categories.index(category)] |= np.asarray(picture)
            x, y = np.array(polygon).T
            box = [float(value) for value in (x.max(), y.min(), x.min(), y.max())]
            boxes.append((categories.index(category), box))
            entries.append({"category": category, "segmentation": polygon, "bbox": box})
        boxes.sort(key=lambda pair: pair[0])
        info = {"name": f"{name}.jpg", "width": width, "height": height}
        (folder / f"{name}.json").write_text(json.dumps({"info": info, "objects": entries}))
        arrays |= {
            f"f{index}_categories": np.array(categories),
            f"f{index}_masks": masks,
            f"f{index}_masks_opencv5": masks,
        }
        arrays[f"f{index}_boxes_xyxy"] = np.array([box for _, box in boxes])
        arrays[f"f{index}_box_category"] = np.array([row for row, _ in boxes])
    names = list(files)
    return arrays | {
        "frame_files": np.array([f"{name}.json" for name in names]),
        "frame_keys": np.array([str(int(name[-5:]) - 1) for name in names]),
    }


# 10


def smoothed(xyz: np.ndarray, raw: np.ndarray, radius: float, threshold: int) -> tuple[np.ndarray, np.ndarray]:
    distance = np.linalg.norm(xyz[:, None].astype(float) - xyz[None].astype(float), axis=-1)
    assert np.abs(distance - radius).min() > 1e-6, "a neighbour would hang on rounding"
    counts = raw.astype(int) @ (distance <= radius)
    return np.where(counts > threshold, 1, np.where(counts < 10, 0, raw)).astype(np.uint8), counts.astype(np.int32)


def query3d_fixture(rng: np.random.Generator, decoder: Arrays) -> Arrays:
    count, threshold = 700, np.float32(0.35)
    xyz = (rng.normal(size=(count, 3)) * 0.2).astype(np.float32)
    # Features change slowly in space, so that what is selected hangs together.
    semantic = (np.sin(3 * xyz @ rng.normal(size=(3, WIDTH_LOW))) + 0.05 * rng.normal(size=(count, WIDTH_LOW))).astype(
        np.float32
    )
    decoded = decode(decoder, torch.from_numpy(semantic.T).double())["y"].numpy().T
    # What a random decoder makes of any feature is much alike: phrases lie along what sets two Gaussians apart.
    apart = decoded[[5, 300]] - decoded.mean(axis=0)
    positives = half_precision(apart / np.linalg.norm(apart, axis=1, keepdims=True))
    negatives = half_precision(unit(rng, 3, D))
    relevancy = np.array(
        [probabilities(decoded, p.astype(float), negatives.astype(float), 10.0)[:, 0] for p in positives]
    )
    sure = (np.abs(np.array([stretched(row) for row in relevancy]) - threshold) > 1e-4).all(axis=0)
    extreme = np.concatenate([relevancy.argmin(axis=1), relevancy.argmax(axis=1)])
    assert sure[extreme].all()
    xyz, semantic, relevancy = xyz[sure], semantic[sure], relevancy[:, sure]
    heat = np.array([stretched(row) for row in relevancy])
    raw = (heat > threshold).astype(np.uint8)
    settings = {"": (0.15, 20), "_default": (0.1, 15), "_low": (0.12, 5)}
    arrays: Arrays = {}
    for name, (radius, votes) in settings.items():
        arrays[f"mask_smoothed{name}"], counts = smoothed(xyz, raw, radius, votes)
        if name:
            arrays[f"smooth{name}_radius_threshold"] = np.array([radius, votes])
        else:
            arrays |= {
                "neighbour_count": counts,
                "smooth_radius": np.array(radius),
                "smooth_threshold": np.array(votes),
            }
    return arrays | {
        **{"xyz": xyz, "semantic": semantic, "pos_embeds": positives, "neg_embeds": negatives, "mask_raw": raw},
        **{"relevancy": relevancy.astype(np.float32), "relevancy_normalised": heat.astype(np.float32)},
        **{"threshold": np.array(threshold), "lower_count": np.array(10)},
    }
