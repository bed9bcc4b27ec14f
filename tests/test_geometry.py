"""Laws of cameras and projection."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from gags.geometry import Camera, look_at, project, transform, unproject


def make_camera(seed: int) -> Camera:
    generator = torch.Generator().manual_seed(seed)
    eye, target = torch.randn(2, 3, generator=generator).unbind()
    T_camera_world = look_at(eye, target + 0.1, torch.tensor([0.0, -1.0, 0.2]))
    return Camera(T_camera_world, 70.0, 80.0, 31.0, 22.5, 64, 48)


@given(st.integers(0, 1000))
def test_unproject_inverts_project(seed: int) -> None:
    camera = make_camera(seed)
    generator = torch.Generator().manual_seed(seed)
    xy_px = torch.rand(17, 2, generator=generator) * torch.tensor([64.0, 48.0])
    depth = torch.rand(17, generator=generator) * 5 + 0.5
    again_px, depth_again = project(camera, unproject(camera, xy_px, depth))
    torch.testing.assert_close(again_px, xy_px, atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(depth_again, depth, atol=1e-4, rtol=1e-4)


def test_look_at_puts_the_target_on_the_axis_and_up_upwards() -> None:
    eye, target, up = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 0.0, 0.0]), torch.tensor([0.0, -1.0, 0.0])
    camera = Camera(look_at(eye, target, up), 50.0, 50.0, 32.0, 24.0, 64, 48)
    xy_px, depth = project(camera, torch.stack([target, target + 0.1 * up]))
    torch.testing.assert_close(xy_px[0], torch.tensor([32.0, 24.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(depth[0], (target - eye).norm())
    assert xy_px[1, 1] < xy_px[0, 1]
    torch.testing.assert_close(camera.center_world, eye)


def test_transform_moves_points_and_composes() -> None:
    first, second = make_camera(1).T_camera_world, make_camera(2).T_camera_world
    points = torch.randn(5, 3)
    torch.testing.assert_close(transform(second @ first, points), transform(second, transform(first, points)))


def test_resized_camera_sees_the_same_relative_positions() -> None:
    camera = make_camera(3)
    points = unproject(camera, torch.tensor([[10.0, 20.0], [60.0, 5.0]]), torch.tensor([1.0, 2.0]))
    xy_px, _ = project(camera.resized(32, 12), points)
    torch.testing.assert_close(xy_px, torch.tensor([[5.0, 5.0], [30.0, 1.25]]), atol=1e-3, rtol=0)


def test_limited_keeps_the_aspect_and_never_enlarges() -> None:
    camera = make_camera(4)
    assert (camera.limited(32).width, camera.limited(32).height) == (32, 24)
    assert camera.limited(640) is camera
    assert camera.limited(None) is camera
