"""Pictures in and out, resizing, colour maps and overlays.

A picture is ``UInt8[Tensor, "height width 3"]``, RGB in sRGB as cameras write it, row 0 at the top.
Positions in pictures are (x, y) in pixels with pixel centres at +0.5 (see ``gags.geometry``).
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image as PilImage
from PIL import ImageDraw
from scipy import ndimage
from torch import Tensor

from gags.errors import GagsError
from gags.store import write_bytes

Rgb = tuple[int, int, int]
ColormapName = Literal["turbo", "viridis"]

# Evenly spaced stops of the two maps (Mikhailov 2019; van der Walt and Smith 2015), joined by straight lines in sRGB.
_STOPS: dict[str, str] = {
    "turbo": "30123b 4145ab 4675ed 39a2fc 1bcfd4 24eca6 61fc6c a4fc3b d1e834 f3c63a fe9b2d f36315 d93806 b11901 7a0402",
    "viridis": "440154 482878 3e4a89 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
}
_JPEG_SUFFIXES = (".jpg", ".jpeg")
_JPEG_QUALITY = 95
# What Pillow raises, depending on the format, on files that are no pictures or stop too early.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, PilImage.DecompressionBombError)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of a picture from its header alone.

    The EXIF orientation is not applied: COLMAP's cameras know pixels as they are stored.
    """
    with _open_picture(path) as picture:
        return picture.size


def read_image(path: Path) -> UInt8[Tensor, "height width 3"]:
    """The picture in a file, as RGB.

    The EXIF orientation is not applied (see ``image_size``); an alpha channel is dropped; 16-bit grey is cut to 8 bits.
    Raises GagsError when the file is missing, no picture, or truncated.
    """
    with _open_picture(path) as picture:
        try:
            if picture.mode.startswith("I;16") or picture.mode == "I":
                grey = np.asarray(picture).astype(np.uint32) >> 8
                pixels = np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
            else:
                pixels = np.array(picture.convert("RGB"))
        except _UNREADABLE as error:
            raise GagsError(
                f"{path}: expected a complete picture of {picture.width}x{picture.height} pixels, found a file that "
                f"is truncated or damaged ({error}); copy or export it again, or remove it from the scene"
            ) from error
    return torch.from_numpy(pixels)


def write_image(path: Path, image: UInt8[Tensor, "height width 3"]) -> None:
    """Write a PNG or JPEG, chosen by the suffix.

    The file appears whole or not at all. Equal pictures give equal bytes.
    """
    suffix = path.suffix.lower()
    if suffix != ".png" and suffix not in _JPEG_SUFFIXES:
        raise GagsError(f"{path}: expected a name that ends in .png, .jpg or .jpeg, found {path.suffix!r}; rename it")
    if suffix != ".png":
        write_bytes(path, encode_jpeg(image))
        return
    buffer = io.BytesIO()
    PilImage.fromarray(image.cpu().numpy()).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def as_bytes(shares: Float[Tensor, "*points"]) -> UInt8[Tensor, "*points"]:
    """Values of 0..1, cut off there, as 0..255."""
    return (shares.clamp(0, 1) * 255).round().to(torch.uint8)


def encode_jpeg(image: UInt8[Tensor, "height width 3"], quality: int = _JPEG_QUALITY) -> bytes:
    """The contents of a JPEG file, colour at full resolution; ``quality`` is libjpeg's, 1 to 95."""
    buffer = io.BytesIO()
    PilImage.fromarray(image.cpu().numpy()).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def resize_image(
    image: UInt8[Tensor, "height width 3"], width: int, height: int
) -> UInt8[Tensor, "new_height new_width 3"]:
    """The picture at another size, bicubic and antialiased where it shrinks; itself at the same size.

    The picture's borders stay its borders, so ``Camera.resized`` describes the new picture exactly.
    """
    old_height, old_width = image.shape[:2]
    if (old_width, old_height) == (width, height):
        return image
    resized = PilImage.fromarray(image.numpy()).resize((width, height), PilImage.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized))


def colormap(
    values: Float[Tensor, "height width"], low: float = 0.0, high: float = 1.0, name: ColormapName = "turbo"
) -> UInt8[Tensor, "height width 3"]:
    """Colours of ``values``: ``low`` and less is the map's first colour, ``high`` and more its last; NaN is black."""
    stops = torch.tensor([list(bytes.fromhex(stop)) for stop in _STOPS[name].split()], dtype=torch.float32)
    # The smallest width that keeps the division finite where low == high (a constant map).
    width = max(high - low, 1e-12)
    position = ((values.detach().cpu().float() - low) / width).clamp(0.0, 1.0) * (len(stops) - 1)
    position = position.nan_to_num(0.0)
    lower = position.long().clamp(max=len(stops) - 2)
    fraction = (position - lower)[..., None]
    colors = stops[lower] * (1.0 - fraction) + stops[lower + 1] * fraction
    return colors.round().to(torch.uint8) * values.detach().cpu().isfinite()[..., None]


def overlay(
    image: UInt8[Tensor, "height width 3"], heat: Float[Tensor, "height width"], opacity: float = 0.6
) -> UInt8[Tensor, "height width 3"]:
    """Heat in 0..1 drawn over a photograph.

    Cold places show the photograph in grey, hot ones the heat's colour, at most ``opacity`` of it: what is found keeps
    its own texture and stands out from what is not.
    """
    heat = heat.detach().cpu().float().nan_to_num(0.0).clamp(0.0, 1.0)
    photo = image.cpu().float()
    luma = photo @ torch.tensor([0.299, 0.587, 0.114])
    weight = heat[..., None]
    base = photo * weight + (0.7 * luma[..., None]) * (1.0 - weight)
    # Saturates early, so that a half-hot place already shows its colour.
    blend = opacity * (2.0 * weight).clamp(max=1.0)
    return (base * (1.0 - blend) + colormap(heat).float() * blend).round().to(torch.uint8)


def draw_mask(
    image: UInt8[Tensor, "height width 3"],
    mask: Bool[Tensor, "height width"],
    color: Rgb = (255, 60, 60),
    opacity: float = 0.45,
) -> UInt8[Tensor, "height width 3"]:
    """A mask as a tint with a solid outline two pixels wide."""
    inside = mask.cpu().numpy()
    outline = inside & ~ndimage.binary_erosion(inside, iterations=2, border_value=1)
    weight = torch.from_numpy(np.where(outline, 1.0, np.where(inside, opacity, 0.0)).astype(np.float32))[..., None]
    return (image.cpu().float() * (1.0 - weight) + torch.tensor(color) * weight).round().to(torch.uint8)


def draw_box(
    image: UInt8[Tensor, "height width 3"],
    box_xyxy_px: Sequence[float],
    color: Rgb = (255, 220, 40),
    thickness_px: int = 2,
) -> UInt8[Tensor, "height width 3"]:
    """A rectangle whose outer edge is the box (x1, y1, x2, y2)."""
    picture = PilImage.fromarray(image.cpu().numpy())
    left, top, right, bottom = (round(edge) for edge in box_xyxy_px)
    right, bottom = max(right - 1, left), max(bottom - 1, top)
    ImageDraw.Draw(picture).rectangle((left, top, right, bottom), outline=color, width=thickness_px)
    return torch.from_numpy(np.array(picture))


def draw_point(
    image: UInt8[Tensor, "height width 3"],
    xy_px: Sequence[float],
    color: Rgb = (255, 220, 40),
    radius_px: float = 5.0,
) -> UInt8[Tensor, "height width 3"]:
    """A disc with a dark rim, to be seen on any background."""
    height, width = image.shape[:2]
    x = torch.arange(width) + 0.5 - float(xy_px[0])
    y = torch.arange(height) + 0.5 - float(xy_px[1])
    distance_px = torch.hypot(x[None, :], y[:, None])[..., None]
    # Coverage falls over one pixel: an antialiased edge.
    rim = (radius_px + 2.0 - distance_px).clamp(0.0, 1.0)
    disc = (radius_px + 0.5 - distance_px).clamp(0.0, 1.0)
    drawn = image.cpu().float() * (1.0 - rim) + torch.tensor([15.0, 15.0, 15.0]) * rim
    return (drawn * (1.0 - disc) + torch.tensor(color) * disc).round().to(torch.uint8)


@dataclass(frozen=True)
class FeaturePalette:
    """What features look like: the colours of three directions in feature space."""

    mean: Float[Tensor, " d"]
    """Where the directions start, float64."""
    axes: Float[Tensor, "d 3"]
    """The directions that red, green and blue stand for; fewer columns where features have fewer numbers."""
    low: Float[Tensor, " 3"]
    """Along each direction, what is black."""
    span: Float[Tensor, " 3"]
    """From black to full colour; infinite where the features do not differ."""


def feature_palette(features: Float[Tensor, "*points d"]) -> FeaturePalette:
    """The first three principal components of features; those that are exactly 0 (nothing was rendered) do not count.

    Each component spans black to full between its 1st and 99th percentile and has the sign that makes the largest entry
    of its axis positive.
    """
    samples = features.detach().cpu().double().reshape(-1, features.shape[-1])
    samples = samples[samples.abs().amax(dim=1) > 0.0]
    if len(samples) == 0:
        samples = samples.new_zeros(1, features.shape[-1])
    mean = samples.mean(dim=0)
    centered = samples - mean
    # eigh sorts ascending: the last three axes, reversed, are the first components.
    axes = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -3:].flip(1)
    largest = axes.abs().argmax(dim=0, keepdim=True)
    axes = axes * axes.gather(0, largest).sign()
    low, high = torch.from_numpy(np.percentile((centered @ axes).numpy(), (1.0, 99.0), axis=0))
    # A constant component (fewer than three directions) has no span: it becomes black, not noise.
    span = torch.where(high - low > 1e-9 * samples.abs().max(), high - low, torch.inf)
    return FeaturePalette(mean, axes, low, span)


def feature_colors(
    features: Float[Tensor, "height width d"], palette: FeaturePalette | None = None
) -> UInt8[Tensor, "height width 3"]:
    """A feature map's first three principal components as red, green and blue; exact zeros (nothing there) are black.

    Args:
        palette: colours to use instead of the map's own, so that they mean the same in several pictures.
    """
    height, width, d = features.shape
    flat = features.detach().cpu().double().reshape(-1, d)
    palette = palette or feature_palette(flat)
    components = ((flat - palette.mean) @ palette.axes - palette.low) / palette.span
    colors = torch.zeros(height * width, 3, dtype=torch.uint8)
    colors[:, : components.shape[1]] = components.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    colors[flat.abs().amax(dim=1) == 0.0] = 0
    return colors.reshape(height, width, 3)


def disparity_span(depth: Float[Tensor, "*points"]) -> tuple[float, float] | None:
    """2nd and 98th percentile of 1 / depth over what is there (depth above 0); None where nothing is."""
    depth = depth.detach().cpu().float()
    present = depth[(depth > 0.0) & depth.isfinite()]
    if len(present) == 0:
        return None
    low, high = np.percentile((1.0 / present).numpy(), (2.0, 98.0))
    return float(low), float(high)


def depth_colors(
    depth: Float[Tensor, "height width"], span: tuple[float, float] | None = None
) -> UInt8[Tensor, "height width 3"]:
    """Depth in scene units as colours, near is bright; 0 and less (nothing there) is black.

    Args:
        span: the values of 1 / depth that get the first and last colour, which gives near things as many colours as far
            ones; None: ``disparity_span`` of this picture.
    """
    depth = depth.detach().cpu().float()
    span = span or disparity_span(depth)
    if span is None:
        return torch.zeros(*depth.shape, 3, dtype=torch.uint8)
    present = (depth > 0.0) & depth.isfinite()
    return colormap(torch.where(present, 1.0 / depth, torch.nan), *span, name="viridis")


def _open_picture(path: Path) -> PilImage.Image:
    """The picture with its header read, pixels not yet."""
    try:
        with warnings.catch_warnings():
            # Pillow warns from 90 megapixels on, which a photograph may have; its error at twice that stays.
            warnings.simplefilter("ignore", PilImage.DecompressionBombWarning)
            return PilImage.open(path)
    except FileNotFoundError as error:
        raise GagsError(
            f"{path}: expected a picture, found no such file; check the name or restore the file"
        ) from error
    except _UNREADABLE as error:
        raise GagsError(
            f"{path}: expected a picture (JPEG or PNG), found something else or a file cut off in its header "
            f"({error}); copy or export it again, or remove it from the scene"
        ) from error
