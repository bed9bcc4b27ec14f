"""Camera paths visit what they should, at an even pace, wherever the world's origin lies."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from scipy.spatial.transform import Rotation

import tiny
from gags.errors import GagsError
from gags.geometry import Camera, look_at
from gags.paths import ellipse_path, interpolated_path

UP = torch.tensor([0.0, -1.0, 0.0])


def on_circle(degrees: list[float], radius: float = 3.0, outward: bool = False) -> list[Camera]:
    """Cameras on a level circle around (1, -2, 0.5) that look at its centre, or away from it."""
    center = torch.tensor([1.0, -2.0, 0.5])
    cameras = []
    for angle in torch.deg2rad(torch.tensor(degrees)):
        eye = center + radius * torch.stack([angle.cos(), torch.tensor(0.0), angle.sin()])
        target = 2 * eye - center if outward else center
        cameras.append(Camera(look_at(eye, target, UP), 50.0, 60.0, 31.0, 20.0, 64, 40))
    return cameras


def centers(cameras: list[Camera]) -> torch.Tensor:
    return torch.stack([camera.center_world for camera in cameras])


def forward(camera: Camera) -> torch.Tensor:
    return camera.T_camera_world[2, :3]


def test_a_spline_begins_ends_and_passes_where_the_cameras_are() -> None:
    cameras = tiny.cameras()
    path = interpolated_path(cameras, 900)
    assert len(path) == 900
    for end, camera in ((path[0], cameras[0]), (path[-1], cameras[-1])):
        assert torch.allclose(end.T_camera_world, camera.T_camera_world, atol=1e-5)
    distance = torch.cdist(centers(cameras), centers(path))
    assert float(distance.amin(dim=1).max()) < 0.01
    for camera, nearest in zip(cameras, distance.argmin(dim=1).tolist(), strict=True):
        assert float(forward(camera) @ forward(path[nearest])) > 0.9999
    R = torch.stack([camera.T_camera_world[:3, :3] for camera in path])
    assert torch.allclose(R @ R.transpose(1, 2), torch.eye(3).expand_as(R), atol=1e-5)


def test_the_pace_is_even_where_the_cameras_are_not() -> None:
    path = interpolated_path(on_circle([0, 10, 40, 45, 90, 150, 180]), 200)
    steps = centers(path).diff(dim=0).norm(dim=1)
    assert float(steps.max() / steps.min()) < 1.1
    # cameras at a tenth of the spacing would run at a tenth of the pace if each got the same time
    assert float(steps.sum()) == pytest.approx(3.0 * torch.pi, rel=0.01)


def test_a_path_moves_with_the_world() -> None:
    T_moved_world = torch.eye(4)
    T_moved_world[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", [0.3, -1.1, 2.0]).as_matrix()).float()
    T_moved_world[:3, 3] = torch.tensor([4.0, -2.0, 7.0])

    def moved(camera: Camera) -> Camera:
        return dataclasses.replace(camera, T_camera_world=camera.T_camera_world @ T_moved_world.inverse())

    cameras = tiny.cameras()
    for make in (interpolated_path, ellipse_path):
        here, there = make(cameras, 20), make([moved(camera) for camera in cameras], 20)
        # an ellipse may begin at either end of its long axis and go round either way
        rows = torch.cdist(centers([moved(camera) for camera in here]), centers(there)).argmin(dim=1).tolist()
        assert sorted(rows) == list(range(20))
        for camera, row in zip(here, rows, strict=True):
            assert torch.allclose(moved(camera).T_camera_world, there[row].T_camera_world, atol=2e-3)


def test_intrinsics_run_along_straight_lines_at_the_size_of_the_first() -> None:
    first, last = on_circle([0, 30])
    last = dataclasses.replace(last, fx_px=200.0, fy_px=240.0, cx_px=62.0, cy_px=40.0, width=128, height=80)
    path = interpolated_path([first, last], 3)
    assert [(camera.width, camera.height) for camera in path] == [(64, 40)] * 3
    assert [camera.fx_px for camera in path] == pytest.approx([50.0, 75.0, 100.0])
    assert [camera.cy_px for camera in path] == pytest.approx([20.0, 20.0, 20.0])


def test_between_two_cameras_the_way_is_straight() -> None:
    first, last = on_circle([0, 90])
    middle = interpolated_path([first, last], 3)[1]
    assert torch.allclose(middle.center_world, (first.center_world + last.center_world) / 2, atol=1e-5)
    assert float(forward(middle) @ forward(first)) == pytest.approx(0.5**0.5, abs=1e-5)


def test_cameras_that_stand_still_add_nothing() -> None:
    a, b, c = on_circle([0, 40, 80])
    assert torch.equal(centers(interpolated_path([a, a, b, b, c], 7)), centers(interpolated_path([a, b, c], 7)))
    assert interpolated_path([a, a], 4) == [a] * 4


def test_turning_on_the_spot_takes_time() -> None:
    eye = torch.zeros(3)
    targets = [torch.tensor([1.0, 0, 0]), torch.tensor([1.0, 0, 1.0]), torch.tensor([0, 0, 1.0])]
    cameras = [Camera(look_at(eye, target, UP), 50.0, 50.0, 20.0, 15.0, 40, 30) for target in targets]
    path = interpolated_path(cameras, 9)
    turns = [float(forward(a) @ forward(b)) for a, b in pairwise(path)]
    assert max(turns) - min(turns) < 1e-3 and turns[0] < 0.999


@pytest.mark.parametrize("outward", [False, True])
def test_the_ellipse_of_a_circle_is_the_circle(outward: bool) -> None:
    cameras = on_circle([0, 45, 90, 135, 180, 225, 270, 315], outward=outward)
    path = ellipse_path(cameras, 12)
    center = torch.tensor([1.0, -2.0, 0.5])
    offsets = centers(path) - center
    assert torch.allclose(offsets.norm(dim=1), torch.full((12,), 3.0), atol=1e-4)
    assert torch.allclose(offsets[:, 1], torch.zeros(12), atol=1e-4)
    for camera, offset in zip(path, offsets, strict=True):
        assert float(forward(camera) @ offset) == pytest.approx(3.0 if outward else -3.0, abs=1e-3)
        assert float(camera.T_camera_world[1, :3] @ UP) == pytest.approx(-1.0, abs=1e-5)
    steps = (centers(path) - centers(path).roll(1, dims=0)).norm(dim=1)
    assert float(steps.max() - steps.min()) < 1e-4


def test_an_ellipse_stays_in_the_cloud_of_an_arc() -> None:
    cameras = tiny.cameras()
    path = centers(ellipse_path(cameras, 30))
    assert float(path[:, 2].max()) < float(centers(cameras)[:, 2].max()) + 0.5
    assert float(path[:, 0].abs().max()) < 1.6 * float(centers(cameras)[:, 0].abs().max())


def test_parallel_cameras_have_an_ellipse_too() -> None:
    poses = [
        look_at(torch.tensor([x, y, 0.0]), torch.tensor([x, y, 5.0]), UP) for x in (0.0, 1.0, 2.0) for y in (0.0, 0.4)
    ]
    path = ellipse_path([Camera(pose, 50.0, 50.0, 20.0, 15.0, 40, 30) for pose in poses], 5)
    assert all(bool(camera.T_camera_world.isfinite().all()) and float(forward(camera)[2]) > 0 for camera in path)


def test_too_few_cameras_or_frames_are_named() -> None:
    with pytest.raises(GagsError, match=r"at least one camera and one frame, found 0 and 5"):
        interpolated_path([], 5)
    with pytest.raises(GagsError, match=r"found 8 and 0"):
        ellipse_path(tiny.cameras(), 0)
    with pytest.raises(GagsError, match=r"3 cameras or more, found 2; use interpolate"):
        ellipse_path(tiny.cameras()[:2], 5)
