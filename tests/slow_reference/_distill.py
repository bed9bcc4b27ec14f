"""Fixtures 07 to 09: targets, losses and decoders, gradients by torch in float64."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from slow_reference._shared import WIDTH_LOW, Arrays, D, unit

# 07 and 08


def label_maps(rng: np.random.Generator, height: int, width: int, counts: tuple[int, ...]) -> np.ndarray:
    """Four label maps of rectangles, numbered through."""
    maps, first = np.full((4, height, width), -1), 0
    for level, count in enumerate(counts):
        for label in range(first, first + count):
            x, y, w, h = rng.integers((0, 0, 5, 5), (width - 5, height - 5, width, height))
            maps[level, y : y + h, x : x + w] = label
        first += count
    return maps.astype(np.float32)


def softmax(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    weights = np.exp(rng.normal(size=(3, height, width)))
    return (weights / weights.sum(axis=0)).astype(np.float32)


def resized_nearest(image: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = (np.arange(new) * old // new for new, old in zip((height, width), image.shape[1:], strict=True))
    return image[:, rows[:, None], columns]


def resized_corners(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, corners aligned; [channel, height, width]."""
    for axis, new in ((1, height), (2, width)):
        old = image.shape[axis]
        place = np.arange(new) * (old - 1) / (new - 1)
        low = np.minimum(place.astype(int), old - 2)
        share = (place - low).reshape([-1 if i == axis else 1 for i in range(3)])
        image = np.take(image, low, axis) * (1 - share) + np.take(image, low + 1, axis) * share
    return image


def target(maps: np.ndarray, table: np.ndarray, weights: np.ndarray, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """(features [channel, height, width], mask [1, height, width]) of label maps s, m, l; -1 reads the last row."""
    height, width = weights.shape[1:]
    maps = maps.astype(int)
    levels = [table.astype(float)[level].transpose(2, 0, 1) for level in maps]
    if maps.shape[1:] != (height, width):
        levels = [resized_corners(level, height, width) for level in levels]
    small, weights = resized_nearest(maps, height, width), weights.astype(float)
    if mode == "hard":
        weights = (weights.argmax(axis=0) == np.arange(3)[:, None, None]) * (small >= 0)
    if mode == "median":
        for label in np.unique(small[0][small[0] >= 0]):
            inside = small[0] == label
            middle = np.sort(weights[:, inside], axis=1)[:, (inside.sum() - 1) // 2]
            weights[:, inside] = (middle / middle.sum())[:, None]
    features = sum(weight * level for weight, level in zip(weights, levels, strict=True))
    mask = features[0] != 0 if mode == "hard" else (small >= 0).all(axis=0)
    return features.astype(np.float32), mask[None].astype(np.uint8)


def target_fixture(rng: np.random.Generator) -> Arrays:
    height, width, counts = 25, 33, (3, 6, 5, 4)
    maps, table = label_maps(rng, height, width, counts), unit(rng, sum(counts), 19).astype(np.float32)
    table[[4, 10], 0] = 0
    arrays: Arrays = {"seg_map": maps, "img_embed": table, "half_seg_map": resized_nearest(maps, 12, 16)}
    for size, shape in (("same", (height, width)), ("resized", (17, 21))):
        weights = arrays[f"{size}_scale_map"] = softmax(rng, *shape)
        for mode in ("soft", "hard", "median"):
            arrays[f"{size}_{mode}_feature"], arrays[f"{size}_{mode}_mask"] = target(maps[1:], table, weights, mode)
    upstream = arrays["same_soft_upstream"] = rng.normal(size=(19, height, width)).astype(np.float32)
    features = table[maps[1:].astype(int)].astype(float)
    arrays["same_soft_grad_scale_map"] = np.einsum("lhwc,chw->lhw", features, upstream).astype(np.float32)
    return arrays


def mixed_labels(maps: np.ndarray, weights: np.ndarray) -> np.ndarray:
    height, width = weights.shape[1:]
    padded, mixed = np.pad(weights.astype(float), ((0, 0), (2, 2), (2, 2))), np.zeros((height, width))
    for v in range(height):
        for u in range(width):
            smooth = padded[:, v : v + 5, u : u + 5].sum(axis=(1, 2)) / 25
            mixed[v, u] = maps[smooth.argmax(), v, u]
    return mixed.astype(np.float32)


def balanced(values: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
    return torch.stack(
        [values[torch.from_numpy(labels == label)].mean() for label in np.unique(labels[labels >= 0])]
    ).mean()


def variance(features: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
    total = features.new_zeros(())
    for label in np.unique(labels[labels >= 0]):
        inside = features[:, torch.from_numpy(labels == label)]
        if inside.shape[1] > 1:
            total = total + inside.var(dim=1).mean() * inside.shape[1]
    return total / labels.size


def entropy(weights: torch.Tensor) -> torch.Tensor:
    return -(weights * (weights + 1e-6).log()).mean()


def leaf(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).double().requires_grad_()


def gradient(value: torch.Tensor, *leaves: torch.Tensor) -> list[np.ndarray]:
    return [grad.numpy().astype(np.float32) for grad in torch.autograd.grad(value, leaves, retain_graph=True)]


def losses_fixture(rng: np.random.Generator) -> Arrays:
    height, width, counts, channels = 21, 27, (2, 7, 5, 3), 9
    maps, weights = label_maps(rng, height, width, counts), softmax(rng, height, width)
    table = unit(rng, sum(counts), channels).astype(np.float32)
    labels = mixed_labels(maps[1:], weights)
    shape = (channels, height, width)
    pred, other = (rng.normal(size=shape).astype(np.float32) / 4 for _ in range(2))
    other[:, 3, 4] = pred[:, 3, 4]
    upstream, plain = (rng.random((height, width)).astype(np.float32) for _ in range(2))
    region = (rng.normal(size=(5, height, width)) / 4).astype(np.float32)
    a, b, values, low, w = (leaf(array) for array in (pred, other, plain, region, weights))
    difference = (a - b).abs().mean(dim=0)
    feature, mask = target(maps[1:], table, weights, "soft")
    # The target keeps its gradient to the weights: here as the plain sum.
    levels = torch.from_numpy(table[maps[1:].astype(int)]).double()
    soft = (w[..., None] * levels).sum(dim=0).movedim(-1, 0)
    residual = ((a - soft) * torch.from_numpy(mask)).abs().mean(dim=0)
    distill = balanced(residual, labels)
    objective = np.array([[1, 0.001, 0], [1, 0.002, 0.1]], np.float32)
    arrays: Arrays = {
        **{"seg_map": maps, "scale_map": weights, "trained_seg": labels, "img_embed": table, "pred": pred, "gt": other},
        **{"l1_map": difference.detach().numpy(), "l1_mean": difference.mean().detach().numpy()},
        **{"l1_map_upstream": upstream, "balance_loss_map": plain, "region_feature": region},
        **{"balance_loss": balanced(values, labels).detach().numpy(), "entropy_loss": entropy(w).detach().numpy()},
        "region_variance_loss": variance(low, labels).detach().numpy(),
        **{"objective_target": feature, "objective_mask": mask, "objective_weights": objective},
    }
    up = (difference * torch.from_numpy(upstream)).sum()
    arrays["l1_map_grad_pred"], arrays["l1_map_grad_gt"] = gradient(up, a, b)
    (arrays["balance_grad"],) = gradient(balanced(values, labels), values)
    (arrays["region_variance_grad"],) = gradient(variance(low, labels), low)
    (arrays["entropy_grad"],) = gradient(entropy(w), w)
    for phase, (of_distill, of_entropy, of_region) in zip(("early", "late"), objective.tolist(), strict=True):
        total = of_distill * distill + of_entropy * entropy(w) + of_region * variance(low, labels)
        arrays |= {f"objective_{phase}": total.detach().numpy(), f"objective_{phase}_distill": distill.detach().numpy()}
        grads = gradient(total, a, w, low)
        for name, grad in zip(("pred", "scale_map", "region_feature"), grads, strict=True):
            arrays[f"objective_{phase}_grad_{name}"] = grad
    return {key: np.asarray(value, np.float32) if value.dtype == float else value for key, value in arrays.items()}


# 09


def random_layers(rng: np.random.Generator, widths: list[int]) -> Arrays:
    arrays: Arrays = {}
    for index, (inner, outer) in enumerate(itertools.pairwise(widths)):
        arrays[f"w{index}"] = (rng.normal(size=(outer, inner)) * (1.5 / inner) ** 0.5).astype(np.float16)
        arrays[f"b{index}"] = (rng.normal(size=outer) * 0.05).astype(np.float16)
    count = len(widths) - 1
    parts = [f"decoder.{2 * index}.{part}" for index in range(count) for part in ("weight", "bias")]
    return arrays | {"state_dict_names": np.array(parts)}


def decode(layers: Arrays, x: torch.Tensor, biases: dict[int, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """The feature decoder of x [d, ...], with everything on the way."""

    def layer(index: int, value: torch.Tensor) -> torch.Tensor:
        bias = (biases or {}).get(index, torch.from_numpy(layers[f"b{index}"]).double())
        out = torch.tensordot(torch.from_numpy(layers[f"w{index}"]).double(), value, dims=1)
        out = out + bias.view(-1, *[1] * (x.dim() - 1))
        return out if index == 8 else out.clamp(min=0)

    first = layer(0, x)
    third = first + layer(2, layer(1, first))
    fourth = layer(3, third)
    sixth = fourth + layer(5, layer(4, fourth))
    before = layer(8, layer(7, layer(6, sixth)))
    y = before / before.norm(dim=0, keepdim=True).clamp(min=1e-12)
    return {"input_of_layer3": third, "input_of_layer6": sixth, "before_normalisation": before, "y": y}


def feature_decoder(rng: np.random.Generator) -> Arrays:
    arrays = random_layers(rng, [WIDTH_LOW, *[256] * 8, D])
    x, points = (rng.normal(size=(WIDTH_LOW, *shape)).astype(np.float32) for shape in ((5, 9), (13, 1)))
    upstream = rng.normal(size=(D, 5, 9)).astype(np.float16)
    biases = {index: leaf(arrays[f"b{index}"]) for index in (0, 8)}
    inputs = leaf(x)
    found = decode(arrays, inputs, biases)
    value = (found["y"] * torch.from_numpy(upstream).double()).sum()
    grads = gradient(value, inputs, biases[0], biases[8])
    arrays |= dict(zip(("grad_x", "grad_bias_0", "grad_bias_8"), grads, strict=True))
    arrays |= {key: each.detach().numpy().astype(np.float32) for key, each in found.items()}
    y_points = decode(arrays, torch.from_numpy(points).double())["y"].numpy().astype(np.float32)
    return arrays | {"x": x, "upstream": upstream, "x_points": points, "y_points": y_points}


def granularity_decoder(rng: np.random.Generator) -> Arrays:
    arrays = random_layers(rng, [WIDTH_LOW, 64, 128, 64, 32, 16, 3])
    x = rng.normal(size=(WIDTH_LOW, 6, 8)).astype(np.float32)
    upstream = rng.normal(size=(3, 6, 8)).astype(np.float32)
    inputs = hidden = leaf(x)
    for index in range(6):
        hidden = torch.einsum("oi,ihw->ohw", torch.from_numpy(arrays[f"w{index}"]).double(), hidden)
        hidden = hidden + torch.from_numpy(arrays[f"b{index}"]).double()[:, None, None]
        hidden = hidden if index == 5 else hidden.clamp(min=0)
    y = hidden.softmax(dim=0)
    (grad_x,) = gradient((y * torch.from_numpy(upstream)).sum(), inputs)
    logits, y = (each.detach().numpy().astype(np.float32) for each in (hidden, y))
    return arrays | {"x": x, "upstream": upstream, "y": y, "logits": logits, "grad_x": grad_x}
