"""The losses of granularity-aware distillation (docs/method.md, stage 3; fixture 08), as pure functions of pixels.

A region is a label that occurs in a mixed label map; -1 marks pixels in no region. All functions take a list of
pixels: an image is ``flatten(0, 1)`` of its channels-last map.

The region-balanced mean has two forms with one interface, ``PixelRows``: all labelled pixels (the reference's
schedule), or a sample of them that is spread evenly over the regions, whose weighted sum is an unbiased estimate of
the same mean. Regions with fewer pixels than their share of the sample appear once, with a larger weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gags.errors import GagsError


@dataclass(frozen=True)
class PixelRows:
    """Some pixels of a view and their share in a region-balanced mean."""

    pixel_ids: Int[Tensor, " row"]
    """Row-major pixel numbers, each at most once."""
    weights: Float[Tensor, " row"]
    """They add to 1 unless rows were left out."""

    def mean(self, row_values: Float[Tensor, " row"]) -> Float[Tensor, ""]:
        """The region-balanced mean (or its estimate) of a value, given for each row."""
        return (row_values * self.weights).sum()

    def where(self, wanted: Bool[Tensor, " pixel"]) -> PixelRows:
        """Only the rows whose pixel is wanted; the others count as zeros in the mean."""
        keep = wanted[self.pixel_ids]
        return PixelRows(self.pixel_ids[keep], self.weights[keep])


def absolute_difference(
    prediction: Float[Tensor, "*batch channel"], target: Float[Tensor, "*batch channel"]
) -> Float[Tensor, "*batch"]:
    """L1 of two features, averaged over the channels; gradient 0 where they are equal."""
    return (prediction - target).abs().mean(dim=-1)


def balanced_rows(labels: Int[Tensor, " pixel"], reference_quirks: bool = False) -> PixelRows:
    """All labelled pixels, weighted so that every region weighs the same (a one-pixel region too).

    So a large table does not drown a small cup. Without a labelled pixel there are no rows and their mean is 0; the
    reference stops there, and so does ``reference_quirks``.
    """
    pixel_ids = (labels >= 0).nonzero()[:, 0]
    if reference_quirks and len(pixel_ids) == 0:
        raise GagsError("region-balanced mean: expected a labelled pixel, found none (as the reference, this stops)")
    region_of_row = labels[pixel_ids].long()
    sizes = torch.bincount(region_of_row)
    region_count = (sizes > 0).sum()
    return PixelRows(pixel_ids, 1.0 / (sizes[region_of_row] * region_count))


def sampled_rows(labels: Int[Tensor, " pixel"], count: int, generator: np.random.Generator) -> PixelRows:
    """At most ``count`` labelled pixels, spread evenly over the regions and, in row order, over each region.

    Stratified: position i of ``count`` is uniform in [i, i + 1) / count on a line on which every region has the same
    length and every pixel of a region the same share of it. So each position alone is an unbiased draw, and together
    they leave no gaps.
    """
    order = labels.argsort(stable=True)[(labels < 0).sum() :]
    sizes = torch.bincount(labels[order].long())
    sizes = sizes[sizes > 0]
    if len(sizes) == 0:
        return PixelRows(order, torch.zeros(0, device=labels.device))
    starts = sizes.cumsum(0) - sizes
    jitter = torch.from_numpy(generator.random(count)).to(labels.device)
    on_line = (torch.arange(count, device=labels.device) + jitter) * (len(sizes) / count)
    # Rounding may carry the last position to the end of the line, which belongs to no region.
    region = on_line.long().clamp(max=len(sizes) - 1)
    within = ((on_line - region) * sizes[region]).long().minimum(sizes[region] - 1)
    drawn, times = torch.unique_consecutive(starts[region] + within, return_counts=True)
    return PixelRows(order[drawn], times.float() / count)


def region_variance(
    features: Float[Tensor, "pixel d"], labels: Int[Tensor, " pixel"], reference_quirks: bool = False
) -> Float[Tensor, ""]:
    """Pixel-weighted variance of a feature inside its region.

    Per region of at least two pixels the unbiased variance, averaged over the channels and multiplied by the pixel
    count; their sum is divided by all pixels, those in no region included. Without such a region it is 0; the
    reference stops there, and so does ``reference_quirks``.
    """
    pixel_count, width = features.shape
    pixel_ids = (labels >= 0).nonzero()[:, 0]
    region = labels[pixel_ids].long()
    sizes = torch.bincount(region)
    if reference_quirks and not (sizes > 1).any():
        raise GagsError("region variance: expected a region of two pixels, found none (as the reference, this stops)")
    rows = features[pixel_ids]
    # The gradient through the means is exactly zero, since deviations from a mean add to zero: no need to trace it.
    means = rows.new_zeros(len(sizes), width).index_add_(0, region, rows.detach()) / sizes.clamp(min=1)[:, None]
    # A one-pixel region has deviation 0; the clamp only keeps its Bessel factor finite.
    bessel = sizes / (sizes - 1).clamp(min=1)
    squares = (rows - means[region]).square().sum(dim=1)
    return (squares * bessel[region]).sum() / (pixel_count * width)


def granularity_entropy(weights: Float[Tensor, "*batch 3"]) -> Float[Tensor, ""]:
    """Mean over pixels and levels of ``-w log(w + 1e-6)``: a third of the usual entropy, about 0 at one-hot."""
    # 1e-6 as in the reference: finite at w = 0, and small enough to leave one-hot at -3e-7.
    return -(weights * (weights + 1e-6).log()).mean()
