"""Named colours, of pixels and of phrases: what a classifier of things does not tell.

The names are the eleven basic colour terms (Berlin and Kay, "Basic color terms", 1969). A pixel is each of them to the extent that
it is near one of the name's samples in CIELAB: a Gaussian around every sample, normalised over the names. Photographs of rooms are
dark and tinted by their light; a name's samples therefore reach into its shades, and what is between two names is in part both.
"""

from __future__ import annotations

import string
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_SAMPLES = {
    "black": "000000 1c1c1c 2b2b2b",
    "gray": "808080 606060 a0a0a0 484848",
    "white": "ffffff e8e8e8 d0d0d0 f5f5dc",
    "red": "e6194b ff0000 b01020 800000",
    "orange": "ff7f00 f58231 d2691e",
    "yellow": "ffe119 ffd700 e0c040",
    "green": "3cb44b 008000 7cb342 2e5d34 98d080",
    "blue": "0000ff 2060d0 4363d8 87b0e8 203060 5080a0",
    "purple": "800080 911eb4 6a3d9a 4b3048 b090d0",
    "pink": "ff69b4 ffb6c1 e890b0 d080a0",
    "brown": "8b4513 5c3a21 a07050 3e2a20 b08968",
}
"""sRGB of things that are called so."""
COLORS = tuple(_SAMPLES)
_WORDS = {**{name: name for name in COLORS}, "grey": "gray", "violet": "purple"}
_DEVIATION = 14.0
"""Of the Gaussian around a sample, in CIELAB units: some six just noticeable differences."""
_BINS = 32
"""Of each of R, G and B: names are looked up in a table."""
_STRIDE = 4
"""Of the pixels that are looked up: a tile of 192 px has 2304 of them."""


def tile_colors(tiles: Float[Tensor, "tile 3 size size"]) -> Float[Tensor, "tile color"]:
    """Shares of the ``COLORS`` in each tile; they add up to 1. RGB is in 0..1.

    Pixels that are black to the last bit are left out, unless there are no others: so a tile shows what is outside its mask.
    """
    pixels = tiles[:, :, ::_STRIDE, ::_STRIDE]
    inside = (pixels > 0).any(dim=1)
    inside |= ~inside.any(dim=(1, 2), keepdim=True)
    red, green, blue = (pixels * _BINS).long().clamp(max=_BINS - 1).unbind(dim=1)
    shares = _table()[red, green, blue] * inside[..., None]
    return shares.sum(dim=(1, 2)) / inside.sum(dim=(1, 2))[:, None]


def split_colors(phrase: str) -> tuple[str, Float[Tensor, " color"]]:
    """A phrase without its colours, and the shares of the ``COLORS`` that it names (all 0: none).

    A colour at the end is counted, but stays in the phrase: it may be the thing itself, an orange.
    """
    words = phrase.split()
    named = [_WORDS.get(word.lower().strip(string.punctuation)) for word in words]
    kept = [word for word, color in zip(words[:-1], named[:-1], strict=True) if color is None] + words[-1:]
    shares = torch.tensor([float(color in named) for color in COLORS])
    return (" ".join(kept) if shares.any() else phrase), shares / shares.sum().clamp(min=1)


@cache
def _table() -> Float[Tensor, "red green blue color"]:
    """Names of the centres of all bins."""
    from skimage.color import rgb2lab

    centres = (np.arange(_BINS) + 0.5) / _BINS
    lab = rgb2lab(np.stack(np.meshgrid(centres, centres, centres, indexing="ij"), axis=-1))
    distances = []
    for samples in _SAMPLES.values():
        rgb = np.array([[int(sample[i : i + 2], 16) / 255 for i in (0, 2, 4)] for sample in samples.split()])
        distances.append(((lab[..., None, :] - rgb2lab(rgb)) ** 2).sum(axis=-1) / (2 * _DEVIATION**2))
    # relative to the nearest sample: far from all of them every Gaussian would vanish
    nearest = np.min([by_sample.min(axis=-1) for by_sample in distances], axis=0)[..., None]
    near = np.stack([np.exp(nearest - by_sample).sum(axis=-1) for by_sample in distances], axis=-1)
    return torch.from_numpy(near / near.sum(axis=-1, keepdims=True)).float()
