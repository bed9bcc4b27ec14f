"""Phrases come again and again, the canonical negatives with every question: each is encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class KnownPhrases:
    """The vectors of all phrases that were asked for."""

    def __init__(self, encode: Callable[[Sequence[str]], Float[Tensor, "phrase width"]]) -> None:
        self._encode = encode
        self._vectors: dict[str, Float[Tensor, " width"]] = {}

    def vectors(self, phrases: Sequence[str]) -> Float[Tensor, "phrase width"]:
        """A vector for every phrase, one at least; new ones are encoded together."""
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._vectors]
        if new:
            self._vectors.update(zip(new, self._encode(new), strict=True))
        return torch.stack([self._vectors[phrase] for phrase in phrases])
