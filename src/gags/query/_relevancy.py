"""Relevancy of features to phrases, and the map arithmetic behind localisation and segmentation: pure functions.

Maps are ``[..., height, width]``; every function here treats the axes in front alike and phrases never influence each
other. What the reference implementation does is pinned by the fixtures 01 and 02 (``tests/parity``).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def relevancy(
    embeddings: Float[Tensor, "... width"],
    positives: Float[Tensor, "phrase width"],
    negatives: Float[Tensor, "negative width"],
    temperature: float = 10.0,
) -> Float[Tensor, "phrase ..."]:
    """LERF's relevancy score in 0..1 (Kerr et al. 2023, section 3.4; docs/method.md, stage 4).

    The probability of the phrase against the negative that resembles the feature most:
    ``min_i exp(t e.q) / (exp(t e.q) + exp(t e.n_i)) = sigmoid(t (e.q - max_i e.n_i))``.

    Args:
        embeddings: features e; unit vectors by contract, not normalised again.
        positives: phrase vectors q; each is judged alone.
        negatives: vectors n_i of the canonical phrases.
        temperature: t.
    """
    similarity = embeddings @ torch.cat([positives, negatives]).T.to(embeddings)
    return relevancy_of_similarity(similarity, len(positives), temperature)


def relevancy_of_similarity(
    similarity: Float[Tensor, "... vector"], phrase_count: int, temperature: float = 10.0
) -> Float[Tensor, "phrase ..."]:
    """``relevancy``, given the dot products with the phrases' vectors and, after them, with those of the negatives."""
    hardest = similarity[..., phrase_count:].amax(dim=-1, keepdim=True)
    return torch.sigmoid(temperature * (similarity[..., :phrase_count] - hardest)).movedim(-1, 0)


def mean_filter(maps: Float[Tensor, "*maps height width"], kernel_px: int = 30) -> Float[Tensor, "*maps height width"]:
    """Mean over a ``kernel_px`` square around each pixel; an even square reaches one pixel farther up and left.

    The border is mirrored without repeating the edge pixel (index -1 reads index 1), again and again where the image
    is smaller than the reach. Takes O(1) per pixel, whatever the kernel.
    """
    # Running sums of 500 float32 values would lose the seventh digit, which the localisation's ties hang on.
    blurred = maps.to(torch.float64)
    for dim in (-1, -2):
        blurred = _window_sum(blurred, kernel_px, dim) / kernel_px
    return blurred.to(maps.dtype)


def _window_sum(values: Float[Tensor, "*maps a b"], kernel_px: int, dim: int) -> Float[Tensor, "*maps a b"]:
    """Sum over ``kernel_px`` neighbours along one axis, mirrored at the border."""
    size = values.shape[dim]
    before = kernel_px // 2
    positions = torch.arange(-before - 1, size + kernel_px - before - 1, device=values.device)
    period = max(2 * (size - 1), 1)
    positions = positions.remainder(period)
    mirrored = torch.minimum(positions, period - positions) if size > 1 else torch.zeros_like(positions)
    # One entry more than needed in front: the sums then start at a defined value and differences need no padding.
    sums = values.index_select(dim, mirrored).cumsum(dim)
    return sums.narrow(dim, kernel_px, size) - sums.narrow(dim, 0, size)


def blend(maps: Float[Tensor, "*maps height width"], kernel_px: int = 30) -> Float[Tensor, "*maps height width"]:
    """The average of a relevancy map and its mean-filtered self."""
    return 0.5 * (maps + mean_filter(maps, kernel_px))


def stretch(values: Float[Tensor, "*maps"], axes: tuple[int, ...]) -> Float[Tensor, "*maps"]:
    """Map minimum..maximum over ``axes`` to -1..1 and clip at 0: the upper half of the range, as 0..1.

    A constant input gives zeros.
    """
    shifted = values - values.amin(dim=axes, keepdim=True)
    # 1e-9 as in the reference: a constant map becomes 0 / 1e-9 = 0 instead of 0 / 0.
    scaled = shifted / (shifted.amax(dim=axes, keepdim=True) + 1e-9)
    return (2 * scaled - 1).clamp(0, 1)


def heat(maps: Float[Tensor, "*maps height width"], kernel_px: int = 30) -> Float[Tensor, "*maps height width"]:
    """The map that segmentation thresholds, 0..1: blended with its mean, then ``stretch`` over the image.

    Its maximum is 1 by construction, so every map that is not constant yields a mask: it says where, not whether.
    """
    return stretch(blend(maps, kernel_px), (-2, -1))


def majority_filter(
    masks: Bool[Tensor, "*maps height width"], radius_px: int = 3
) -> Bool[Tensor, "*maps height width"]:
    """Set each pixel to what more than half of its square neighbourhood says; a tie clears it.

    The window is cut at the image border, and moreover the last row and the last column are never read, as in the
    reference, since results change without it. (An image of a single row or column is read, where the reference fails.)
    """
    ones, count = masks.to(torch.int32), torch.ones((), dtype=torch.int32, device=masks.device)
    for dim in (-1, -2):
        size = masks.shape[dim]
        positions = torch.arange(size, device=masks.device)
        readable = max(size - 1, 1)
        start = (positions - radius_px).clamp(0, readable)
        stop = (positions + radius_px + 1).clamp(0, readable)
        sums = torch.cat([torch.zeros_like(ones.narrow(dim, 0, 1)), ones.cumsum(dim, dtype=torch.int32)], dim)
        ones = sums.index_select(dim, stop) - sums.index_select(dim, start)
        length = (stop - start).to(torch.int32)
        count = count * (length if dim == -1 else length[:, None])
    return 2 * ones > count


def peak(filtered: Float[Tensor, "height width"]) -> Int[Tensor, "candidate 2"]:
    """(x, y) indices of all pixels that hold the map's maximum, in row-major order.

    At the left and top border of a mean-filtered map ties are the rule: its first two columns are equal.
    """
    return (filtered == filtered.max()).nonzero().flip(1)
