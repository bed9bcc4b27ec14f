"""EWA projection of 3D Gaussians to 2D in numba: forward and hand-written gradients.

Zwicker et al., "EWA Splatting" (2002), as 3DGS and gsplat 1.5.3 have it: Sigma_2d = J W Sigma W^T J^T + eps2d I, J the
Jacobian of the pinhole projection with its direction clamped to 1.3 x the field of view. The covariance is kept as a
factor: with V = W R S (W world to camera, R the Gaussian's rotation, S its scales) and U = J V, Sigma_2d = U U^T, which
has short gradients.
Everything per Gaussian is computed in float64: it costs nothing here and leaves the rounding of the inputs as the only
error.

Compiled code is cached beside this file in ``__pycache__`` (or where ``NUMBA_CACHE_DIR`` points).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32, Float64, Int32
from numba import prange

from gags.simd import ceiling, kernel, parallel_kernel

Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]
Lens = tuple[float, float, float, float]

CHUNK = 512
"""Gaussians a parallel task handles. Sums over tasks are taken in the order of the tasks: results do not depend on
threads."""

ALPHA_CUT = 1.0 / 255.0
"""A Gaussian is not drawn where its alpha is below this, one step of an 8-bit image (3DGS)."""

MAX_EXTENT = 3.33
"""Largest half-size of a splat in standard deviations: where an opacity of 1 falls to ALPHA_CUT (gsplat 1.5.3)."""


@kernel
def _rotation(w: float, x: float, y: float, z: float) -> Matrix:
    """Rows of the rotation matrix of the unit quaternion (w, x, y, z)."""
    return (
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)),
        (2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)),
        (2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)),
    )


@kernel
def _rotation_backward(w: float, x: float, y: float, z: float, g: Matrix) -> tuple[float, float, float, float]:
    """Gradient with respect to the unit quaternion of a loss whose gradient with respect to the matrix is ``g``
    (rows)."""
    return (
        2.0 * (x * (g[2][1] - g[1][2]) + y * (g[0][2] - g[2][0]) + z * (g[1][0] - g[0][1])),
        2.0
        * (
            -2.0 * x * (g[1][1] + g[2][2]) + y * (g[1][0] + g[0][1]) + z * (g[2][0] + g[0][2]) + w * (g[2][1] - g[1][2])
        ),
        2.0
        * (x * (g[1][0] + g[0][1]) - 2.0 * y * (g[0][0] + g[2][2]) + z * (g[2][1] + g[1][2]) + w * (g[0][2] - g[2][0])),
        2.0
        * (x * (g[2][0] + g[0][2]) + y * (g[2][1] + g[1][2]) - 2.0 * z * (g[0][0] + g[1][1]) + w * (g[1][0] - g[0][1])),
    )


@kernel
def _dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@kernel
def _axpby(a: float, x: Vector, b: float, y: Vector) -> Vector:
    """The 3-vector a x + b y."""
    return (a * x[0] + b * y[0], a * x[1] + b * y[1], a * x[2] + b * y[2])


@kernel
def _row_times(row: Vector, matrix: Matrix) -> Vector:
    """The 3-vector row @ matrix."""
    return (
        row[0] * matrix[0][0] + row[1] * matrix[1][0] + row[2] * matrix[2][0],
        row[0] * matrix[0][1] + row[1] * matrix[1][1] + row[2] * matrix[2][1],
        row[0] * matrix[0][2] + row[1] * matrix[1][2] + row[2] * matrix[2][2],
    )


@kernel
def _times_column(matrix: Matrix, column: Vector) -> Vector:
    """The 3-vector matrix @ column."""
    return (_dot(matrix[0], column), _dot(matrix[1], column), _dot(matrix[2], column))


@kernel
def _pose(viewmat: Float32[np.ndarray, "4 4"]) -> tuple[Matrix, Vector]:
    """(rows of the rotation, translation) of a view matrix as float64 tuples."""
    rotation = (
        (np.float64(viewmat[0, 0]), np.float64(viewmat[0, 1]), np.float64(viewmat[0, 2])),
        (np.float64(viewmat[1, 0]), np.float64(viewmat[1, 1]), np.float64(viewmat[1, 2])),
        (np.float64(viewmat[2, 0]), np.float64(viewmat[2, 1]), np.float64(viewmat[2, 2])),
    )
    return rotation, (np.float64(viewmat[0, 3]), np.float64(viewmat[1, 3]), np.float64(viewmat[2, 3]))


@kernel
def _lens(K: Float32[np.ndarray, "3 3"]) -> Lens:
    """(fx, fy, cx, cy) of an intrinsic matrix."""
    return np.float64(K[0, 0]), np.float64(K[1, 1]), np.float64(K[0, 2]), np.float64(K[1, 2])


@kernel
def _clamped_direction(x: float, y: float, z: float, lens: Lens, width: int, height: int) -> tuple[float, float]:
    """(x / z, y / z) held to 1.3 x the field of view, where the linearised projection is still of use."""
    fx, fy, cx, cy = lens
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    rx = min(max(x / z, -cx / fx - margin_x), (width - cx) / fx + margin_x)
    ry = min(max(y / z, -cy / fy - margin_y), (height - cy) / fy + margin_y)
    return rx, ry


@kernel
def _factor(
    quat: Float32[np.ndarray, " 4"], scale: Float32[np.ndarray, " 3"], rotation: Matrix
) -> tuple[tuple[float, float, float, float], float, Matrix, Matrix]:
    """(unit quaternion, 1 / length, rows of R, rows of V = W R S) of one Gaussian."""
    w, x, y, z = np.float64(quat[0]), np.float64(quat[1]), np.float64(quat[2]), np.float64(quat[3])
    # the floor of torch's normalize: a zero quaternion gives a zero matrix, not NaN
    inverse = 1.0 / max(math.sqrt(w * w + x * x + y * y + z * z), 1e-12)
    unit = (w * inverse, x * inverse, y * inverse, z * inverse)
    R = _rotation(unit[0], unit[1], unit[2], unit[3])
    a, b, c = _row_times(rotation[0], R), _row_times(rotation[1], R), _row_times(rotation[2], R)
    sx, sy, sz = np.float64(scale[0]), np.float64(scale[1]), np.float64(scale[2])
    V = ((a[0] * sx, a[1] * sy, a[2] * sz), (b[0] * sx, b[1] * sy, b[2] * sz), (c[0] * sx, c[1] * sy, c[2] * sz))
    return unit, inverse, R, V


@kernel
def _drawn_radii(opacity: float, A: float, C: float) -> tuple[float, float]:
    """Half width and height (px) of a splat with variances A and C: to where its opacity falls to ALPHA_CUT.

    Radl et al., StopThePop, 2024, appendix B.2.
    """
    square = min(MAX_EXTENT * MAX_EXTENT, 2.0 * math.log(opacity / ALPHA_CUT))
    return ceiling(math.sqrt(square * A)), ceiling(math.sqrt(square * C))


@kernel
def _is_far_outside(
    mx: float,
    my: float,
    fx_z: float,
    fy_z: float,
    rx: float,
    ry: float,
    scale: Float32[np.ndarray, " 3"],
    eps2d: float,
    width: int,
    height: int,
) -> bool:
    """Whether a ball around a Gaussian, of its largest scale, misses the picture: what need not be projected any further.

    The projected variance along x is at most (fx / z)^2 (1 + rx^2) scale^2 + eps2d; the radius is rounded up by less than 1.
    """
    beyond_x, beyond_y = max(-mx, mx - width) - 1.0, max(-my, my - height) - 1.0
    if beyond_x <= 0.0 and beyond_y <= 0.0:
        return False
    largest = max(np.float64(scale[0]), np.float64(scale[1]), np.float64(scale[2]))
    # a little more than the largest extent: rounding
    square, reach = largest * largest, 1.001 * MAX_EXTENT * MAX_EXTENT
    out_x = beyond_x > 0.0 and beyond_x * beyond_x > reach * (fx_z * fx_z * (1.0 + rx * rx) * square + eps2d)
    out_y = beyond_y > 0.0 and beyond_y * beyond_y > reach * (fy_z * fy_z * (1.0 + ry * ry) * square + eps2d)
    return bool(out_x or out_y)


@parallel_kernel
def project(
    means: Float32[np.ndarray, "gaussian 3"],
    quats: Float32[np.ndarray, "gaussian 4"],
    scales: Float32[np.ndarray, "gaussian 3"],
    opacities: Float32[np.ndarray, " gaussian"],
    viewmat: Float32[np.ndarray, "4 4"],
    K: Float32[np.ndarray, "3 3"],
    limits: tuple[float, float, float, float, bool],
    size: tuple[int, int],
    radii: Int32[np.ndarray, "gaussian 2"],
    means2d: Float32[np.ndarray, "gaussian 2"],
    depths: Float32[np.ndarray, " gaussian"],
    conics: Float32[np.ndarray, "gaussian 3"],
    compensations: Float32[np.ndarray, " gaussian"],
) -> None:
    """Project N Gaussians into one camera.

    limits = (near, far, eps2d, radius_clip, antialiased); size = (width, height). Writes radii (0, 0: not seen),
    means2d in pixels, depths, conics (inverse covariance: xx, xy, yy), compensations; rows of unseen Gaussians keep
    what they hold.
    """
    near, far, eps2d, radius_clip, antialiased = limits
    width, height = size
    n = means.shape[0]
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        # numba's parallel loops capture arrays and scalars but no tuples
        (rotation, translation), lens = _pose(viewmat), _lens(K)
        fx, fy, cx, cy = lens
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            radii[i, 0] = radii[i, 1] = 0
            mean = (np.float64(means[i, 0]), np.float64(means[i, 1]), np.float64(means[i, 2]))
            z = _dot(rotation[2], mean) + translation[2]
            # written so that a NaN is not seen either
            if not (z >= near and z <= far):
                continue
            x, y = _dot(rotation[0], mean) + translation[0], _dot(rotation[1], mean) + translation[1]
            rx, ry = _clamped_direction(x, y, z, lens, width, height)
            fx_z, fy_z = fx / z, fy / z
            mx, my = fx_z * x + cx, fy_z * y + cy
            if _is_far_outside(mx, my, fx_z, fy_z, rx, ry, scales[i], eps2d, width, height):
                continue
            V = _factor(quats[i], scales[i], rotation)[3]
            u0, u1 = _axpby(fx_z, V[0], -fx_z * rx, V[2]), _axpby(fy_z, V[1], -fy_z * ry, V[2])
            A, B, C = _dot(u0, u0), _dot(u0, u1), _dot(u1, u1)
            sharp = A * C - B * B
            A, C = A + eps2d, C + eps2d
            det = A * C - B * B
            if not (det > 0.0):
                continue
            compensation = math.sqrt(max(sharp / det, 0.0)) if antialiased else 1.0
            opacity = opacities[i] * compensation
            if not (opacity >= ALPHA_CUT):
                continue
            radius_x, radius_y = _drawn_radii(opacity, A, C)
            if radius_x <= radius_clip and radius_y <= radius_clip:
                continue
            if not (mx + radius_x > 0 and mx - radius_x < width and my + radius_y > 0 and my - radius_y < height):
                continue
            # a splat next to the camera can be wider than an int32 holds
            radii[i, 0], radii[i, 1] = min(radius_x, 1 << 30), min(radius_y, 1 << 30)
            means2d[i, 0], means2d[i, 1], depths[i] = mx, my, z
            conics[i, 0], conics[i, 1], conics[i, 2] = C / det, -B / det, A / det
            compensations[i] = compensation


@kernel
def _covariance_backward(
    A: float, B: float, C: float, eps2d: float, v_conic: Float32[np.ndarray, " 3"], v_compensation: float
) -> Vector:
    """Gradients with respect to the unblurred covariance (xx, xy, yy) from those of the conic and the compensation."""
    a, c = A + eps2d, C + eps2d
    det = a * c - B * B
    ka, kb, kc = c / det, -B / det, a / det
    ga, gb, gc = np.float64(v_conic[0]), 0.5 * np.float64(v_conic[1]), np.float64(v_conic[2])
    # d(K) = -K d(Sigma) K for K = Sigma^-1
    p, q, r, s = ka * ga + kb * gb, ka * gb + kb * gc, kb * ga + kc * gb, kb * gb + kc * gc
    vA, vB, vC = -(p * ka + q * kb), -2.0 * (p * kb + q * kc), -(r * kb + s * kc)
    sharp = A * C - B * B
    if v_compensation != 0.0 and sharp > 0.0:
        compensation = math.sqrt(sharp / det)
        half = 0.5 * v_compensation / (compensation * det * det)
        vA += half * (C * det - sharp * c)
        vB += half * (-2.0 * B * det + 2.0 * sharp * B)
        vC += half * (A * det - sharp * a)
    return vA, vB, vC


@kernel
def _jacobian_backward(
    mean: Vector,
    direction: tuple[float, float],
    clamped: tuple[bool, bool],
    lens: Lens,
    V: Matrix,
    g0: Vector,
    g1: Vector,
    v_mean2d: Float32[np.ndarray, " 2"],
    v_depth: float,
) -> tuple[Vector, Matrix]:
    """(gradient with respect to the camera-frame mean, gradient with respect to the rows of V) from those of U's
    rows."""
    x, y, z = mean
    rx, ry = direction
    fx, fy = lens[0], lens[1]
    V0, V1 = _axpby(fx / z, g0, 0.0, g0), _axpby(fy / z, g1, 0.0, g1)
    V2 = _axpby(-fx * rx / z, g0, -fy * ry / z, g1)
    j00, j02, j11, j12 = _dot(g0, V[0]), _dot(g0, V[2]), _dot(g1, V[1]), _dot(g1, V[2])
    zz = z * z
    vx, vy = v_mean2d[0] * fx / z, v_mean2d[1] * fy / z
    vz = v_depth - (v_mean2d[0] * fx * x + v_mean2d[1] * fy * y) / zz
    vz += (-fx * j00 + fx * rx * j02 - fy * j11 + fy * ry * j12) / zz
    if not clamped[0]:
        vx -= fx * j02 / zz
        vz += fx * j02 * x / (zz * z)
    if not clamped[1]:
        vy -= fy * j12 / zz
        vz += fy * j12 * y / (zz * z)
    return (vx, vy, vz), (V0, V1, V2)


@kernel
def _factor_backward(
    i: int,
    unit: tuple[float, float, float, float],
    inverse: float,
    R: Matrix,
    scale: Float32[np.ndarray, " 3"],
    rotation: Matrix,
    vV: Matrix,
    v_quats: Float32[np.ndarray, "gaussian 4"],
    v_scales: Float32[np.ndarray, "gaussian 3"],
) -> None:
    """Add the gradients of quaternion and scales of Gaussian i; return the gradient with respect to R S (rows)."""
    columns = (
        (rotation[0][0], rotation[1][0], rotation[2][0]),
        (rotation[0][1], rotation[1][1], rotation[2][1]),
        (rotation[0][2], rotation[1][2], rotation[2][2]),
    )
    vM = (_row_times(columns[0], vV), _row_times(columns[1], vV), _row_times(columns[2], vV))
    s = (np.float64(scale[0]), np.float64(scale[1]), np.float64(scale[2]))
    for j in range(3):
        v_scales[i, j] += vM[0][j] * R[0][j] + vM[1][j] * R[1][j] + vM[2][j] * R[2][j]
    vR = (
        (vM[0][0] * s[0], vM[0][1] * s[1], vM[0][2] * s[2]),
        (vM[1][0] * s[0], vM[1][1] * s[1], vM[1][2] * s[2]),
        (vM[2][0] * s[0], vM[2][1] * s[1], vM[2][2] * s[2]),
    )
    v = _rotation_backward(unit[0], unit[1], unit[2], unit[3], vR)
    along = v[0] * unit[0] + v[1] * unit[1] + v[2] * unit[2] + v[3] * unit[3]
    for j in range(4):
        v_quats[i, j] += (v[j] - along * unit[j]) * inverse


@kernel
def _pose_backward(
    v_view: Float64[np.ndarray, "3 4"],
    mean: Vector,
    v_mean: Vector,
    R: Matrix,
    scale: Float32[np.ndarray, " 3"],
    vV: Matrix,
) -> None:
    """Add one Gaussian's gradient with respect to the rows [rotation | translation] of the view matrix to v_view [3,
    4]."""
    for r in range(3):
        for k in range(3):
            v_view[r, k] += v_mean[r] * mean[k]
            for j in range(3):
                v_view[r, k] += vV[r][j] * R[k][j] * scale[j]
        v_view[r, 3] += v_mean[r]


@parallel_kernel
def project_backward(
    means: Float32[np.ndarray, "gaussian 3"],
    quats: Float32[np.ndarray, "gaussian 4"],
    scales: Float32[np.ndarray, "gaussian 3"],
    viewmat: Float32[np.ndarray, "4 4"],
    K: Float32[np.ndarray, "3 3"],
    eps2d: float,
    size: tuple[int, int],
    radii: Int32[np.ndarray, "gaussian 2"],
    v_means2d: Float32[np.ndarray, "gaussian 2"],
    v_depths: Float32[np.ndarray, " gaussian"],
    v_conics: Float32[np.ndarray, "gaussian 3"],
    v_compensations: Float32[np.ndarray, " gaussian"],
    v_means: Float32[np.ndarray, "gaussian 3"],
    v_quats: Float32[np.ndarray, "gaussian 4"],
    v_scales: Float32[np.ndarray, "gaussian 3"],
    v_view: Float64[np.ndarray, "chunk 3 4"],
) -> None:
    """Gradients of ``project``: adds to v_means, v_quats, v_scales [N, .]; writes v_view [chunk, 3, 4] partial sums."""
    width, height = size
    n = means.shape[0]
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        (rotation, translation), lens = _pose(viewmat), _lens(K)
        fx, fy = lens[0], lens[1]
        v_view[chunk] = 0.0
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            if radii[i, 0] <= 0:
                continue
            mean = (np.float64(means[i, 0]), np.float64(means[i, 1]), np.float64(means[i, 2]))
            seen = _axpby(1.0, _times_column(rotation, mean), 1.0, translation)
            x, y, z = seen
            direction = _clamped_direction(x, y, z, lens, width, height)
            clamped = (direction[0] != x / z, direction[1] != y / z)
            unit, inverse, R, V = _factor(quats[i], scales[i], rotation)
            u0 = _axpby(fx / z, V[0], -fx * direction[0] / z, V[2])
            u1 = _axpby(fy / z, V[1], -fy * direction[1] / z, V[2])
            vA, vB, vC = _covariance_backward(
                _dot(u0, u0), _dot(u0, u1), _dot(u1, u1), eps2d, v_conics[i], np.float64(v_compensations[i])
            )
            g0, g1 = _axpby(2.0 * vA, u0, vB, u1), _axpby(vB, u0, 2.0 * vC, u1)
            v_mean, vV = _jacobian_backward(
                seen, direction, clamped, lens, V, g0, g1, v_means2d[i], np.float64(v_depths[i])
            )
            for k in range(3):
                v_means[i, k] += v_mean[0] * rotation[0][k] + v_mean[1] * rotation[1][k] + v_mean[2] * rotation[2][k]
            _factor_backward(i, unit, inverse, R, scales[i], rotation, vV, v_quats, v_scales)
            _pose_backward(v_view[chunk], mean, v_mean, R, scales[i], vV)
