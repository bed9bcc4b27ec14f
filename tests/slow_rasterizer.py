"""The rasterizer written out: a double loop over pixels and Gaussians in torch, differentiable, in any dtype. The twin
of the fast one."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

ALPHA_CUT, ALPHA_MAX, T_STOP = 1 / 255, 0.999, 1e-4


def rotation_matrices(quats: Float[Tensor, "gaussian 4"]) -> Float[Tensor, "gaussian 3 3"]:
    """Rotation matrices of wxyz quaternions of any length."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def legendre_colors(
    sh: Float[Tensor, "gaussian band 3"], directions: Float[Tensor, "gaussian 3"], degree: int
) -> Float[Tensor, "gaussian 3"]:
    """Colours from spherical harmonics, from the textbook definition: associated Legendre functions times cos and sin.

    Y_l^m with the Condon-Shortley phase in P_l^m: that is where 3DGS's signs come from.
    """
    x, y, z = torch.nn.functional.normalize(directions, dim=-1).unbind(-1)
    color = torch.zeros_like(directions) + 0.5
    for band in range(degree + 1):
        for order in range(-band, band + 1):
            m = abs(order)
            # P_l^m(z) / sin^m(theta), by the usual upward recurrence in l
            below, value = torch.zeros_like(z), torch.full_like(z, (-1) ** m * math.prod(range(1, 2 * m, 2)))
            for step in range(m + 1, band + 1):
                below, value = value, ((2 * step - 1) * z * value - (step + m - 1) * below) / (step - m)
            # sin^m(theta) (cos, sin)(m phi) are the real and imaginary part of (x + iy)^m
            real, imaginary = torch.ones_like(x), torch.zeros_like(x)
            for _ in range(m):
                real, imaginary = real * x - imaginary * y, real * y + imaginary * x
            norm = math.sqrt((2 * band + 1) / (4 * math.pi) * math.factorial(band - m) / math.factorial(band + m))
            norm *= math.sqrt(2) if m else 1
            basis = norm * value * (real if order >= 0 else imaginary)
            color = color + basis[:, None] * sh[:, band * band + band + order]
    return color.clamp(min=0)


def project(
    means: Tensor, quats: Tensor, scales: Tensor, viewmat: Tensor, K: Tensor, width: int, height: int, eps2d: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(means2d, covariances with blur, depths, sqrt of the ratio of determinants) of one camera."""
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    x, y, z = (means @ viewmat[:3, :3].T + viewmat[:3, 3]).unbind(-1)
    # gsplat: directions outside 1.3 x the field of view are linearised at its edge
    side, up = 0.15 * width / fx, 0.15 * height / fy
    tx = z * torch.minimum(torch.maximum(x / z, -cx / fx - side), (width - cx) / fx + side)
    ty = z * torch.minimum(torch.maximum(y / z, -cy / fy - up), (height - cy) / fy + up)
    zero = torch.zeros_like(z)
    J = torch.stack([fx / z, zero, -fx * tx / z**2, zero, fy / z, -fy * ty / z**2], dim=-1).reshape(-1, 2, 3)
    factor = J @ viewmat[:3, :3] @ rotation_matrices(quats) @ torch.diag_embed(scales)
    sharp = factor @ factor.transpose(1, 2)
    blurred = sharp + eps2d * torch.eye(2, dtype=means.dtype)
    ratio = (torch.linalg.det(sharp) / torch.linalg.det(blurred)).clamp(min=0).sqrt()
    return torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1), blurred, z, ratio


def slow_rasterization(
    means: Float[Tensor, "gaussian 3"],
    quats: Float[Tensor, "gaussian 4"],
    scales: Float[Tensor, "gaussian 3"],
    opacities: Float[Tensor, " gaussian"],
    colors: Tensor,
    viewmats: Float[Tensor, "camera 4 4"],
    Ks: Float[Tensor, "camera 3 3"],
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    backgrounds: Float[Tensor, "camera channel"] | None = None,
    render_mode: str = "RGB",
    rasterize_mode: str = "classic",
    pixel_shifts: Float[Tensor, "pixel gaussian 2"] | None = None,
) -> tuple[Float[Tensor, "camera height width out"], Float[Tensor, "camera height width 1"]]:
    """What ``gags.rasterize.rasterization`` returns, without info.

    ``pixel_shifts`` moves every 2D mean as one pixel sees it: its gradient is that of the 2D mean, pixel by pixel.
    """
    pictures, alphas = [], []
    for camera in range(len(viewmats)):
        view = viewmats[camera]
        means2d, covariances, depths, ratio = project(means, quats, scales, view, Ks[camera], width, height, eps2d)
        conics = torch.linalg.inv(covariances)
        strength = opacities * ratio if rasterize_mode == "antialiased" else opacities
        own = colors[camera] if colors.dim() == (3 if sh_degree is None else 4) else colors
        if sh_degree is not None:
            own = legendre_colors(own, means + view[:3, :3].T @ view[:3, 3], sh_degree)
        channels = {"R": own, "D": depths[:, None], "E": depths[:, None]}[render_mode[0]]
        if "+" in render_mode:
            channels = torch.cat([own, depths[:, None]], dim=1)
        order = [i for i in depths.argsort(stable=True).tolist() if near_plane <= depths[i] <= far_plane]
        rows = []
        for v in range(height):
            for u in range(width):
                T, total = means.new_ones(()), means.new_zeros(channels.shape[1])
                for i in order:
                    d = means.new_tensor([u + 0.5, v + 0.5]) - means2d[i]
                    if pixel_shifts is not None:
                        d = d - pixel_shifts[v * width + u, i]
                    alpha = (strength[i] * torch.exp(-0.5 * d @ conics[i] @ d)).clamp(max=ALPHA_MAX)
                    if alpha < ALPHA_CUT:
                        continue
                    if T * (1 - alpha) <= T_STOP:
                        break
                    total = total + T * alpha * channels[i]
                    T = T * (1 - alpha)
                rows.append(torch.cat([total, T[None]]))
        image = torch.stack(rows).reshape(height, width, -1)
        picture, T = image[..., :-1], image[..., -1:]
        if backgrounds is not None and render_mode[0] == "R":
            n = backgrounds.shape[1]
            picture = torch.cat([picture[..., :n] + T * backgrounds[camera], picture[..., n:]], dim=-1)
        if "ED" in render_mode:
            picture = torch.cat([picture[..., :-1], picture[..., -1:] / (1 - T).clamp(min=1e-10)], dim=-1)
        pictures.append(picture)
        alphas.append(1 - T)
    return torch.stack(pictures), torch.stack(alphas)
