"""What the fixtures have in common."""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]
D, WIDTH_LOW = 20, 6
"""Numbers in an embedding, and on a Gaussian."""


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def half_precision(vectors: np.ndarray) -> np.ndarray:
    return vectors.astype(np.float16).astype(np.float32)
