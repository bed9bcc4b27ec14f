"""Which photographs to compare before anything is known of their cameras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

Matching = Literal["auto", "exhaustive", "sequential"]

NEIGHBOURS, LOOK_ALIKES = 10, 20
"""Photographs that one is compared with where not all are: those that follow it in name order, and those most like it."""
_EXHAUSTIVE_LIMIT = 60
"""Photographs up to which "auto" compares every pair: their number grows with the square."""
_WORDS, _WORDS_LEARN_FROM = 32, 300
"""Visual words, and features of a photograph that they are learned from."""


def pairs_to_compare(
    descriptors: Sequence[UInt8[np.ndarray, "feature 128"]], matching: Matching
) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of photographs in name order.

    exhaustive: all. sequential: those that follow each other. auto: all up to 60 photographs; of more, those that follow
    each other and those that look alike, without which a walk that comes back does not close.

    descriptors: SIFT of each photograph.
    """
    n = len(descriptors)
    if matching == "exhaustive" or (matching == "auto" and n <= _EXHAUSTIVE_LIMIT):
        return [(i, j) for i in range(n) for j in range(i + 1, n)]
    pairs = {(i, j) for i in range(n) for j in range(i + 1, min(i + 1 + NEIGHBOURS, n))}
    if matching == "auto":
        pairs |= _look_alikes(descriptors)
    return sorted(pairs)


def _look_alikes(descriptors: Sequence[UInt8[np.ndarray, "feature 128"]]) -> set[tuple[int, int]]:
    """Each photograph with those most like it, besides its neighbours in name order."""
    if not any(len(one) for one in descriptors):
        return set()
    vectors = np.stack(_vlad([_root_sift(one) for one in descriptors]))
    likeness = vectors @ vectors.T
    order = np.arange(len(vectors))
    likeness[np.abs(order[:, None] - order) <= NEIGHBOURS] = -np.inf
    alike = np.argsort(-likeness, axis=1, kind="stable")[:, :LOOK_ALIKES]
    return {(min(i, j), max(i, j)) for i in range(len(alike)) for j in alike[i].tolist() if likeness[i, j] > -np.inf}


def _root_sift(descriptors: UInt8[np.ndarray, "feature 128"]) -> Float[np.ndarray, "feature 128"]:
    """Descriptors whose dot product is the Hellinger kernel (Arandjelović and Zisserman 2012)."""
    counts = descriptors.astype(np.float32)
    return np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def _vlad(descriptors: Sequence[Float[np.ndarray, "feature 128"]]) -> list[Float[np.ndarray, " vlad"]]:
    """Unit vectors of photographs: what their features are beside their visual words (VLAD, Jégou et al. 2010), the sum
    of each word normalised (Arandjelović and Zisserman 2013)."""
    from scipy.cluster.vq import kmeans2

    rng = np.random.default_rng(0)
    sample = np.concatenate([one[rng.permutation(len(one))[:_WORDS_LEARN_FROM]] for one in descriptors])
    words, _ = kmeans2(sample, min(_WORDS, len(sample)), iter=10, minit="points", rng=rng)
    vectors = []
    for one in descriptors:
        nearest = np.argmax(one @ words.T - 0.5 * np.square(words).sum(axis=1), axis=1)
        sums = np.zeros_like(words)
        np.add.at(sums, nearest, one - words[nearest])
        sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        vectors.append(sums.ravel() / max(float(np.linalg.norm(sums)), 1e-12))
    return vectors
