"""From a photograph and its masks to the square tiles that an image encoder looks at."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from gags.errors import GagsError
from gags.segment import mask_boxes

Outside = Literal["black", "gray", "image"]
"""What a tile shows where the mask is not: nothing (the paper), mid-grey, or the photograph itself."""

_FILL: dict[str, int] = {"black": 0, "gray": 128, "image": 0}


def square_crop(
    image: UInt8[Tensor, "height width 3"],
    mask: Bool[Tensor, "height width"],
    box: tuple[int, int, int, int],
    outside: Outside = "black",
    reference_quirks: bool = False,
) -> UInt8[Tensor, "side side 3"]:
    """The masked photograph cut to its box and centred in a square.

    The box is SAM's (x, y, x last - x first, y last - y first): the crop loses the mask's last row and column, as in
    the reference, on whose tiles published features are made. A mask one pixel wide or high would so become nothing
    (the reference yields a black tile, and fails at a single pixel): here the crop is at least one pixel each way, and
    an empty mask gives one black pixel.

    Args:
        box: first and last column and row, as ``mask_boxes`` gives them.
        outside: what to show outside the mask.
        reference_quirks: a mask one pixel wide or high gives a black crop.

    Raises:
        GagsError: with ``reference_quirks``, for a mask of one pixel or none.
    """
    x, y, x_last, y_last = box
    width, height = x_last - x, y_last - y
    if reference_quirks and min(width, height) == 0:
        side = max(width, height)
        if side == 0:
            raise GagsError(
                "mask tile: expected masks of at least two pixels, found one of a single pixel or none (as the reference, "
                "this stops); leave --reference-quirks out, or segment with a larger min_region_px"
            )
        return image.new_zeros(side, side, 3)
    width, height = max(width, 1), max(height, 1)
    crop = image[y : y + height, x : x + width]
    if outside != "image":
        inside = mask[y : y + height, x : x + width, None]
        crop = crop * inside if outside == "black" else torch.where(inside, crop, _FILL[outside])
    side = max(width, height)
    top, left = (side - height) // 2, (side - width) // 2
    square = image.new_full((side, side, 3), _FILL[outside])
    square[top : top + height, left : left + width] = crop
    return square


def make_tiles(
    image: UInt8[Tensor, "height width 3"],
    masks: Bool[Tensor, "mask height width"],
    size_px: int,
    outside: Outside = "black",
    reference_quirks: bool = False,
) -> Float[Tensor, "mask 3 size size"]:
    """Square RGB tiles in 0..1, one a mask: ``square_crop`` resized (docs/method.md, stage 2.6).

    Resizing is bilinear with half-pixel centres and without antialiasing, also when shrinking: that is what the
    reference feeds its encoder (an antialiased resize differs by 30 of 255 and more).
    """
    tiles = torch.empty(masks.shape[0], 3, size_px, size_px)
    for index, box in enumerate(mask_boxes(masks).tolist()):
        square = square_crop(image, masks[index], box, outside, reference_quirks)
        tiles[index] = torch.nn.functional.interpolate(
            square.permute(2, 0, 1)[None].to(torch.float32), size=(size_px, size_px), mode="bilinear", antialias=False
        )[0]
    return tiles.mul_(1 / 255)
