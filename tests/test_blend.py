"""Blend weights: a view as a sparse matrix."""

from __future__ import annotations

import pytest
import torch

from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.geometry import Camera, look_at
from gags.rasterize import BlendWeights, blend_weights, rasterization

WIDTH, HEIGHT, N = 83, 29, 150


@pytest.fixture(scope="module")
def gaussians() -> Gaussians:
    rng = torch.Generator().manual_seed(0)
    return Gaussians(
        means=torch.randn(N, 3, generator=rng),
        quats=torch.randn(N, 4, generator=rng),
        log_scales=torch.randn(N, 3, generator=rng) * 0.5 - 1.8,
        opacity_logits=torch.randn(N, generator=rng) * 2,
        sh=torch.randn(N, 1, 3, generator=rng),
    )


@pytest.fixture(scope="module")
def camera() -> Camera:
    pose = look_at(torch.tensor([0.5, -1.0, -4.0]), torch.zeros(3), torch.tensor([0.0, -1.0, 0.0]))
    return Camera(pose, 70.0, 41.0, 42.0, 14.0, WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def weights(gaussians: Gaussians, camera: Camera) -> BlendWeights:
    return blend_weights(gaussians, camera)


def _dense(weights: BlendWeights) -> torch.Tensor:
    """The matrix, entry by entry."""
    dense = torch.zeros(weights.height * weights.width, weights.n_gaussians)
    for pixel in range(len(dense)):
        entries = slice(int(weights.rows.starts[pixel]), int(weights.rows.starts[pixel + 1]))
        dense[pixel, weights.rows.ids[entries].long()] = weights.rows.weights[entries]
    return dense


@pytest.mark.parametrize("channels", [1, 3, 16, 19])
def test_the_product_is_the_rasterization(
    gaussians: Gaussians, camera: Camera, weights: BlendWeights, channels: int
) -> None:
    values = torch.randn(N, channels, generator=torch.Generator().manual_seed(1), requires_grad=True)
    again = values.detach().clone().requires_grad_()
    toward = torch.randn(HEIGHT, WIDTH, channels, generator=torch.Generator().manual_seed(2))
    picture, alpha, _ = rasterization(
        gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, values,
        camera.T_camera_world[None], camera.K[None], WIDTH, HEIGHT,
    )  # fmt: skip
    product = weights.render(again)
    assert (product - picture[0]).abs().max() < 1e-5
    assert (weights.alpha - alpha[0, ..., 0]).abs().max() < 1e-5
    (picture[0] * toward).sum().backward()
    (product * toward).sum().backward()
    assert (again.grad - values.grad).norm() < 1e-5 * values.grad.norm()


def test_weights_of_a_pixel_go_from_front_to_back_and_sum_to_at_most_one(
    gaussians: Gaussians, camera: Camera, weights: BlendWeights
) -> None:
    depth = gaussians.means @ camera.T_camera_world[2, :3] + camera.T_camera_world[2, 3]
    for first, stop in zip(weights.rows.starts[:-1].tolist(), weights.rows.starts[1:].tolist(), strict=True):
        assert (depth[weights.rows.ids[first:stop].long()].diff() >= 0).all()
    assert weights.alpha.max() <= 1 and weights.rows.weights.min() > 0


def test_the_transposed_product_is_the_adjoint(weights: BlendWeights) -> None:
    rng = torch.Generator().manual_seed(3)
    values, pixels = torch.randn(N, 5, generator=rng), torch.randn(HEIGHT * WIDTH, 5, generator=rng)
    forward = (weights.render(values).view(-1, 5) * pixels).double().sum()
    backward = (values * weights.scatter(pixels)).double().sum()
    assert abs(forward - backward) < 1e-5 * abs(forward) + 1e-4
    assert torch.allclose(weights.scatter(pixels), _dense(weights).T @ pixels, atol=1e-5)


def test_scatter_of_a_mask_counts_only_its_pixels(weights: BlendWeights) -> None:
    rng = torch.Generator().manual_seed(4)
    pixels, mask = torch.randn(HEIGHT * WIDTH, 3, generator=rng), torch.rand(HEIGHT * WIDTH, generator=rng) < 0.3
    pixels[~mask] = torch.nan
    expected = _dense(weights)[mask].T @ pixels[mask]
    assert torch.allclose(weights.scatter(pixels, mask), expected, atol=1e-5)


def test_scattered_labels_are_their_rows_of_a_table_scattered(weights: BlendWeights) -> None:
    rng = torch.Generator().manual_seed(6)
    labels = torch.randint(-1, 7, (2, HEIGHT * WIDTH), generator=rng, dtype=torch.int32)
    table = torch.randn(7, 20, generator=rng)
    padded = torch.cat([table, torch.zeros(1, 20)])
    expected = torch.stack([weights.scatter(padded[level.long()]) for level in labels], dim=1) + 2
    sums = torch.full((N, 2, 20), 2.0)
    for first, stop in ((0, 60), (60, N)):
        weights.scatter_labels(labels, table, sums[first:stop], first)
    assert torch.allclose(sums, expected, atol=1e-5)
    with pytest.raises(GagsError, match=r"expected labels below 3 and .* 140 Gaussians, found labels up to 6"):
        weights.scatter_labels(labels, table[:3], sums, 10)


def test_some_pixels_are_rows_of_the_picture(weights: BlendWeights) -> None:
    rng = torch.Generator().manual_seed(5)
    ids = torch.randint(0, HEIGHT * WIDTH, (200,), generator=rng)
    ids[0] = ids[1]
    values = torch.randn(N, 6, generator=rng, requires_grad=True)
    again = values.detach().clone().requires_grad_()
    toward = torch.randn(200, 6, generator=rng)
    some, rows = weights.render_pixels(values, ids), weights.render(again).view(-1, 6)[ids]
    assert torch.equal(some, rows)
    (some * toward).sum().backward()
    (rows * toward).sum().backward()
    assert torch.allclose(values.grad, again.grad, atol=1e-5)
    assert weights.render_pixels(values, ids[:0]).shape == (0, 6)


def test_top_k_keeps_the_largest_weights_in_order(gaussians: Gaussians, camera: Camera, weights: BlendWeights) -> None:
    few = blend_weights(gaussians, camera, top_k=3)
    full, kept = _dense(weights), _dense(few)
    assert torch.equal(kept.sort(descending=True).values[:, :3], full.sort(descending=True).values[:, :3])
    assert ((kept == 0) | (kept == full)).all() and (kept > 0).sum(1).max() == 3
    assert len(few.rows.ids) == len(few.rows.weights) < len(weights.rows.weights)
    depth = gaussians.means @ camera.T_camera_world[2, :3]
    for first, stop in zip(few.rows.starts[:-1].tolist(), few.rows.starts[1:].tolist(), strict=True):
        assert (depth[few.rows.ids[first:stop].long()].diff() >= 0).all()


def test_min_weight_drops_what_is_lighter(gaussians: Gaussians, camera: Camera, weights: BlendWeights) -> None:
    full, kept = _dense(weights), _dense(blend_weights(gaussians, camera, min_weight=0.05))
    assert torch.equal(kept, torch.where(full >= torch.tensor(0.05), full, 0.0))


def test_the_same_view_gives_the_same_bytes(gaussians: Gaussians, camera: Camera, weights: BlendWeights) -> None:
    again = blend_weights(gaussians, camera)
    for name in ("starts", "ids", "weights"):
        assert torch.equal(getattr(again.rows, name), getattr(weights.rows, name))
        assert torch.equal(getattr(again.columns, name), getattr(weights.columns, name))


def test_an_empty_view(gaussians: Gaussians, camera: Camera) -> None:
    away = Camera(
        torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0])) @ camera.T_camera_world, 70.0, 41.0, 42.0, 14.0, WIDTH, HEIGHT
    )
    nothing = blend_weights(gaussians, away)
    assert not nothing.alpha.any() and not nothing.render(torch.ones(N, 2)).any()
    assert not nothing.scatter(torch.ones(HEIGHT * WIDTH, 2)).any()


def test_bad_arguments_are_named(gaussians: Gaussians, camera: Camera, weights: BlendWeights) -> None:
    with pytest.raises(GagsError, match="expected top_k >= 1 and min_weight in \\[0, 1\\), found 0"):
        blend_weights(gaussians, camera, top_k=0)
    with pytest.raises(GagsError, match=f"expected values \\[{N}, channel\\], a row a Gaussian, float32 on the CPU"):
        weights.render(torch.ones(N - 1, 3))
    with pytest.raises(GagsError, match=f"expected pixel ids in 0..{HEIGHT * WIDTH - 1}, found -1..2"):
        weights.render_pixels(torch.ones(N, 3), torch.tensor([-1, 2]))
    with pytest.raises(GagsError, match="expected pixel_values"):
        weights.scatter(torch.ones(7, 3))
