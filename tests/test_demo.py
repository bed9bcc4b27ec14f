"""The built-in scene: what is written agrees with the geometry that it was drawn from."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gags.errors import GagsError
from gags.evaluate import load_labels
from gags.geometry import Camera, project
from gags.scene import demo
from gags.scene._demo_rays import Face, Hits, Texture, cast, draw, photo_mask, visible
from gags.scene._demo_room import ROOM_MAX, ROOM_MIN, Painter, build_room, furniture
from gags.scene.demo import CATEGORIES, DemoConfig, demo_cameras, make_demo_scene

SMALL = DemoConfig(n_views=6, width=80, height=60, n_points=300, min_label_px=12, texel_m=0.02)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_scene(tmp_path_factory.mktemp("demo") / "room", SMALL)


@pytest.fixture(scope="module")
def faces() -> list[Face]:
    return build_room(Painter(np.random.default_rng(SMALL.seed), SMALL.texel_m))


def slow_cast(camera: Camera, faces: list[Face], x: float, y: float) -> tuple[int, float]:
    """One ray, one face after the other, by solving three equations."""
    T = camera.T_camera_world.double().numpy()
    ray = T[:3, :3].T @ np.array([(x - camera.cx_px) / camera.fx_px, (y - camera.cy_px) / camera.fy_px, 1.0])
    eye = -T[:3, :3].T @ T[:3, 3]
    best = (-1, np.inf)
    for index, face in enumerate(faces):
        if (eye - face.corner_world) @ face.normal_world <= 1e-6:
            continue
        u, v, depth = np.linalg.solve(np.stack([face.u_world, face.v_world, -ray], axis=1), eye - face.corner_world)
        if 0 <= u <= 1 and 0 <= v <= 1 and 0 < depth < best[1]:
            best = (index, depth)
    return best


def test_rays_hit_what_a_slow_twin_hits(faces: list[Face]) -> None:
    rng = np.random.default_rng(0)
    for camera in demo_cameras(SMALL):
        hits = cast(camera, faces)
        for row, column in zip(rng.integers(0, 60, 25), rng.integers(0, 80, 25), strict=True):
            index, depth = slow_cast(camera, faces, column + 0.5, row + 0.5)
            assert hits.face[row, column] == index
            assert 1.0 / hits.inverse_depth[row, column] == pytest.approx(depth)


def test_a_texture_keeps_constants_and_averages() -> None:
    constant = Texture(np.full((5, 9, 3), 77.0))
    uv = np.random.default_rng(1).uniform(size=(50, 2))
    assert np.allclose(constant.sample(uv, np.geomspace(0.1, 100.0, 50)), 77.0)
    board = Texture(np.indices((8, 16)).sum(0)[..., None] % 2 * np.full(3, 200.0))
    assert np.allclose(board.sample(uv, np.full(50, 2.0)), 100.0)
    centres = np.array([[(3 + 0.5) / 16, (2 + 0.5) / 8], [(4 + 0.5) / 16, (2 + 0.5) / 8]])
    assert np.allclose(board.sample(centres, np.ones(2)), [[200.0] * 3, [0.0] * 3])


def test_equal_configs_give_equal_bytes(made: Path, tmp_path: Path) -> None:
    again = make_demo_scene(tmp_path / "again", SMALL)
    files = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((made / file).read_bytes() == (again / file).read_bytes() for file in files)
    other = make_demo_scene(tmp_path / "other", dataclasses.replace(SMALL, seed=1))
    assert (other / "sparse/0/points3D.txt").read_bytes() != (made / "sparse/0/points3D.txt").read_bytes()


def test_labels_are_the_visible_pixels(made: Path, faces: list[Face]) -> None:
    cameras = demo_cameras(SMALL)
    labels = load_labels(made / "labels")
    assert len(labels.frames) == SMALL.n_labelled
    for frame in labels.frames:
        assert frame.path.stem == Path(frame.image_name).stem
        camera = cameras[int(frame.path.stem[-5:]) - 1]
        assert (frame.width, frame.height) == (camera.width, camera.height)
        hits = cast(camera, faces)
        for label in frame.labels:
            index = next(i for i, face in enumerate(faces) if face.category == label.category)
            expected = photo_mask(camera, faces, hits, index)
            assert expected.sum() >= SMALL.min_label_px
            assert np.array_equal(label.mask.numpy(), expected), f"{frame.path.name}, {label.category}"
            rows, columns = np.nonzero(expected)
            around = [
                *label.boxes_xyxy_px[:, :2].amin(dim=0).tolist(),
                *label.boxes_xyxy_px[:, 2:].amax(dim=0).tolist(),
            ]
            assert around == [columns.min(), rows.min(), columns.max(), rows.max()]


def test_every_category_is_labelled(made: Path) -> None:
    assert set(load_labels(made / "labels").phrases) == set(CATEGORIES)


def is_free(eye_world: np.ndarray, clearance_m: float = 0.15) -> bool:
    """Whether a camera can stand there: in the room, out of the furniture."""
    if (eye_world < ROOM_MIN + clearance_m).any() or (eye_world > ROOM_MAX - clearance_m).any():
        return False
    height = -eye_world[1]
    return not any(
        block.bottom_m - clearance_m < height < block.top_m + clearance_m
        and float(block.distance_m(eye_world[0], eye_world[2])) < clearance_m
        for block in furniture()
    )


def test_default_cameras_see_every_photograph_often_and_stand_free() -> None:
    config = DemoConfig(width=80, height=60)
    faces = build_room(Painter(np.random.default_rng(0), 0.1))
    counts = dict.fromkeys(CATEGORIES, 0)
    for camera in demo_cameras(config):
        assert is_free(camera.center_world.double().numpy())
        hits: Hits = cast(camera, faces)
        assert (hits.face >= 0).all()
        for index, face in enumerate(faces):
            if face.category is not None:
                counts[face.category] += int(photo_mask(camera, faces, hits, index).sum() >= 6)
    assert min(counts.values()) >= 8


def test_pycolmap_reads_the_model(made: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction(made / "sparse/0")
    assert model.num_points3D() == SMALL.n_points
    assert sorted(image.name for image in model.images.values()) == sorted(os.listdir(made / "images"))
    assert next(iter(model.cameras.values())).model.name == "PINHOLE"
    for camera, (_, image) in zip(demo_cameras(SMALL), sorted(model.images.items()), strict=True):
        assert np.allclose(image.cam_from_world().matrix(), camera.T_camera_world[:3].numpy(), atol=1e-6)
    for point_id, point in model.points3D.items():
        assert point.track.length() >= 2
        for element in point.track.elements:
            image = model.images[element.image_id]
            point2d = image.points2D[element.point2D_idx]
            assert point2d.point3D_id == point_id
            assert np.allclose(image.project_point(point.xyz), point2d.xy, atol=2e-3)


def test_points_show_their_colours_where_they_are_visible(made: Path, faces: list[Face]) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction(made / "sparse/0")
    points = list(model.points3D.values())
    xyz = torch.tensor(np.stack([point.xyz for point in points]), dtype=torch.float32)
    colors = np.stack([point.color for point in points]).astype(float)
    for i, camera in enumerate(demo_cameras(SMALL)):
        listed = np.array([any(element.image_id == i + 1 for element in point.track.elements) for point in points])
        xy, depth = project(camera, xyz)
        column, row = xy[listed].long().numpy().T
        # Behind the pixel's centre lies the same surface, or a nearby one at an edge.
        behind = 1.0 / cast(camera, faces).inverse_depth[row, column]
        assert np.median(np.abs(behind - depth[listed].numpy())) < 0.02
        assert np.mean(behind > 0.93 * depth[listed].numpy()) > 0.97
        image = np.asarray(Image.open(made / "images" / f"frame_{i + 1:05d}.jpg")).astype(float)
        assert np.median(np.abs(image[row, column] - colors[listed]).mean(axis=1)) < 20.0


def test_a_point_is_hidden_by_what_stands_before_it() -> None:
    gray = Texture(np.full((2, 2, 3), 128.0))
    wall = Face(np.array([-2.0, -2.0, 4.0]), np.array([4.0, 0, 0]), np.array([0, 4.0, 0]), gray)
    board = Face(np.array([-0.5, -0.5, 2.0]), np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), gray)
    camera = dataclasses.replace(demo_cameras(SMALL)[0], T_camera_world=torch.eye(4))
    points = np.array([[0.0, 0.0, 4.0], [1.5, 0.0, 4.0], [0.2, 0.1, 2.0], [0.0, 0.0, -4.0]])
    _, seen = visible(camera, [wall, board], points, np.array([0, 0, 1, 0], np.int16))
    assert seen.tolist() == [False, True, True, False]
    assert np.allclose(draw(camera, [wall, board], 2)[30, 40], 128.0)


def test_an_interrupted_making_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_write_model", stop)
    with pytest.raises(KeyboardInterrupt):
        make_demo_scene(tmp_path / "room", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(GagsError, match="found files; remove it or name another"):
        make_demo_scene(tmp_path, SMALL)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_counts_below_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(GagsError, match=r"at least 1, found .*n_views=0"):
        make_demo_scene(tmp_path / "room", dataclasses.replace(SMALL, n_views=0))
