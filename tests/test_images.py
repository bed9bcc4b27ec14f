"""Pictures in and out, colours and drawings: round trips, conventions of position, and files that are damaged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from gags.errors import GagsError
from gags.geometry import Camera, project
from gags.images import (
    colormap,
    depth_colors,
    draw_box,
    draw_mask,
    draw_point,
    feature_colors,
    image_size,
    overlay,
    read_image,
    resize_image,
    write_image,
)

HEIGHT, WIDTH = 23, 37


@pytest.fixture
def noise() -> UInt8[Tensor, "height width 3"]:
    return torch.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def smooth() -> UInt8[Tensor, "height width 3"]:
    v, u = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([6 * u, 10 * v, 3 * u + 5 * v], dim=-1).to(torch.uint8)


# files


def test_png_keeps_every_pixel_and_equal_pictures_give_equal_bytes(
    tmp_path: Path, noise: UInt8[Tensor, "height width 3"]
) -> None:
    for name in ("a.png", "b.PNG"):
        write_image(tmp_path / name, noise)
    assert torch.equal(read_image(tmp_path / "a.png"), noise)
    assert image_size(tmp_path / "a.png") == (WIDTH, HEIGHT)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.PNG").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.PNG"]


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG"])
def test_jpeg_keeps_smooth_pictures_nearly(tmp_path: Path, name: str, smooth: UInt8[Tensor, "height width 3"]) -> None:
    write_image(tmp_path / name, smooth)
    assert (tmp_path / name).read_bytes().startswith(b"\xff\xd8\xff")
    assert (read_image(tmp_path / name).int() - smooth.int()).abs().max() <= 6


def test_orientation_is_left_as_stored(tmp_path: Path, smooth: UInt8[Tensor, "height width 3"]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth.numpy()).save(tmp_path / "turned.png", exif=exif)
    assert image_size(tmp_path / "turned.png") == (WIDTH, HEIGHT)
    assert torch.equal(read_image(tmp_path / "turned.png"), smooth)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str, smooth: UInt8[Tensor, "height width 3"]) -> None:
    picture = Image.fromarray(smooth.numpy()).convert(mode)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png").numpy(), np.asarray(picture.convert("RGB")))


def test_sixteen_bit_grey_keeps_its_upper_eight_bits(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png").numpy()
    assert all(np.array_equal(image[..., channel], grey >> 8) for channel in range(3))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file(tmp_path: Path, suffix: str, share: float, noise: UInt8[Tensor, "height width 3"]) -> None:
    path = tmp_path / f"cut{suffix}"
    write_image(path, noise)
    whole = path.read_bytes()
    # a JPEG of this size is half header: the share is of what follows it
    start = max(whole.find(b"\xff\xda"), 60)
    path.write_bytes(whole[: start + int(share * (len(whole) - start))])
    with pytest.raises(
        GagsError, match=r"cut\.\w+: expected a complete picture of 37x23 .* truncated or damaged .* copy"
    ):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, image_size])
def test_a_file_that_is_no_picture(tmp_path: Path, read: object) -> None:
    assert callable(read)
    for content in (b"", b"\xff\xd8\xff", b"not a picture"):
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(GagsError, match=r"a\.jpg: expected a picture \(JPEG or PNG\), found something else or"):
            read(tmp_path / "a.jpg")
    with pytest.raises(GagsError, match=r"b\.jpg: expected a picture, found no such file; check the name"):
        read(tmp_path / "b.jpg")
    with pytest.raises(GagsError, match=r"expected a picture \(JPEG or PNG\), found something else"):
        read(tmp_path)


def test_names_and_folders_that_cannot_be_written(tmp_path: Path, noise: UInt8[Tensor, "height width 3"]) -> None:
    with pytest.raises(
        GagsError, match=r"a\.webp: expected a name that ends in \.png, \.jpg or \.jpeg, found '\.webp'"
    ):
        write_image(tmp_path / "a.webp", noise)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(GagsError, match=r"a\.png: could not be written \(.*\)\. Choose a folder you may write to"):
        write_image(tmp_path / "file" / "a.png", noise)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_missing_folders_are_made(tmp_path: Path, noise: UInt8[Tensor, "height width 3"]) -> None:
    write_image(tmp_path / "new" / "a.png", noise)
    assert torch.equal(read_image(tmp_path / "new" / "a.png"), noise)


def test_a_picture_that_cannot_take_its_place_leaves_nothing(
    tmp_path: Path, noise: UInt8[Tensor, "height width 3"], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.png", noise)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(GagsError, match=r"a\.png: the disk is full .* Free some space"):
        write_image(tmp_path / "a.png", 255 - noise)
    assert os.listdir(tmp_path) == ["a.png"]
    assert torch.equal(read_image(tmp_path / "a.png"), noise)


# sizes


def test_a_picture_of_its_size_is_not_touched(noise: UInt8[Tensor, "height width 3"]) -> None:
    assert resize_image(noise, WIDTH, HEIGHT) is noise


@pytest.mark.parametrize(("width", "height"), [(11, 7), (90, 60), (20, 40)])
def test_a_constant_stays_and_the_size_is_as_asked(width: int, height: int) -> None:
    image = torch.tensor([10, 120, 250], dtype=torch.uint8).expand(HEIGHT, WIDTH, 3).contiguous()
    resized = resize_image(image, width, height)
    assert resized.shape == (height, width, 3) and resized.dtype == torch.uint8
    assert (resized.int() - image[0, 0].int()).abs().max() <= 1


def test_shrinking_does_not_alias() -> None:
    stripes = (torch.arange(120) % 2 * 255).to(torch.uint8)[None, :, None].expand(90, 120, 3).contiguous()
    inner = resize_image(stripes, 24, 18)[2:-2, 2:-2].float()
    # stripes of a pixel, five to a pixel: a plain average leaves 2/5 or 3/5 of white, a picked pixel all or nothing
    assert (inner - 127.5).abs().max() < 30


@pytest.mark.parametrize("scale", [0.5, 0.37, 1.7])
def test_a_resized_camera_sees_the_resized_picture(scale: float) -> None:
    """A spot stays where the resized camera projects its point."""
    camera = Camera(torch.eye(4), 100.0, 90.0, 58.0, 47.0, 120, 90)
    point = torch.tensor([[0.13, -0.07, 1.0]])
    (x, y), *_ = project(camera, point)[0].tolist()
    v, u = np.mgrid[:90, :120] + 0.5
    spot = np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * 4.0**2))
    image = torch.from_numpy((255 * spot).astype(np.uint8)).unsqueeze(-1).repeat(1, 1, 3)
    resized = camera.resized(round(120 * scale), round(90 * scale))
    weight = resize_image(image, resized.width, resized.height)[..., 0].double().numpy()
    rows, columns = np.mgrid[: resized.height, : resized.width] + 0.5
    center = [(weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()]
    assert center == pytest.approx(project(resized, point)[0][0].tolist(), abs=0.05)


# colours


@pytest.mark.parametrize(
    ("name", "first", "last"), [("turbo", (48, 18, 59), (122, 4, 2)), ("viridis", (68, 1, 84), (253, 231, 37))]
)
def test_a_colour_map_runs_from_low_to_high(name: str, first: tuple[int, ...], last: tuple[int, ...]) -> None:
    values = torch.tensor([[-5.0, 2.0, 3.0, 4.0, 99.0, torch.nan, torch.inf]])
    colors = colormap(values, low=2.0, high=4.0, name=name)  # type: ignore[arg-type]
    assert tuple(colors[0, 0].tolist()) == tuple(colors[0, 1].tolist()) == first
    assert tuple(colors[0, 3].tolist()) == tuple(colors[0, 4].tolist()) == last
    assert tuple(colors[0, 2].tolist()) not in (first, last)
    assert colors[0, 5].tolist() == [0, 0, 0]
    # no jumps
    ramp = colormap(torch.linspace(0, 1, 1001)[None], name=name).int()  # type: ignore[arg-type]
    assert ramp.diff(dim=1).abs().max() <= 3


def test_a_colour_map_of_a_constant_is_finite() -> None:
    assert len(colormap(torch.full((3, 4), 2.0), low=2.0, high=2.0).reshape(-1, 3).unique(dim=0)) == 1


def test_heat_leaves_cold_places_grey_and_colours_hot_ones(noise: UInt8[Tensor, "height width 3"]) -> None:
    heat = torch.zeros(HEIGHT, WIDTH)
    heat[:, WIDTH // 2 :] = 1.0
    drawn = overlay(noise, heat, opacity=0.6)
    cold, hot = drawn[:, : WIDTH // 2], drawn[:, WIDTH // 2 :].float()
    assert bool((cold == cold[..., :1]).all())
    expected = 0.4 * noise[:, WIDTH // 2 :].float() + 0.6 * torch.tensor([122.0, 4.0, 2.0])
    assert (hot - expected).abs().max() <= 1
    assert torch.equal(overlay(noise, torch.full((HEIGHT, WIDTH), torch.nan)), overlay(noise, torch.zeros_like(heat)))


def test_feature_colours_do_not_change_with_rotation_shift_of_pixels_or_repetition() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([9.0, 5.0, 3.0, 0.1, 0.1])
    features = torch.randn(HEIGHT, WIDTH, 5, generator=generator) * spread + 1.0
    colors = feature_colors(features)
    assert colors.shape == (HEIGHT, WIDTH, 3) and torch.equal(colors, feature_colors(features))
    assert torch.equal(feature_colors(features.flip(0)).flip(0), colors)
    # the first component is the widest axis, positive where that axis is large
    assert torch.corrcoef(torch.stack([colors[..., 0].flatten().float(), features[..., 0].flatten()]))[0, 1] > 0.97
    assert colors.reshape(-1, 3).amin(dim=0).tolist() == [0, 0, 0]
    assert colors.reshape(-1, 3).amax(dim=0).tolist() == [255, 255, 255]


def test_empty_places_of_a_feature_map_are_black_and_do_not_count() -> None:
    features = torch.randn(HEIGHT, WIDTH, 6, generator=torch.Generator().manual_seed(1)) + 2.0
    emptied = torch.cat([features, torch.zeros(HEIGHT, 30, 6)], dim=1)
    colors = feature_colors(emptied)
    assert bool((colors[:, WIDTH:] == 0).all())
    assert torch.equal(colors[:, :WIDTH], feature_colors(features))
    assert bool((feature_colors(torch.zeros(4, 5, 6)) == 0).all())
    assert bool((feature_colors(torch.ones(4, 5, 6)) == 0).all())


@pytest.mark.parametrize("d", [1, 2, 3])
def test_narrow_features_have_colours_too(d: int) -> None:
    colors = feature_colors(torch.randn(HEIGHT, WIDTH, d, generator=torch.Generator().manual_seed(2)))
    assert colors.shape == (HEIGHT, WIDTH, 3)
    assert [int(colors[..., channel].max()) for channel in range(3)] == [255] * d + [0] * (3 - d)


def test_near_is_brighter_than_far_and_nothing_is_black() -> None:
    depth = torch.linspace(1.0, 8.0, WIDTH).repeat(HEIGHT, 1)
    depth[0] = 0.0
    depth[1] = torch.inf
    colors = depth_colors(depth).float()
    assert bool((colors[:2] == 0).all())
    brightness = colors[2].sum(dim=-1)
    assert bool((brightness.diff() <= 0).all()) and brightness[0] > brightness[-1] + 100
    # scale does not matter: scenes have no unit
    assert torch.equal(depth_colors(depth), depth_colors(depth * 64.0))
    assert bool((depth_colors(torch.zeros(3, 4)) == 0).all())


# drawings


def test_a_mask_is_tinted_inside_outlined_and_untouched_outside(noise: UInt8[Tensor, "height width 3"]) -> None:
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[4:15, 6:25] = True
    drawn = draw_mask(noise, mask, color=(0, 200, 0), opacity=0.5)
    assert torch.equal(drawn[~mask], noise[~mask])
    assert drawn[4, 6].tolist() == drawn[5, 7].tolist() == drawn[14, 24].tolist() == [0, 200, 0]
    inside = 0.5 * noise[6:13, 8:23].float() + 0.5 * torch.tensor([0.0, 200.0, 0.0])
    assert (drawn[6:13, 8:23].float() - inside).abs().max() <= 0.51
    assert torch.equal(draw_mask(noise, torch.zeros_like(mask)), noise)


def test_a_box_is_drawn_inside_its_edges(noise: UInt8[Tensor, "height width 3"]) -> None:
    drawn = draw_box(noise, (5, 3, 20, 13), color=(1, 2, 3), thickness_px=2)
    expected = noise.clone()
    expected[3:13, 5:20] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    expected[5:11, 7:18] = noise[5:11, 7:18]
    assert torch.equal(drawn, expected)
    # an empty box and one that leaves the picture are drawn as far as they go
    assert draw_box(noise, (4.0, 4.0, 4.0, 4.0)).shape == draw_box(noise, (-9, -9, 99, 99)).shape == noise.shape


def test_a_point_is_centred_on_its_position() -> None:
    image = torch.zeros(HEIGHT, WIDTH, 3, dtype=torch.uint8)
    for x, y in ((15.0, 11.0), (15.5, 10.5), (18.25, 9.75)):
        weight = draw_point(image, (x, y), color=(255, 255, 255), radius_px=4.0).double()[..., 0].numpy()
        rim = weight.min(where=weight > 0, initial=255)
        weight = np.where(weight > rim, weight - rim, 0.0)
        rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
        assert (weight * columns).sum() / weight.sum() == pytest.approx(x, abs=0.1)
        assert (weight * rows).sum() / weight.sum() == pytest.approx(y, abs=0.1)


def test_drawing_leaves_its_argument_alone(noise: UInt8[Tensor, "height width 3"]) -> None:
    before = noise.clone()
    draw_box(noise, (1, 1, 9, 9))
    draw_point(noise, (8.0, 8.0))
    draw_mask(noise, torch.ones(HEIGHT, WIDTH, dtype=torch.bool))
    overlay(noise, torch.ones(HEIGHT, WIDTH))
    assert torch.equal(noise, before)
