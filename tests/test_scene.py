"""Scenes in: COLMAP models of every kind, photographs alone, and everything that can be wrong with them; scenes kept and read."""

from __future__ import annotations

import json
import logging
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from jaxtyping import UInt8
from PIL import Image
from scipy import ndimage

from gags.errors import GagsError
from gags.geometry import Camera, look_at, project
from gags.images import image_size, read_image
from gags.scene import Scene, SceneConfig, load_scene, positions_in_photograph, read_scene, save_scene
from gags.scene._pairs import pairs_to_compare

WIDTH, HEIGHT = 40, 30
PINHOLE = [33.0, 35.0, 19.0, 16.0]


def synthesize(
    scene: Path, camera: str = "PINHOLE", params: list[float] = PINHOLE, binary: bool = True, model: str = "sparse/0"
) -> pycolmap.Reconstruction:
    """A COLMAP scene of 6 images of random colours, in two rigs with a camera each of which two make a rig of three frames."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig, options.num_points3D = 1, 2, 3, 21
    options.camera_width, options.camera_height = WIDTH, HEIGHT
    options.camera_model_id, options.camera_params = getattr(pycolmap.CameraModelId, camera), params
    pycolmap.set_random_seed(0)
    reconstruction = pycolmap.synthesize_dataset(options)
    (scene / model).mkdir(parents=True)
    write = reconstruction.write_binary if binary else reconstruction.write_text
    write(scene / model)
    rng = np.random.default_rng(0)
    for image in reconstruction.images.values():
        path = scene / "images" / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(path)
    return reconstruction


def load(scene: Path, config: SceneConfig | None = None) -> Scene:
    return load_scene(scene, config or SceneConfig(), scene.parent / "workspace")


def same_cameras(a: Camera, b: Camera) -> bool:
    return torch.equal(a.T_camera_world, b.T_camera_world) and replace(a, T_camera_world=b.T_camera_world) == b


def pictures(scene: Path) -> list[Path]:
    return sorted(path for path in (scene / "images").rglob("*") if path.is_file())


# what loads


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "text"])
@pytest.mark.parametrize("model", ["sparse/0", "sparse", "colmap/sparse/0"])
@pytest.mark.parametrize("legacy", [True, False], ids=["colmap 3", "colmap 4"])
def test_a_model_reads_as_pycolmap_reads_it(tmp_path: Path, binary: bool, model: str, legacy: bool) -> None:
    truth = synthesize(tmp_path / "scene", binary=binary, model=model)
    if legacy:
        for name in ("rigs", "frames"):
            next((tmp_path / "scene" / model).glob(f"{name}.*")).unlink()
    scene = load(tmp_path / "scene")
    assert [view.name for view in scene.views] == sorted(image.name for image in truth.images.values())
    for view in scene.views:
        expected = truth.find_image_with_name(view.name).cam_from_world().matrix()
        np.testing.assert_allclose(view.camera.T_camera_world[:3], expected, atol=1e-6)
        assert view.camera.T_camera_world[3].tolist() == [0, 0, 0, 1]
        camera = view.camera
        assert [camera.fx_px, camera.fy_px, camera.cx_px, camera.cy_px] == PINHOLE
        assert view.image().shape == (HEIGHT, WIDTH, 3)
    points = {tuple(np.float32(point.xyz).tolist()): point.color.tolist() for point in truth.points3D.values()}
    found = {tuple(xyz.tolist()): rgb.tolist() for xyz, rgb in zip(scene.points, scene.point_colors, strict=True)}
    assert found == points


def test_the_tiny_scene_of_the_tests_loads(tiny_scene: Path, tmp_path: Path) -> None:
    from tiny import N_VIEWS, cameras

    scene = load_scene(tiny_scene, SceneConfig(), tmp_path)
    assert len(scene.views) == N_VIEWS
    for view, camera in zip(scene.views, cameras(), strict=True):
        torch.testing.assert_close(view.camera.T_camera_world, camera.T_camera_world, atol=1e-6, rtol=0)
        assert (view.camera.fx_px, view.camera.width) == (camera.fx_px, camera.width)
    pycolmap.Reconstruction(tiny_scene / "sparse/0")


def test_simple_pinhole_has_one_focal_length(tmp_path: Path) -> None:
    synthesize(tmp_path / "scene", "SIMPLE_PINHOLE", [33.0, 19.0, 16.0])
    camera = load(tmp_path / "scene").views[0].camera
    assert (camera.fx_px, camera.fy_px, camera.cx_px, camera.cy_px) == (33.0, 33.0, 19.0, 16.0)


def test_every_and_hold_out_every_count_in_name_order(tmp_path: Path) -> None:
    synthesize(tmp_path / "scene")
    names = [view.name for view in load(tmp_path / "scene").views]
    scene = load(tmp_path / "scene", SceneConfig(every=2, hold_out_every=2))
    assert [view.name for view in scene.views] == names[::2]
    assert [view.name for view in scene.held_out_views] == [names[0], names[4]]
    assert [view.name for view in scene.training_views] == [names[2]]
    assert list(scene.left_out) == names[1::2]


def test_photographs_that_are_no_views_are_named(tmp_path: Path) -> None:
    synthesize(tmp_path / "scene")
    for name in ("extra.jpg", ".extra.jpg", "notes.txt"):
        shutil.copy(pictures(tmp_path / "scene")[0], tmp_path / "scene/images" / name)
    scene = load(tmp_path / "scene")
    assert scene.left_out == ("extra.jpg",)
    save_scene(scene, tmp_path / "kept")
    assert read_scene(tmp_path / "kept").left_out == ("extra.jpg",)


def test_the_working_resolution_limits_cameras_and_pictures(tmp_path: Path) -> None:
    synthesize(tmp_path / "scene")
    full, small = (load(tmp_path / "scene", SceneConfig(max_side_px=side)).views[1] for side in (None, 20))
    assert same_cameras(small.camera, full.camera.limited(20))
    assert small.image().shape == (15, 20, 3)


@pytest.mark.parametrize("size", [(20, 15), (10, 8), (13, 10), (80, 60)])
def test_pictures_of_another_uniform_scale_rescale_the_cameras(tmp_path: Path, size: tuple[int, int]) -> None:
    synthesize(tmp_path / "scene")
    full = load(tmp_path / "scene").views
    for path in pictures(tmp_path / "scene"):
        Image.open(path).resize(size).save(path)
    for before, after in zip(full, load(tmp_path / "scene").views, strict=True):
        assert same_cameras(after.camera, before.camera.resized(*size))


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("SIMPLE_RADIAL", [300.0, 160.0, 120.0, 0.1]),
        ("RADIAL", [300.0, 158.0, 122.0, -0.15, 0.02]),
        ("OPENCV", [300.0, 310.0, 161.0, 118.0, -0.2, 0.05, 0.002, -0.003]),
        ("OPENCV_FISHEYE", [200.0, 205.0, 160.0, 120.0, 0.02, 0.01, 0.0, 0.0]),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_distorted_lens_is_undistorted_pixel_by_pixel(
    tmp_path: Path, model: str, params: list[float], suffix: str
) -> None:
    """Spots are painted where the lens shows points: they must appear where the pinhole camera projects the points."""
    lens = pycolmap.Camera(model=model, width=320, height=240, params=params)
    points = np.array([[x, y, 2.0] for x in (-0.6, 0.1, 0.5) for y in (-0.45, 0.05, 0.4)])
    v, u = np.mgrid[:240, :320] + 0.5
    picture = np.zeros((240, 320))
    for x, y in lens.img_from_cam(points):
        picture += np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * 2.0**2))
    scene = tmp_path / "scene"
    write_text_model(
        scene, f"1 {model} 320 240 {' '.join(map(str, params))}", [f"left/a{suffix}", f"b{suffix}"], points
    )
    for path in ("left/a", "b"):
        (scene / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * picture.clip(0, 1)).astype(np.uint8)).convert("RGB").save(
            scene / "images" / f"{path}{suffix}"
        )
    for view in load(scene).views:
        image = view.image()[..., 0].double().numpy()
        assert (tmp_path / "workspace") in view.image_path.parents
        for x, y in project(view.camera, torch.from_numpy(points).float())[0].tolist():
            rows, columns = np.mgrid[int(y) - 5 : int(y) + 6, int(x) - 5 : int(x) + 6]
            weight = image[rows, columns]
            assert abs((weight * (columns + 0.5)).sum() / weight.sum() - x) < 0.1
            assert abs((weight * (rows + 0.5)).sum() / weight.sum() - y) < 0.1
        # and where they were, at the photograph's size and at half of it, is known
        for scale in (1.0, 0.5):
            xy_px = positions_in_photograph(view, round(320 * scale), round(240 * scale)).permute(2, 0, 1)
            seen_at = project(view.camera.resized(xy_px.shape[2], xy_px.shape[1]), torch.from_numpy(points).float())[0]
            columns, rows = seen_at.long().unbind(dim=1)
            off_center = torch.stack([columns, rows], dim=1) + 0.5 - seen_at
            expected = torch.from_numpy(scale * np.array(lens.img_from_cam(points))).float()
            # near the pixel's centre the lens shifts, and hardly stretches
            torch.testing.assert_close(xy_px[:, rows, columns].T - off_center, expected, atol=0.3, rtol=0)
    save_scene(load(scene), tmp_path / "kept")
    assert [view.lens for view in read_scene(tmp_path / "kept").views] == [view.lens for view in load(scene).views]
    for full, small in zip(load(scene).views, load(scene, SceneConfig(max_side_px=200)).views, strict=True):
        assert same_cameras(small.camera, full.camera.limited(200))
        assert image_size(small.image_path) == (small.camera.width, small.camera.height)


def write_text_model(scene: Path, camera: str, names: list[str], points: np.ndarray) -> None:
    """A model by hand: cameras at the origin."""
    model = scene / "sparse/0"
    model.mkdir(parents=True)
    (model / "cameras.txt").write_text(f"# a comment\n{camera}\n")
    rows = [f"{i + 1} 1 0 0 0 0 0 0 1 {name}\n" for i, name in enumerate(names)]
    (model / "images.txt").write_text("# a comment\n" + "\n".join(rows) + "\n")
    rows = [f"{i} {x} {y} {z} 255 0 7 0.5" for i, (x, y, z) in enumerate(points)]
    (model / "points3D.txt").write_text("\n".join(rows) + "\n")


# photographs alone

TRUE_FOCAL_PX = 260.0


@pytest.fixture(scope="module")
def textured_photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Camera]]:
    """Photographs (240x180) of a box room with textured walls, ray-cast; and one of nothing but noise."""
    folder = tmp_path_factory.mktemp("textured") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    walls = [texture(rng) for _ in range(6)]
    cameras = {}
    for i in range(8):
        eye = torch.tensor([-1.4 + 0.4 * i, -0.3 + 0.15 * (i % 3), -1.5 + 0.1 * (i % 2)])
        T_camera_world = look_at(eye, torch.tensor([0.1, 0.2, 3.0]), torch.tensor([0.0, -1.0, 0.0]))
        camera = Camera(T_camera_world, TRUE_FOCAL_PX, TRUE_FOCAL_PX, 120.0, 90.0, 240, 180)
        name = f"IMG {i:02d}.JPG"
        Image.fromarray(room_picture(camera, walls)).save(folder / name, quality=97)
        cameras[name] = camera
    Image.fromarray(rng.integers(0, 256, (180, 240, 3), np.uint8)).save(folder / "lost.png")
    (folder / "._IMG 00.JPG").write_bytes(b"another system's note")
    (folder / "readme.txt").write_text("not a photograph")
    return folder, cameras


def texture(rng: np.random.Generator) -> UInt8[np.ndarray, "height width 3"]:
    """Noise with detail at several scales."""
    layers = [ndimage.gaussian_filter(rng.normal(size=(512, 512)), sigma, mode="wrap") for sigma in (2, 4, 8)]
    total = sum(layer / layer.std() for layer in layers)
    grey = (127 + 40 * total).clip(0, 255)
    return np.stack([grey, 0.9 * grey, 255 - grey], -1).astype(np.uint8)


def room_picture(camera: Camera, walls: list[np.ndarray]) -> UInt8[np.ndarray, "height width 3"]:
    """What the camera sees from inside the room [-2, 2] x [-1.5, 1.5] x [-2, 3], 3 x 3 rays a pixel."""
    big = camera.resized(camera.width * 3, camera.height * 3)
    u, v = np.meshgrid(np.arange(big.width) + 0.5, np.arange(big.height) + 0.5)
    rays = np.stack([(u - big.cx_px) / big.fx_px, (v - big.cy_px) / big.fy_px, np.ones_like(u)], -1)
    rays = rays @ camera.T_camera_world[:3, :3].double().numpy()
    origin = camera.center_world.double().numpy()
    low, high = np.array([-2.0, -1.5, -2.0]), np.array([2.0, 1.5, 3.0])
    distance = np.where(rays > 0, (high - origin) / rays, (low - origin) / rays)
    axis = distance.argmin(-1)
    hits = origin + rays * distance.min(-1)[..., None]
    colors = np.zeros_like(rays)
    for i, wall in enumerate(walls):
        on_wall = (axis == i % 3) & ((np.take_along_axis(rays, axis[..., None], -1)[..., 0] > 0) == (i < 3))
        a, b = (hits[on_wall][:, j] for j in range(3) if j != i % 3)
        colors[on_wall] = wall[(a * 130).astype(int) % 512, (b * 130).astype(int) % 512]
    return colors.reshape(camera.height, 3, camera.width, 3, 3).mean((1, 3)).round().astype(np.uint8)


@pytest.fixture(scope="module")
def made_scene(
    textured_photos: tuple[Path, dict[str, Camera]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Scene, Path, list[str]]:
    """The scene made of the photographs, its workspace and what was warned of."""
    workspace = tmp_path_factory.mktemp("made")
    records: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("gags.scene")
    logger.addHandler(handler)
    try:
        return load_scene(textured_photos[0], SceneConfig(), workspace), workspace, records
    finally:
        logger.removeHandler(handler)


def test_photographs_get_the_cameras_that_took_them(
    textured_photos: tuple[Path, dict[str, Camera]], made_scene: tuple[Scene, Path, list[str]]
) -> None:
    scene, truth = made_scene[0], textured_photos[1]
    assert [view.name for view in scene.views] == sorted(truth)
    found = torch.stack([view.camera.center_world for view in scene.views]).double()
    true = torch.stack([camera.center_world for camera in truth.values()]).double()
    # up to a similarity: the pattern of distances between the cameras
    patterns = [torch.cdist(centers, centers) / torch.cdist(centers, centers).max() for centers in (found, true)]
    torch.testing.assert_close(patterns[0], patterns[1], atol=0.02, rtol=0)
    first, last = scene.views[0], scene.views[-1]
    turned = [
        (b.T_camera_world @ a.T_camera_world.inverse())[:3, :3]
        for a, b in ((first.camera, last.camera), (truth[first.name], truth[last.name]))
    ]
    torch.testing.assert_close(turned[0], turned[1], atol=0.02, rtol=0)
    assert all(view.image().shape[:2] == (view.camera.height, view.camera.width) for view in scene.views)
    assert len(scene.points) > 200
    # one lens took all photographs
    assert len({view.camera.fx_px for view in scene.views}) == 1
    assert scene.views[0].camera.fx_px == pytest.approx(TRUE_FOCAL_PX, rel=0.05)


def test_photographs_without_a_place_are_named(made_scene: tuple[Scene, Path, list[str]]) -> None:
    assert made_scene[2] == ["1 of 9 photographs could not be placed and are left out: lost.png"]
    assert made_scene[0].left_out == ("lost.png",)


def test_made_cameras_are_kept_and_made_alike(
    textured_photos: tuple[Path, dict[str, Camera]], made_scene: tuple[Scene, Path, list[str]], tmp_path: Path
) -> None:
    photos, workspace = textured_photos[0], made_scene[1]
    model = workspace / "model" / "images.bin"
    before = model.stat().st_mtime_ns
    again = load_scene(photos, SceneConfig(), workspace)
    assert model.stat().st_mtime_ns == before
    assert all(same_cameras(a.camera, b.camera) for a, b in zip(again.views, made_scene[0].views, strict=True))
    load_scene(photos, SceneConfig(), tmp_path)
    for file in ("model/images.bin", "model/points3D.bin", "undistorted/IMG 00.JPG"):
        assert (tmp_path / file).read_bytes() == (workspace / file).read_bytes()


def test_cameras_made_anew_take_the_given_models_place(
    textured_photos: tuple[Path, dict[str, Camera]], made_scene: tuple[Scene, Path, list[str]], tmp_path: Path
) -> None:
    shutil.copytree(textured_photos[0], tmp_path / "scene/images")
    given = pycolmap.Reconstruction(made_scene[1] / "model")
    turn = pycolmap.Rotation3d(np.array([0.1, -0.3, 0.2, 0.9]) / np.linalg.norm([0.1, -0.3, 0.2, 0.9]))
    given.transform(pycolmap.Sim3d(7.0, turn, np.array([30.0, -4.0, 2.0])))
    (tmp_path / "scene/sparse/0").mkdir(parents=True)
    given.write_binary(tmp_path / "scene/sparse/0")
    expected = load(tmp_path / "scene")
    # nothing but the frame and the scale of the given model counts: its lens is wrong
    for camera in given.cameras.values():
        camera.params = [2 * camera.params[0], *camera.params[1:]]
    given.write_binary(tmp_path / "scene/sparse/0")
    anew = load(tmp_path / "scene", SceneConfig(cameras="photographs"))
    for a, b in zip(anew.views, expected.views, strict=True):
        torch.testing.assert_close(a.camera.T_camera_world, b.camera.T_camera_world, atol=1e-3, rtol=0)
        assert a.camera.fx_px == pytest.approx(b.camera.fx_px)


def places(number: int, rounds: int) -> list[UInt8[np.ndarray, "feature 128"]]:
    """Features of a walk that passes the same places several times: those of a place, and as many of nowhere."""
    rng = np.random.default_rng(0)
    of_place = rng.gamma(0.5, 40, (number, 60, 128)).clip(0, 255)
    walk = []
    for _ in range(rounds):
        for place in of_place:
            seen = (place + rng.normal(0, 8, place.shape)).clip(0, 255)
            walk.append(np.concatenate([seen, rng.gamma(0.5, 40, seen.shape).clip(0, 255)]).astype(np.uint8))
    return walk


def test_few_photographs_are_all_compared() -> None:
    assert pairs_to_compare(places(60, 1), "auto") == [(i, j) for i in range(60) for j in range(i + 1, 60)]
    assert pairs_to_compare(places(70, 1), "exhaustive") == [(i, j) for i in range(70) for j in range(i + 1, 70)]


def test_a_walk_that_comes_back_is_closed() -> None:
    walk = places(40, 2)
    following = pairs_to_compare(walk, "sequential")
    assert following == [(i, j) for i in range(80) for j in range(i + 1, min(i + 11, 80))]
    pairs = pairs_to_compare(walk, "auto")
    assert set(following) <= set(pairs)
    assert {(i, i + 40) for i in range(40)} <= set(pairs)
    assert len(pairs) <= 80 * (10 + 20)
    assert pairs == pairs_to_compare(walk, "auto")


def test_photographs_without_features_are_compared_too() -> None:
    blank = np.zeros((0, 128), np.uint8)
    pairs = pairs_to_compare([blank, *places(60, 1), blank], "auto")
    assert (0, 1) in pairs
    assert (60, 61) in pairs
    assert len(pairs_to_compare([blank] * 70, "auto")) == len(pairs_to_compare([blank] * 70, "sequential"))


def test_photographs_without_a_common_place_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "scene/images/day1").mkdir(parents=True)
    for name in ("a.jpeg", "b.PNG", "day1/c.jpg"):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / "scene/images" / name)
    with pytest.raises(
        GagsError, match=r"images: expected 3 photographs of one place that overlap, found no two .* take more"
    ):
        load(tmp_path / "scene", SceneConfig(matching="sequential"))


def test_cameras_are_not_begun_on_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """COLMAP's database ends the process when the disk fills up under it."""
    (tmp_path / "scene").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / "scene" / name)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3_000_000))
    with pytest.raises(GagsError, match=r"sfm: expected 18 MB of free space to make .* 3 photographs, found 3\.0 MB"):
        load(tmp_path / "scene")
    assert not [path for path in (tmp_path / "workspace").rglob("*") if path.is_file()]


def test_what_colmap_cannot_write_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scene").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / "scene" / name)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("No registered database factory succeeded.")

    monkeypatch.setattr(pycolmap, "extract_features", fail)
    with pytest.raises(
        GagsError, match=r"sfm: .* COLMAP could not go on \(No registered .*\); check that the folder is"
    ):
        load(tmp_path / "scene")


# what is refused


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    synthesize(tmp_path / "scene")
    return tmp_path / "scene"


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GagsError, match=r"nowhere: expected a folder .*, found nothing; check the path"):
        load(tmp_path / "nowhere")


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "scene.zip").write_bytes(b"PK")
    with pytest.raises(GagsError, match=r"scene\.zip: expected a folder .*, found a file"):
        load(tmp_path / "scene.zip")


@pytest.mark.parametrize("inside", [False, True])
def test_a_folder_without_pictures(tmp_path: Path, inside: bool) -> None:
    (tmp_path / "scene/images").mkdir(parents=True) if inside else (tmp_path / "scene").mkdir()
    with pytest.raises(GagsError, match=r"expected photographs \(\.jpg, .*\) or a COLMAP scene .*, found neither"):
        load(tmp_path / "scene")


def test_a_missing_picture(scene: Path) -> None:
    pictures(scene)[2].unlink()
    with pytest.raises(
        GagsError, match=rf"{pictures(scene)[2].suffix}: expected an image that the sparse model names.*1 of 6"
    ):
        load(scene)


def test_a_missing_images_folder(scene: Path) -> None:
    with pytest.raises(GagsError, match=r"pictures: expected the folder with .* 6 images, found none; .*images-folder"):
        load(scene, SceneConfig(images_folder="pictures"))


@pytest.mark.parametrize("with_model", [True, False])
def test_a_truncated_picture(scene: Path, with_model: bool) -> None:
    path = pictures(scene)[3]
    path.write_bytes(path.read_bytes()[:-300])
    if not with_model:
        shutil.rmtree(scene / "sparse")
    with pytest.raises(
        GagsError, match=rf"{path.name}: expected a complete picture of 40x30 pixels, found .* truncated"
    ):
        load(scene)


@pytest.mark.parametrize("size", [(41, 30), (39, 30), (30, 40), (20, 15)])
def test_a_picture_of_another_size_than_its_camera(scene: Path, size: tuple[int, int]) -> None:
    path = pictures(scene)[4]
    Image.open(path).resize(size).save(path)
    with pytest.raises(
        GagsError, match=rf"{path.name}: expected 40x30 pixels .*, found {size[0]}x{size[1]}; give the images"
    ):
        load(scene)


def test_pictures_all_a_pixel_off_their_cameras_were_cropped(scene: Path) -> None:
    for path in pictures(scene):
        Image.open(path).resize((39, 30)).save(path)
    with pytest.raises(GagsError, match=r"expected 40x30 pixels .*, found 39x30"):
        load(scene)


def test_a_place_for_a_model_and_no_model(scene: Path) -> None:
    shutil.rmtree(scene / "sparse/0")
    with pytest.raises(
        GagsError, match=r"sparse: expected a COLMAP model .*, found none; run COLMAP's mapper, or remove sparse/"
    ):
        load(scene)


@pytest.mark.parametrize("part", ["cameras", "images", "points3D"])
def test_a_missing_file_of_the_model(scene: Path, part: str) -> None:
    (scene / f"sparse/0/{part}.bin").unlink()
    with pytest.raises(
        GagsError, match=rf"{part}\.bin: expected the sparse model's three files .*, found no {part}\.bin"
    ):
        load(scene)


@pytest.mark.parametrize("part", ["cameras", "images", "points3D"])
def test_a_binary_file_cut_off_anywhere(scene: Path, part: str) -> None:
    path = scene / f"sparse/0/{part}.bin"
    whole = path.read_bytes()
    # every length of the short files; of the long ones every 17th, the ends included
    for length in {0, *range(0, len(whole), 1 if len(whole) < 500 else 17), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(
            GagsError, match=rf"{part}\.bin: expected a whole COLMAP file, .* cut off after {length} bytes"
        ):
            load(scene)


@pytest.mark.parametrize("part", ["cameras", "images", "points3D"])
def test_a_binary_file_with_more_than_its_records(scene: Path, part: str) -> None:
    path = scene / f"sparse/0/{part}.bin"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(GagsError, match=rf"{part}\.bin: expected \d+ bytes for its \d+ records, found \d+ bytes"):
        load(scene)


@pytest.mark.parametrize("part", ["cameras", "images", "points3D"])
def test_a_text_file_cut_off_anywhere(tmp_path: Path, part: str) -> None:
    synthesize(tmp_path / "scene", binary=False)
    path = tmp_path / f"scene/sparse/0/{part}.txt"
    whole = path.read_text()
    after_header = whole.rindex("\n#") + 3
    line_ends = [i + 1 for i, character in enumerate(whole) if character == "\n" and i >= after_header]
    in_line = r"expected a line end after the last line, found .*; the file is cut off"
    between_lines = r"expected \d records, as its header says, found \d|expected \d\d records, .* found \d"
    in_pair = "expected a line of COLMAP's text format, found .*; the file is cut off"
    for length in {*range(after_header, len(whole), 1 if len(whole) < 800 else 23), *line_ends, len(whole) - 1}:
        if length == len(whole):
            continue
        path.write_text(whole[:length])
        message = f"{between_lines}|{in_pair}" if whole[length - 1] == "\n" else in_line
        with pytest.raises(GagsError, match=rf"{part}\.txt: ({message})"):
            load(tmp_path / "scene")


def test_a_text_file_of_another_program_needs_no_count(tmp_path: Path) -> None:
    synthesize(tmp_path / "scene", binary=False)
    for path in (tmp_path / "scene/sparse/0").glob("*.txt"):
        path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines() if not line.startswith("#")))
    assert len(load(tmp_path / "scene").views) == 6


def test_an_unknown_camera_model(scene: Path) -> None:
    path = scene / "sparse/0/cameras.bin"
    data = bytearray(path.read_bytes())
    data[12:16] = struct.pack("<i", 99)
    path.write_bytes(bytes(data))
    with pytest.raises(
        GagsError, match=r"cameras\.bin: expected a camera model that COLMAP knows \(.*PINHOLE.*\), found 99"
    ):
        load(scene)


def test_no_points(scene: Path) -> None:
    (scene / "sparse/0/points3D.bin").write_bytes(struct.pack("<Q", 0))
    with pytest.raises(
        GagsError, match=r"expected sparse 3D points, found none; run COLMAP's mapper or point_triangulator"
    ):
        load(scene)


@pytest.mark.parametrize("with_model", [True, False])
def test_a_single_view(scene: Path, with_model: bool) -> None:
    if not with_model:
        shutil.rmtree(scene / "sparse")
    with pytest.raises(GagsError, match=r"expected two or more views, found 1 after keeping every 6th; a scene needs"):
        load(scene, SceneConfig(every=6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("b.png", "a.png"), "expected every image once, found 'a.png' twice"),
        (lambda text: text.replace("a.png", "../../a.png"), "expected names of files inside the images folder"),
        (lambda text: text.replace("1 a.png", "5 a.png"), "taken by camera 5, expected one of the 1 in cameras.txt"),
        (lambda text: text.replace("1 1 0 0 0 0", "1 0 0 0 0 0"), "'a.png': expected a rotation and a position, found"),
        (lambda text: text.replace("\n\n", "\n"), "expected a line of COLMAP's text format"),
        (lambda text: text[:-1], "expected a line of COLMAP's text format, found '2 1 0 0 0 0 0 0 1 b.png'"),
    ],
)
def test_images_that_cannot_be(tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    scene = tmp_path / "scene"
    write_text_model(scene, "1 PINHOLE 40 30 33 33 20 15", ["a.png", "b.png"], np.ones((3, 3)))
    path = scene / "sparse/0/images.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(GagsError) as caught:
        load(scene)
    assert str(path) in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ("1 PINHOLE 40 30 33 33 20", "expected a line of COLMAP's text format"),
        ("1 PINHOLE 0 30 33 33 20 15", "expected a camera with a size in pixels, found 0x30"),
        ("1 PINHOLE 40 30 -33 33 20 15", "a focal length above 0"),
        ("1 PINHOLE 40 30 nan 33 20 15", "expected finite camera parameters"),
        ("1 MAGIC 40 30 33 33 20 15", "expected a camera model that COLMAP knows"),
    ],
)
def test_cameras_that_cannot_be(tmp_path: Path, camera: str, message: str) -> None:
    write_text_model(tmp_path / "scene", camera, ["a.png", "b.png"], np.ones((3, 3)))
    with pytest.raises(GagsError) as caught:
        load(tmp_path / "scene")
    assert "cameras.txt" in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("model", ["EQUIRECTANGULAR"])
def test_panoramas_are_no_pinhole_pictures(tmp_path: Path, model: str) -> None:
    write_text_model(tmp_path / "scene", f"1 {model} 40 20 40 20", ["a.png", "b.png"], np.ones((3, 3)))
    (tmp_path / "scene/images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 20)).save(tmp_path / "scene/images" / name)
    with pytest.raises(GagsError, match=r"EQUIRECTANGULAR: .* cut them into perspective views"):
        load(tmp_path / "scene")


def test_points_at_infinity(tmp_path: Path) -> None:
    write_text_model(tmp_path / "scene", "1 PINHOLE 40 30 33 33 20 15", ["a.png", "b.png"], np.full((3, 3), np.inf))
    with pytest.raises(GagsError, match=r"points3D\.txt: expected finite coordinates"):
        load(tmp_path / "scene")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SceneConfig(every=0), r"--scene\.every: expected at least 1, found 0"),
        (SceneConfig(hold_out_every=1), r"--scene\.hold-out-every: expected 0, or at least 2, found 1"),
        (SceneConfig(max_side_px=0), r"--scene\.max-side-px: expected at least 16, found 0"),
    ],
)
def test_settings_that_cannot_be(scene: Path, config: SceneConfig, message: str) -> None:
    with pytest.raises(GagsError, match=message):
        load(scene, config)


# what is kept


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("max_side_px", [None, 20])
def test_a_kept_scene_reads_back_and_stands_alone(scene: Path, tmp_path: Path, max_side_px: int | None) -> None:
    first = pictures(scene)[0]
    before = load(scene, SceneConfig(max_side_px=max_side_px, hold_out_every=3))
    images = [view.image() for view in before.views]
    original = first.read_bytes()
    save_scene(before, tmp_path / "kept")
    save_scene(before, tmp_path / "kept twice")
    assert contents(tmp_path / "kept") == contents(tmp_path / "kept twice")
    shutil.rmtree(scene)
    after = read_scene(tmp_path / "kept")
    assert torch.equal(before.points, after.points) and torch.equal(before.point_colors, after.point_colors)
    for a, b, image in zip(before.views, after.views, images, strict=True):
        assert (a.name, a.held_out) == (b.name, b.held_out) and same_cameras(a.camera, b.camera)
        # the pictures are .png: nothing is lost
        assert torch.equal(b.image(), image)
        assert image_size(b.image_path) == (b.camera.width, b.camera.height)
    copied = (tmp_path / "kept/images" / before.views[0].name).read_bytes() == original
    assert copied == (max_side_px is None)


def test_a_shrunk_jpeg_stays_a_jpeg_and_a_tiff_becomes_one(tmp_path: Path) -> None:
    scene = tmp_path / "scene"
    write_text_model(scene, "1 PINHOLE 40 30 33 33 20 15", ["sub/a.JPG", "b.tif"], np.ones((3, 3)))
    (scene / "images/sub").mkdir(parents=True)
    v, u = np.mgrid[:30, :40]
    for name in ("sub/a.JPG", "b.tif"):
        Image.fromarray(np.stack([6 * u, 8 * v, 3 * u + 4 * v], -1).astype(np.uint8)).save(scene / "images" / name)
    for side, tiff in ((20, "images/b.tif.jpg"), (40, "images/b.tif")):
        before = load(scene, SceneConfig(max_side_px=side))
        save_scene(before, tmp_path / f"kept {side}")
        assert {"images/sub/a.JPG", tiff} < set(contents(tmp_path / f"kept {side}"))
        for a, b in zip(before.views, read_scene(tmp_path / f"kept {side}").views, strict=True):
            assert a.name == b.name and (a.image().int() - b.image().int()).abs().max() <= 6
    assert (tmp_path / "kept 20/images/b.tif.jpg").read_bytes().startswith(b"\xff\xd8\xff")


def test_keeping_goes_on_where_it_stopped(scene: Path, tmp_path: Path) -> None:
    loaded = load(scene, SceneConfig(max_side_px=20))
    save_scene(loaded, tmp_path / "whole")
    save_scene(loaded, tmp_path / "killed")
    saved = sorted((tmp_path / "killed/images").rglob("*.png"))
    saved[1].unlink()
    (tmp_path / "killed/views.json").unlink()
    before = saved[0].stat().st_mtime_ns
    save_scene(loaded, tmp_path / "killed")
    assert saved[0].stat().st_mtime_ns == before
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_kept_scene_that_was_damaged(scene: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    save_scene(load(scene), kept)
    whole = json.loads((kept / "views.json").read_text())
    (kept / whole[2]["image"]).unlink()
    with pytest.raises(
        GagsError, match=r"expected the picture of view .*, found no such file; delete .* and run again"
    ):
        read_scene(kept)
    (kept / "views.json").write_text(json.dumps([{"name": "a"}]))
    with pytest.raises(GagsError, match=r"views\.json: expected the views that gags wrote, found something else"):
        read_scene(kept)
    (kept / "views.json").unlink()
    with pytest.raises(GagsError, match=r"views\.json: expected JSON, found no such file"):
        read_scene(kept)


@pytest.mark.real
def test_bonsai_loads(scenes_dir: Path, tmp_path: Path) -> None:
    scene = load_scene(scenes_dir / "bonsai", SceneConfig(hold_out_every=8), tmp_path)
    truth = pycolmap.Reconstruction(scenes_dir / "bonsai/sparse/0")
    assert (len(scene.views), len(scene.points)) == (truth.num_images(), truth.num_points3D())
    for view in scene.views[::10]:
        expected = truth.find_image_with_name(view.name).cam_from_world().matrix()
        np.testing.assert_allclose(view.camera.T_camera_world[:3], expected, atol=1e-5)
    # the sparse points have the colours of the pictures they were made from, where they are seen
    view = scene.views[0]
    points = [truth.points3D[p.point3D_id] for p in truth.find_image_with_name(view.name).points2D if p.has_point3D()]
    xyz = torch.tensor(np.array([point.xyz for point in points]), dtype=torch.float32)
    xy_px, depth = project(view.camera, xyz)
    assert (depth > 0).all()
    inside = ((xy_px > 0) & (xy_px < torch.tensor([view.camera.width, view.camera.height]))).all(-1)
    columns, rows = xy_px[inside].long().T
    colors = torch.tensor(np.array([point.color for point in points]))[inside].int()
    difference = (read_image(view.image_path)[rows, columns].int() - colors).abs().float()
    assert difference.median() < 15
