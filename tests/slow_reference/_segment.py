"""Fixtures 04 to 06: prompts, mask suppression, tiles and label maps."""

from __future__ import annotations

import random

import numpy as np

from slow_reference._shared import Arrays, D, half_precision

# 04


def patch_arrays(depth: np.ndarray, nearest: np.ndarray) -> Arrays:
    """Patches, means, counts and cells of one view."""
    height, width = depth.shape
    w, h = width // 8, height // 8
    boxes = [(i * (width - 1) // 8, j * (height - 1) // 8) for i in range(8) for j in range(8)]
    origins = [(i * (w - 1) // 10, j * (h - 1) // 10) for j in range(10) for i in range(10)]
    means, nearest_means, per_side, counts = [], [], [], []
    for x, y in boxes:
        near = nearest[y : y + h, x : x + w].astype(float)
        means.append(depth[y : y + h, x : x + w].mean(dtype=float))
        nearest_means.append(near[near != 0].mean() if near.any() else np.nan)
        ratio = means[-1] / nearest_means[-1]
        assert not ratio >= 1 or abs(4 * ratio - round(4 * ratio)) > 1e-4, "a count would hang on rounding"
        per_side.append(min(int(4 * ratio), 20) if ratio >= 1 else 1)
        counts.append(
            [np.count_nonzero(near[b : min(b + h // 10, h - 1), a : min(a + w // 10, w - 1)]) for a, b in origins]
        )
    totals = np.array(counts).sum(axis=1, keepdims=True)
    return {
        "patch_box_px": np.array([(x, y, x + w, y + h) for x, y in boxes]),
        "patch_mean_depth": np.array(means),
        "patch_mean_min_depth": np.array(nearest_means),
        "prompts_per_side": np.array(per_side),
        "subcrop_origin_xy": np.array(origins),
        "subcrop_size_wh": np.array([w // 10, h // 10]),
        "subcrop_counts": np.array(counts),
        "subcrop_weights": np.where(totals > 0, counts / np.maximum(totals, 1), 0.01),
    }


def drawn(arrays: Arrays, seed: int) -> Arrays:
    """The reference's draw of a view."""
    twister, points, owners, cells = random.Random(seed), [], [], []
    step_x, step_y = arrays["subcrop_size_wh"].tolist()
    for index, (x0, y0, x1, y1) in enumerate(arrays["patch_box_px"].tolist()):
        count = int(arrays["prompts_per_side"][index]) ** 2
        for cell in twister.choices(range(100), weights=arrays["subcrop_weights"][index].tolist(), k=count):
            a, b = arrays["subcrop_origin_xy"][cell].tolist()
            x = twister.randint(a, min(a + step_x, x1 - x0 - 1))
            y = twister.randint(b, min(b + step_y, y1 - y0 - 1))
            points.append((x0 + x, y0 + y))
            owners.append(index)
            cells.append(cell)
    return {"draw_points_px": np.array(points), "draw_patch": np.array(owners), "draw_subcrop": np.array(cells)}


def prompts_fixture(rng: np.random.Generator) -> Arrays:
    height, width, seed, n_views = 121, 178, 77, 2
    points = np.column_stack([rng.uniform(-2, 2, (2600, 2)), rng.uniform(2, 6, 2600)]).astype(np.float32)
    K = np.array([[150, 0, width / 2], [0, 150, height / 2], [0, 0, 1]], np.float32)
    poses = np.tile(np.eye(4, dtype=np.float32), (n_views, 1, 1))
    poses[1, :3, 3] = (0.3, -0.2, 1.7)
    v, u = np.mgrid[:height, :width]
    depths = np.stack([4 + 0.008 * u + 0.3 * np.sin(v / 9), 4.6 + 0.006 * u]).astype(np.float32)
    depths[0, 20:30, 30:90], depths[1, :16] = 0, 0
    seen, pixels, doubtful = [], [], np.zeros(len(points), bool)
    for pose, depth in zip(poses, depths, strict=True):
        x, y, z = (points.astype(float) @ pose[:3, :3].T.astype(float) + pose[:3, 3]).T
        column, row = 150 * x / z + width / 2, 150 * y / z + height / 2
        doubtful |= (np.abs(column % 1 - 0.5) < 1e-3) | (np.abs(row % 1 - 0.5) < 1e-3)
        column, row = np.rint(column).astype(int), np.rint(row).astype(int)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        there = np.where(inside, depth[np.where(inside, row, 0), np.where(inside, column, 0)].astype(float), 0)
        doubtful |= np.abs(np.abs(there - z) - 0.25 * there) < 1e-4
        seen.append((there > 0) & (np.abs(there - z) <= 0.25 * there))
        pixels.append(np.stack([row, column], axis=1) * seen[-1][:, None])
    points, visible, vu = points[~doubtful], np.array(seen)[:, ~doubtful], np.array(pixels)[:, ~doubtful]
    read = np.array([np.where(s, d[tuple(p.T)], np.inf) for s, d, p in zip(visible, depths, vu, strict=True)])
    nearest, maps = read.min(axis=0), np.zeros_like(depths)
    for view in range(n_views):
        for point in np.flatnonzero(visible[view]):
            maps[view][tuple(vu[view, point])] = nearest[point]
    views = [patch_arrays(depth, sparse) for depth, sparse in zip(depths, maps, strict=True)]
    first = drawn(views[0], seed)
    made_depth = (1 + 20 * rng.random((97, 113))).astype(np.float32)
    made_nearest = np.where(rng.random((97, 113)) < 0.1, 0.9 + rng.random((97, 113)), 0).astype(np.float32)
    made = patch_arrays(made_depth, made_nearest)
    shared = ("patch_box_px", "subcrop_origin_xy", "subcrop_size_wh")
    return {
        **{"points": points, "w2c": poses[:, :3], "K": np.tile(K, (n_views, 1, 1)), "depth_maps": depths},
        **{"pixel_vu": vu, "visible": visible.astype(np.uint8), "pixel_depth": read.astype(np.float32)},
        **{"point_min_depth": nearest.astype(np.float32), "min_depth_maps": maps, "draw_seed": np.array(seed)},
        **{"patches_per_side": np.array(8), "occlusion_tolerance": np.array(0.25)},
        **{"min_prompts_per_side": np.array(4), "max_prompts_per_side": np.array(20)},
        **{key: views[0][key] if key in shared else np.stack([view[key] for view in views]) for key in views[0]},
        **first,
        "prompts_count": np.stack([view["prompts_per_side"] for view in views]) ** 2,
        "patch_box_norm": views[0]["patch_box_px"] / np.array([width, height, width, height]),
        "draw_points_norm": first["draw_points_px"] / np.array([width, height]),
        **{"syn_depth_map": made_depth, "syn_min_depth_map": made_nearest},
        **{f"syn_{key}": value for key, value in (made | drawn(made, seed)).items()},
    }


# 05 and 06


def surviving(masks: np.ndarray, score: np.ndarray) -> np.ndarray:
    masks, kept = masks > 0, []
    for i in range(len(masks)):
        alive = score[i] > 0.7
        for j in range(len(masks)):
            if i != j:
                shared = np.float32((masks[i] & masks[j]).sum())
                either, own, other = (np.float32(m.sum()) for m in (masks[i] | masks[j], masks[i], masks[j]))
                better = score[j] > score[i] or (score[j] == score[i] and j < i)
                # two empty masks are one and the same; an empty mask is no part of another
                alive &= not (better and (shared / either if either else np.float32(1)) > np.float32(0.8))
                inner, outer = (shared / part if part else np.float32(0) for part in (own, other))
                alive &= not (inner >= np.float32(0.85) and outer < np.float32(0.5))
        if alive:
            kept.append(i)
    return np.array(kept, int)


def boxes_of(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    masks = np.zeros((count, height, width), np.uint8)
    for mask in masks:
        x, y, w, h = rng.integers((0, 0, 6, 5), (width - 12, height - 12, width // 2, height // 2))
        mask[y : y + h, x : x + w] = rng.random(mask[y : y + h, x : x + w].shape) < 0.95
    return masks


def nms_fixture(rng: np.random.Generator) -> Arrays:
    cases = {"some": boxes_of(rng, 13, 41, 53), "near": boxes_of(rng, 3, 41, 53).repeat(3, axis=0)}
    cases["near"][1::3] &= (rng.random((3, 41, 53)) < 0.97).astype(np.uint8)
    cases["empties"] = np.concatenate([np.zeros((2, 41, 53), np.uint8), boxes_of(rng, 2, 41, 53)])
    arrays: Arrays = {"case_names": np.array(list(cases))}
    for name, masks in cases.items():
        iou, stability = rng.uniform(0.8, 1, (2, len(masks)))
        score = iou * stability
        kept = surviving(masks, score)
        arrays |= {f"{name}_masks": masks, f"{name}_predicted_iou": iou, f"{name}_stability": stability}
        arrays |= {f"{name}_score": score, f"{name}_kept_input_order": kept}
        arrays[f"{name}_kept_by_score"] = kept[np.argsort(-score[kept], kind="stable")]
    return arrays | {"iou_threshold": np.array(np.float32(0.8)), "score_threshold": np.array(np.float32(0.7))}


def square_of(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y, w, h = columns[0], rows[0], columns[-1] - columns[0], rows[-1] - rows[0]
    crop = (image * mask[..., None])[y : y + h, x : x + w]
    square = np.zeros((max(w, h), max(w, h), 3), np.uint8)
    top, left = (max(w, h) - h) // 2, (max(w, h) - w) // 2
    square[top : top + h, left : left + w] = crop
    return square, (x, y, w, h)


def tile_of(square: np.ndarray, size: int) -> np.ndarray:
    side = len(square)
    place = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
    low = place.astype(int)
    high, share = np.minimum(low + 1, side - 1), place - low
    rows = square[low] * (1 - share)[:, None, None] + square[high] * share[:, None, None]
    tile = rows[:, low] * (1 - share)[:, None] + rows[:, high] * share[:, None]
    return np.rint(tile).astype(np.uint8).transpose(2, 0, 1)


def tiles_fixture(rng: np.random.Generator) -> Arrays:
    height, width, size, levels = 47, 64, 36, ("default", "s", "m", "l")
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    arrays: Arrays = {"image_rgb": image, "level_names": np.array(levels)}
    squares, maps, counts = [], [], []
    for level, count in zip(levels, (6, 5, 3, 2), strict=True):
        masks = boxes_of(rng, count, height, width)
        iou, stability = rng.uniform(0.9, 1, (2, count))
        kept = surviving(masks, iou * stability)
        segmap = np.full((height, width), -1, np.int32)
        for label, row in enumerate(kept):
            segmap[masks[row] > 0] = label
        maps.append(np.where(segmap < 0, -1, segmap + sum(counts)))
        counts.append(len(kept))
        found = [square_of(image, mask) for mask in masks]
        squares += [found[row][0] for row in kept]
        arrays |= {f"{level}_masks": masks, f"{level}_predicted_iou": iou, f"{level}_stability": stability}
        arrays |= {f"{level}_kept": kept, f"{level}_segmap": segmap}
        arrays[f"{level}_boxes_xywh"] = np.array([box for _, box in found])
    raw = rng.normal(size=(sum(counts), D)).astype(np.float16)
    chosen = np.arange(0, sum(counts), 2)
    down = rng.integers(0, 256, (71, 71, 3)).astype(np.uint8)
    return arrays | {
        **{"level_counts": np.array(counts), "level_offsets": np.cumsum([0, *counts[:-1]])},
        **{"seg_maps": np.stack(maps).astype(np.float32), "raw_embeds": raw},
        "feature": half_precision(raw / np.linalg.norm(raw.astype(float), axis=1, keepdims=True)),
        **{f"square_{row:02d}": squares[row] for row in chosen},
        **{"tiles_u8": np.stack([tile_of(squares[row], size) for row in chosen]), "tile_global_index": chosen},
        **{"down_square": down, "down_tile_u8": tile_of(down, size)},
    }
