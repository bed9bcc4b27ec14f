"""Spherical-harmonic colour in numba: forward and gradients.

The real basis up to degree 3 in the polynomial form and with the signs that 3DGS files and gsplat use
(Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2013). Colour = max(0, sum_k basis_k(direction) * coefficient_k
+ 0.5), direction = from the camera centre to the Gaussian, in the world frame.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, Int32
from numba import prange

from gags.rasterize._projection import CHUNK
from gags.simd import kernel, parallel_kernel

MAX_DEGREE = 3
"""Highest degree of the spherical harmonics."""

_C0 = 0.28209479177387814
_C1 = 0.4886025119029199
_C2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
_C3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)


@kernel
def _basis(x: float, y: float, z: float, degree: int, out: Float64[np.ndarray, " band"]) -> None:
    """Write the (degree + 1)^2 basis values of the unit direction (x, y, z) to ``out``."""
    out[0] = _C0
    if degree >= 1:
        out[1], out[2], out[3] = -_C1 * y, _C1 * z, -_C1 * x
    if degree >= 2:
        out[4], out[5] = _C2[0] * x * y, -_C2[0] * y * z
        out[6] = _C2[1] * (3.0 * z * z - 1.0)
        out[7], out[8] = -_C2[0] * x * z, _C2[2] * (x * x - y * y)
    if degree >= 3:
        out[9] = -_C3[0] * y * (3.0 * x * x - y * y)
        out[10] = _C3[1] * x * y * z
        out[11] = -_C3[2] * y * (5.0 * z * z - 1.0)
        out[12] = _C3[3] * z * (5.0 * z * z - 3.0)
        out[13] = -_C3[2] * x * (5.0 * z * z - 1.0)
        out[14] = _C3[4] * z * (x * x - y * y)
        out[15] = -_C3[0] * x * (x * x - 3.0 * y * y)


@kernel
def _basis_gradient(x: float, y: float, z: float, degree: int, out: Float64[np.ndarray, "band 3"]) -> None:
    """Write the partial derivatives of ``_basis`` along x, y and z to ``out`` [band, 3]."""
    out[:] = 0.0
    if degree >= 1:
        out[1, 1], out[2, 2], out[3, 0] = -_C1, _C1, -_C1
    if degree >= 2:
        out[4, 0], out[4, 1] = _C2[0] * y, _C2[0] * x
        out[5, 1], out[5, 2] = -_C2[0] * z, -_C2[0] * y
        out[6, 2] = 6.0 * _C2[1] * z
        out[7, 0], out[7, 2] = -_C2[0] * z, -_C2[0] * x
        out[8, 0], out[8, 1] = 2.0 * _C2[2] * x, -2.0 * _C2[2] * y
    if degree >= 3:
        out[9, 0], out[9, 1] = -6.0 * _C3[0] * x * y, -3.0 * _C3[0] * (x * x - y * y)
        out[10, 0], out[10, 1], out[10, 2] = _C3[1] * y * z, _C3[1] * x * z, _C3[1] * x * y
        out[11, 1], out[11, 2] = -_C3[2] * (5.0 * z * z - 1.0), -10.0 * _C3[2] * y * z
        out[12, 2] = _C3[3] * (15.0 * z * z - 3.0)
        out[13, 0], out[13, 2] = -_C3[2] * (5.0 * z * z - 1.0), -10.0 * _C3[2] * x * z
        out[14, 0], out[14, 1] = 2.0 * _C3[4] * x * z, -2.0 * _C3[4] * y * z
        out[14, 2] = _C3[4] * (x * x - y * y)
        out[15, 0], out[15, 1] = -3.0 * _C3[0] * (x * x - y * y), 6.0 * _C3[0] * x * y


@parallel_kernel
def shade(
    means: Float32[np.ndarray, "gaussian 3"],
    sh: Float32[np.ndarray, "gaussian band 3"],
    radii: Int32[np.ndarray, "gaussian 2"],
    center: Float32[np.ndarray, " 3"],
    degree: int,
    colors: Float32[np.ndarray, "gaussian 3"],
) -> None:
    """Colours of the visible Gaussians; the others keep what ``colors`` holds.

    means [N, 3], sh [N, K, 3], radii [N, 2], center [3]: the camera's position in the world, colors [N, 3]: written.
    """
    n = means.shape[0]
    n_bands = (degree + 1) ** 2
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        basis = np.empty(16, np.float64)
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            if radii[i, 0] <= 0:
                continue
            x, y, z = means[i, 0] - center[0], means[i, 1] - center[1], means[i, 2] - center[2]
            # the floor of torch's normalize: a Gaussian at the camera's centre has no direction
            inverse = 1.0 / max(np.sqrt(x * x + y * y + z * z), 1e-12)
            _basis(x * inverse, y * inverse, z * inverse, degree, basis)
            red = green = blue = 0.5
            for k in range(n_bands):
                red += basis[k] * sh[i, k, 0]
                green += basis[k] * sh[i, k, 1]
                blue += basis[k] * sh[i, k, 2]
            colors[i, 0], colors[i, 1], colors[i, 2] = max(red, 0.0), max(green, 0.0), max(blue, 0.0)


@parallel_kernel
def shade_backward(
    means: Float32[np.ndarray, "gaussian 3"],
    sh: Float32[np.ndarray, "gaussian band 3"],
    radii: Int32[np.ndarray, "gaussian 2"],
    center: Float32[np.ndarray, " 3"],
    degree: int,
    colors: Float32[np.ndarray, "gaussian 3"],
    v_colors: Float32[np.ndarray, "gaussian 3"],
    v_means: Float32[np.ndarray, "gaussian 3"],
    v_sh: Float32[np.ndarray, "gaussian band 3"],
    v_center: Float64[np.ndarray, "chunk 3"],
) -> None:
    """Gradients of ``shade``: adds to v_means [N, 3], writes v_sh [N, K, 3], writes v_center [chunk, 3] partial
    sums."""
    n = means.shape[0]
    n_bands = (degree + 1) ** 2
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        basis = np.empty(16, np.float64)
        slope = np.empty((16, 3), np.float64)
        v_center[chunk] = 0.0
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            if radii[i, 0] <= 0:
                v_sh[i] = 0.0
                continue
            x, y, z = means[i, 0] - center[0], means[i, 1] - center[1], means[i, 2] - center[2]
            inverse = 1.0 / max(np.sqrt(x * x + y * y + z * z), 1e-12)
            x, y, z = x * inverse, y * inverse, z * inverse
            _basis(x, y, z, degree, basis)
            _basis_gradient(x, y, z, degree, slope)
            # the clamp at 0 lets no gradient through
            red = v_colors[i, 0] if colors[i, 0] > 0.0 else 0.0
            green = v_colors[i, 1] if colors[i, 1] > 0.0 else 0.0
            blue = v_colors[i, 2] if colors[i, 2] > 0.0 else 0.0
            vx = vy = vz = 0.0
            for k in range(n_bands):
                v_sh[i, k, 0], v_sh[i, k, 1], v_sh[i, k, 2] = basis[k] * red, basis[k] * green, basis[k] * blue
                weight = sh[i, k, 0] * red + sh[i, k, 1] * green + sh[i, k, 2] * blue
                vx += slope[k, 0] * weight
                vy += slope[k, 1] * weight
                vz += slope[k, 2] * weight
            v_sh[i, n_bands:] = 0.0
            # the direction is a unit vector: only the part across it moves it
            along = vx * x + vy * y + vz * z
            vx, vy, vz = (vx - along * x) * inverse, (vy - along * y) * inverse, (vz - along * z) * inverse
            v_means[i, 0] += vx
            v_means[i, 1] += vy
            v_means[i, 2] += vz
            v_center[chunk, 0] -= vx
            v_center[chunk, 1] -= vy
            v_center[chunk, 2] -= vz
