"""Where GaD compares targets and decoded vectors, if not in the whole of the encoder's space (docs/method.md, the presets)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.fft import dct
from torch import Tensor

from gags.distill._lift import embedding_subspace
from gags.encode import MaskEmbeddings
from gags.scene import View


@dataclass(frozen=True)
class Subspace:
    """Where targets and decoded vectors are compared."""

    basis: Float[Tensor, "target embedding"]
    """Orthonormal rows."""
    statistics: Mapping[str, float]
    """What it keeps of the masks' embeddings."""

    @property
    def loss_factor(self) -> float:
        """Multiplies mean absolute differences of coordinates, so that the other losses keep their weights beside them: in
        coordinates of which none is special those of a vector go with its length by the root of their number."""
        return (self.basis.shape[0] / self.basis.shape[1]) ** 0.5


def target_subspace(
    views: tuple[View, ...],
    embeddings: MaskEmbeddings,
    width: int,
    began_with: Float[Tensor, "target embedding"] | None = None,
) -> Subspace:
    """The ``width`` directions that hold most of the views' mask embeddings, evenly turned.

    Args:
        began_with: the basis of an interrupted training, which goes on in its coordinates: the signs of principal directions are a
            library's choice, and it may have been another.
    """
    basis, statistics = embedding_subspace(views, embeddings, width)
    # Mean absolute error takes medians coordinate by coordinate, and principal coordinates are mostly about 0: turned by
    # the discrete cosine transform, every coordinate has a share in every direction.
    # (float32, as the basis is.)
    rotation = torch.from_numpy(dct(np.eye(len(basis)), norm="ortho")).float()
    turned = rotation @ basis
    if began_with is not None and began_with.shape == turned.shape:
        turned = began_with.to(turned.device)
    return Subspace(turned, statistics)
