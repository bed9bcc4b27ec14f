"""What encoding produces, and the protocol that hides the vision-language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, Self, runtime_checkable

from jaxtyping import Float
from torch import Tensor


class ImageTextEncoder(Protocol):
    """A model that maps pictures and phrases to unit vectors of one space."""

    name: str
    """What run.json records: the model and whatever decides its output."""
    width: int
    """D, the length of a vector."""
    tile_px: int
    """Side of the square tiles that ``encode_tiles`` expects."""

    def encode_tiles(self, tiles: Float[Tensor, "tile 3 size size"]) -> Float[Tensor, "tile width"]:
        """Unit vectors of RGB tiles in 0..1 (the model's own mean and deviation are applied inside)."""
        ...

    def encode_phrases(self, phrases: Sequence[str]) -> Float[Tensor, "phrase width"]:
        """Unit vectors of phrases, as written: no prompt template."""
        ...


@runtime_checkable
class AdaptingEncoder(ImageTextEncoder, Protocol):
    """An encoder that can be told what it sees everywhere in a scene, which says nothing about any one thing there."""

    def scores(self, tiles: Float[Tensor, "tile 3 size size"]) -> Float[Tensor, "tile score"]:
        """What tiles look like, before it becomes a vector: the higher a score the more."""
        ...

    def adapted(self, prior: Float[Tensor, " score"]) -> Self:
        """This encoder, with ``prior`` taken from the scores of every tile."""
        ...


MaskEmbeddings = Mapping[str, Float[Tensor, "mask width"]]
"""By view name, a unit vector for every row of that view's ``ViewMasks.masks``."""
