"""PSNR, SSIM and the photometric loss, with a hand-written gradient on the CPU.

SSIM is eq. 13 of Wang et al. 2004: Gaussian window of 11 x 11 pixels and sigma 1.5, data range 1, averaged over the
channels and over the windows that lie wholly inside the picture (3DGS pads with zeros, torchmetrics by reflection).
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

_WINDOW_SIZE_PX = 11
_WINDOW_SIGMA_PX = 1.5
# (K1 L)^2 and (K2 L)^2 of Wang et al. with K1 = 0.01, K2 = 0.03, L = 1.
_C1 = 0.01**2
_C2 = 0.03**2
_CHANNELS = 3
# More chunks than cores keep all cores busy to the end; every row is computed the same way in any chunk.
_CHUNKS = 32


def psnr(image: Float[Tensor, "height width 3"], reference: Float[Tensor, "height width 3"]) -> float:
    """Peak signal-to-noise ratio in dB of two pictures in 0..1; infinite if they are equal."""
    error = float(torch.mean((image.double() - reference.double()) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(image: Float[Tensor, "height width 3"], reference: Float[Tensor, "height width 3"]) -> Float[Tensor, ""]:
    """Structural similarity of two pictures in 0..1 (1: equal), differentiable in ``image``.

    The window shrinks to the largest odd size that fits pictures of fewer than 11 pixels a side.
    """
    return 1 - photometric_loss(image, reference, ssim_weight=1.0)


def photometric_loss(
    image: Float[Tensor, "height width 3"], reference: Float[Tensor, "height width 3"], ssim_weight: float
) -> Float[Tensor, ""]:
    """``(1 - w) L1 + w (1 - SSIM)`` (Kerbl et al. 2023, eq. 7), differentiable in ``image`` alone."""
    if image.device.type == "cpu":
        loss: Tensor = _PhotometricLoss.apply(image, reference, ssim_weight)
        return loss
    return photometric_loss_by_convolution(image, reference, ssim_weight)


def photometric_loss_by_convolution(
    image: Float[Tensor, "height width 3"], reference: Float[Tensor, "height width 3"], ssim_weight: float
) -> Float[Tensor, ""]:
    """``photometric_loss`` by torch's convolutions and autograd: for any device and dtype."""
    window = torch.from_numpy(_window(image.shape[0], image.shape[1])).to(image)
    x, y = image.permute(2, 0, 1)[:, None], reference.permute(2, 0, 1)[:, None].to(image)

    def blur(values: Float[Tensor, "channel 1 height width"]) -> Float[Tensor, "channel 1 inner_height inner_width"]:
        down = torch.nn.functional.conv2d(values, window.reshape(1, 1, -1, 1))
        return torch.nn.functional.conv2d(down, window.reshape(1, 1, 1, -1))

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)) / (
        (mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2)
    )
    return (1 - ssim_weight) * (x - y).abs().mean() + ssim_weight * (1 - similarity.mean())


def _window(height: int, width: int) -> np.ndarray:
    """One axis of the Gaussian window, float64, as large as the picture allows."""
    largest_odd = min(height, width) - 1 + min(height, width) % 2
    size = min(_WINDOW_SIZE_PX, largest_odd)
    offsets = np.arange(size) - (size - 1) / 2
    weights = np.exp(-(offsets**2) / (2 * _WINDOW_SIGMA_PX**2))
    return weights / weights.sum()


class _PhotometricLoss(torch.autograd.Function):
    """Value and gradient in one pass over the pixels: autograd through ten convolutions costs several times as much."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Float[Tensor, "height width 3"],
        reference: Float[Tensor, "height width 3"],
        ssim_weight: float,
    ) -> Float[Tensor, ""]:
        height, width, _ = image.shape
        x = image.detach().to(torch.float32).contiguous().numpy().reshape(height, -1)
        y = reference.detach().to(torch.float32).contiguous().numpy().reshape(height, -1)
        window = _window(height, width).astype(np.float32)
        border = len(window) - 1
        # The partial derivatives lie inside a border of zeros, so that the second pass needs no edge cases.
        partials = np.zeros((3, height + border, (width + border) * _CHANNELS), dtype=np.float32)
        similarity_sums = np.zeros(height - border)
        _similarity(x, y, window, partials, similarity_sums)
        similarities = (height - border) * (width - border) * _CHANNELS
        gradient = np.empty_like(x)
        difference_sums = np.zeros(height)
        difference_factor = (1 - ssim_weight) / x.size
        _gradient(x, y, window, partials, ssim_weight / similarities, difference_factor, gradient, difference_sums)
        ctx.save_for_backward(torch.from_numpy(gradient).reshape(image.shape))
        similarity = similarity_sums.sum() / similarities
        loss = difference_factor * difference_sums.sum() + ssim_weight * (1 - similarity)
        return image.new_tensor(loss)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Float[Tensor, ""]) -> tuple[Float[Tensor, "height width 3"], None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_outputs[0]).to(grad_outputs[0].dtype), None, None


@numba.njit(inline="always")
def _filter_row(row: np.ndarray, window: np.ndarray, out: np.ndarray) -> None:
    """Filter one row of interleaved channels along x; ``out`` is shorter by the window's border."""
    out[:] = 0
    for tap in range(len(window)):
        weight = window[tap]
        for i in range(len(out)):
            out[i] += weight * row[i + tap * _CHANNELS]


@numba.njit(parallel=True, cache=True, fastmath={"contract"})
def _similarity(
    x: Float32[np.ndarray, "height columns"],
    y: Float32[np.ndarray, "height columns"],
    window: Float32[np.ndarray, " tap"],
    partials: Float32[np.ndarray, "3 padded_height padded_columns"],
    similarity_sums: Float[np.ndarray, " window_row"],
) -> None:
    """Per-row sums of SSIM; its derivatives by the windowed means of x, x^2 and x y, inside a border of zeros."""
    taps = len(window)
    columns = x.shape[1]
    inner = columns - (taps - 1) * _CHANNELS
    rows = len(similarity_sums)
    first = (taps - 1) * _CHANNELS
    for chunk in numba.prange(_CHUNKS):
        down = np.empty((5, columns), dtype=np.float32)
        means = np.empty((5, inner), dtype=np.float32)
        for row in range(chunk * rows // _CHUNKS, (chunk + 1) * rows // _CHUNKS):
            down[:] = 0
            for tap in range(taps):
                weight = window[tap]
                for i in range(columns):
                    a, b = x[row + tap, i], y[row + tap, i]
                    wa, wb = weight * a, weight * b
                    down[0, i] += wa
                    down[1, i] += wb
                    down[2, i] += wa * a
                    down[3, i] += wb * b
                    down[4, i] += wa * b
            for moment in range(5):
                _filter_row(down[moment], window, means[moment])
            total = 0.0
            for i in range(inner):
                mean_x, mean_y = means[0, i], means[1, i]
                covariance = means[4, i] - mean_x * mean_y
                luminance = np.float32(2) * mean_x * mean_y + np.float32(_C1)
                structure = np.float32(2) * covariance + np.float32(_C2)
                power = mean_x * mean_x + mean_y * mean_y + np.float32(_C1)
                spread = means[2, i] - mean_x * mean_x + means[3, i] - mean_y * mean_y + np.float32(_C2)
                scale = np.float32(1) / (power * spread)
                similarity = luminance * structure * scale
                # d SSIM / d E[x]: directly, and through variance = E[x^2] - E[x]^2 and covariance = E[xy] - E[x] E[y].
                by_mean = np.float32(2) * scale * mean_y * (structure - luminance)
                by_mean -= np.float32(2) * mean_x * similarity * (np.float32(1) / power - np.float32(1) / spread)
                partials[0, row + taps - 1, first + i] = by_mean
                partials[1, row + taps - 1, first + i] = -similarity / spread
                partials[2, row + taps - 1, first + i] = np.float32(2) * luminance * scale
                means[0, i] = similarity
            for i in range(inner):
                total += means[0, i]
            similarity_sums[row] = total


@numba.njit(parallel=True, cache=True, fastmath={"contract"})
def _gradient(
    x: Float32[np.ndarray, "height columns"],
    y: Float32[np.ndarray, "height columns"],
    window: Float32[np.ndarray, " tap"],
    partials: Float32[np.ndarray, "3 padded_height padded_columns"],
    similarity_factor: float,
    difference_factor: float,
    gradient: Float32[np.ndarray, "height columns"],
    difference_sums: Float[np.ndarray, " height"],
) -> None:
    """Gradient of the loss by x (the windows' derivatives spread back over their pixels); per-row sums of |x - y|."""
    taps = len(window)
    rows, columns = x.shape
    by_similarity = np.float32(-similarity_factor)
    by_difference = np.float32(difference_factor)
    for chunk in numba.prange(_CHUNKS):
        down = np.empty((3, partials.shape[2]), dtype=np.float32)
        spread = np.empty((3, columns), dtype=np.float32)
        for row in range(chunk * rows // _CHUNKS, (chunk + 1) * rows // _CHUNKS):
            down[:] = 0
            for partial in range(3):
                for tap in range(taps):
                    weight = window[tap]
                    for i in range(partials.shape[2]):
                        down[partial, i] += weight * partials[partial, row + tap, i]
                _filter_row(down[partial], window, spread[partial])
            total = 0.0
            for i in range(columns):
                a, b = x[row, i], y[row, i]
                similarity = spread[0, i] + np.float32(2) * a * spread[1, i] + b * spread[2, i]
                gradient[row, i] = by_similarity * similarity + by_difference * np.sign(a - b)
            for i in range(columns):
                total += abs(x[row, i] - y[row, i])
            difference_sums[row] = total
