"""encode(): a unit vector for every mask of every training view."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from gags.encode._tiles import Outside, make_tiles
from gags.encode._types import AdaptingEncoder, ImageTextEncoder
from gags.encode.clip import ClipEncoder
from gags.encode.conse import ConseEncoder
from gags.errors import GagsError
from gags.images import read_image, resize_image
from gags.scene import Scene, View
from gags.segment import Granularity, GranularMasks, ViewMasks
from gags.settings import Count, Share, check_settings

EncoderName = Literal["conse", "clip", "siglip"]

_PRIOR_VIEWS = 12
"""At most so many views tell by their wholes what an encoder sees everywhere: their mean score hardly moves with more."""


@dataclass(frozen=True)
class EncodeConfig:
    """Settings of the encode stage."""

    batch_size: Count = 16
    """Tiles that go through the encoder at once."""
    outside: Outside = "black"
    """What a tile shows outside its mask: "black" (the paper), "gray", or the surrounding "image"."""
    scene_prior: Share = 0.0
    """What the built-in encoder sees everywhere in a scene says little: so much (0..1) of the classes' mean score over the
    scene's wholes is taken from every score. Other encoders know no classes. 0: the paper."""
    reference_quirks: bool = False
    """Masks one pixel wide or high give a black tile, and smaller ones an error, as in the reference implementation."""


def make_encoder(name: EncoderName = "conse", weights: str | Path | None = None) -> ImageTextEncoder:
    """The image-text encoder called ``name``.

    Args:
        name: "conse": the built-in encoder, whose weights come with gags's dependencies; "clip" and "siglip" have weights.
        weights: a folder in transformers form or a hub name; None: the paper's CLIP, or SigLIP 2. "conse" takes none.

    Raises:
        GagsError: an unknown name, weights that are not to be had, or weights given to an encoder that brings its own.
    """
    if name in ("clip", "siglip"):
        return ClipEncoder(weights, name)
    if name != "conse":
        raise GagsError(
            f"encoder {name!r}: expected 'conse', 'clip' or 'siglip'; choose the built-in encoder with --encoder conse"
        )
    if weights is not None:
        raise GagsError(
            f"encoder 'conse': expected no weights, found {weights}; it brings its own: leave the flag out, "
            "or add --encoder clip or siglip"
        )
    return ConseEncoder()


def distinct_masks(masks: Bool[Tensor, "mask height width"]) -> tuple[Int[Tensor, " distinct"], Int[Tensor, " mask"]]:
    """Rows of the first of each set of identical masks, and for every mask its position among those (both int64).

    The default set pools the three levels, so that most masks of a view occur twice.
    """
    packed = np.packbits(masks.numpy().reshape(masks.shape[0], -1), axis=1)
    position: dict[bytes, int] = {}
    inverse = [position.setdefault(row.tobytes(), len(position)) for row in packed]
    positions = torch.tensor(inverse, dtype=torch.int64)
    first = torch.full((len(position),), masks.shape[0], dtype=torch.int64)
    first.scatter_reduce_(0, positions, torch.arange(masks.shape[0]), reduce="amin")
    return first, positions


def encode(
    scene: Scene,
    masks: GranularMasks,
    encoder: ImageTextEncoder,
    config: EncodeConfig,
    skip: Collection[str] = (),
) -> Iterator[tuple[str, Float[Tensor, "mask width"]]]:
    """Yield (view name, unit vectors of its masks) for each training view (docs/method.md, stage 2.6).

    Args:
        scene: where the photographs are; each is resized to its label maps' size.
        masks: by view name; must hold every training view that is not skipped.
        skip: names of views that need no work (they were encoded by an earlier run).

    Yields:
        Float32 vectors of length 1, row i for label i of ``masks[name]``.

    Raises:
        GagsError: a setting out of range, a training view without masks.
    """
    check_settings(config, "encode.")
    for view in scene.training_views:
        if view.name in skip:
            continue
        view_masks, image = _masks_and_image(view, masks)
        first, inverse = distinct_masks(view_masks.masks)
        batches = _batches_of_tiles(image, view_masks.masks[first], encoder.tile_px, config)
        vectors = [encoder.encode_tiles(tiles).to("cpu", torch.float32) for tiles in batches]
        # Encoders promise unit vectors; a half-precision model keeps that promise only to three digits.
        yield (
            view.name,
            torch.nn.functional.normalize(torch.cat([torch.zeros(0, encoder.width), *vectors]), dim=1)[inverse],
        )


def scene_prior(
    scene: Scene, masks: GranularMasks, encoder: ImageTextEncoder, config: EncodeConfig
) -> Float[Tensor, " score"] | None:
    """What ``encode`` should take from the encoder's scores in this scene (see ``adapted``): ``config.scene_prior`` times their
    mean over the wholes of some views (logit adjustment, Menon et al., ICLR 2021; here the prior is the scene's own).

    Returns:
        None: the setting is 0, the encoder has no scores, or these views have no wholes.

    Raises:
        GagsError: a setting out of range, a training view without masks.
    """
    check_settings(config, "encode.")
    views = scene.training_views
    if config.scene_prior == 0 or not isinstance(encoder, AdaptingEncoder) or not views:
        return None
    scores = []
    for view in views[:: -(-len(views) // _PRIOR_VIEWS)]:
        view_masks, image = _masks_and_image(view, masks)
        wholes = view_masks.masks[view_masks.granularity == Granularity.WHOLE]
        batches = _batches_of_tiles(image, wholes, encoder.tile_px, config)
        scores += [encoder.scores(tiles).to("cpu", torch.float32) for tiles in batches]
    return config.scene_prior * torch.cat(scores).mean(dim=0) if scores else None


def adapted(encoder: ImageTextEncoder, prior: Float[Tensor, " score"] | None) -> ImageTextEncoder:
    """The encoder for a scene's tiles, given its ``scene_prior``. Phrases are encoded as ever."""
    return encoder if prior is None or not isinstance(encoder, AdaptingEncoder) else encoder.adapted(prior)


def _batches_of_tiles(
    image: UInt8[Tensor, "height width 3"], masks: Bool[Tensor, "mask height width"], tile_px: int, config: EncodeConfig
) -> Iterator[Float[Tensor, "batch 3 size size"]]:
    """The tiles of masks, so many at once."""
    for start in range(0, len(masks), config.batch_size):
        rows = masks[start : start + config.batch_size]
        yield make_tiles(image, rows, tile_px, config.outside, config.reference_quirks)


def _masks_and_image(view: View, masks: GranularMasks) -> tuple[ViewMasks, UInt8[Tensor, "height width 3"]]:
    """A view's masks, and its photograph at their size."""
    if view.name not in masks:
        raise GagsError(
            f"view {view.name}: expected masks for every training view, found none; run the segment stage first"
        )
    view_masks = masks[view.name]
    height, width = view_masks.masks.shape[1:]
    return view_masks, resize_image(read_image(view.image_path), width, height)
