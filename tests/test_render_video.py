"""Videos hold the frames they were given; flights through a run are rendered whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import tiny
from gags.cli import main
from gags.errors import GagsError
from gags.images import read_image
from gags.pictures import painter, render_picture
from gags.query import QueryConfig
from gags.runs import open_run
from gags.scene import camera_to_json
from gags.video import write_video


def decoded(path: Path) -> Float[Tensor, "frame height width 3"]:
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        return torch.stack(
            [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        ).float()


def frames(count: int, height: int, width: int) -> list[Tensor]:
    """A red picture that turns green, with a blue square."""
    result = []
    for index in range(count):
        frame = torch.zeros(height, width, 3, dtype=torch.uint8)
        frame[..., 0], frame[..., 1] = 220 - 15 * index, 20 + 15 * index
        frame[10:20, 12:26] = torch.tensor([20, 40, 230], dtype=torch.uint8)
        result.append(frame)
    return result


def test_a_video_holds_its_frames(tmp_path: Path) -> None:
    given = frames(13, 36, 62)
    assert write_video(tmp_path / "a.mp4", iter(given), 24) == 13
    found = decoded(tmp_path / "a.mp4")
    assert found.shape == (13, 36, 62, 3)
    error = (found - torch.stack(given).float()).abs()
    assert float(error.mean(dim=(1, 2)).max()) < 4, "the mean colour of each frame stays"
    assert float(error[:, 14, 18].max()) < 12, "the square stays where it is"
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == 24


def test_an_odd_size_is_made_even_by_a_repeated_line(tmp_path: Path) -> None:
    write_video(tmp_path / "odd.mp4", frames(2, 37, 61), 10)
    assert decoded(tmp_path / "odd.mp4").shape == (2, 38, 62, 3)


def test_what_is_no_video_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(GagsError, match=r"ends in \.mp4, found '\.gif'; rename it"):
        write_video(tmp_path / "a.gif", frames(1, 36, 62), 24)
    with pytest.raises(GagsError, match="at least one frame, found none"):
        write_video(tmp_path / "a.mp4", [], 24)

    def growing() -> Iterator[Tensor]:
        yield from (*frames(1, 36, 62), *frames(1, 36, 64))

    with pytest.raises(GagsError, match="62x36 pixels like the first, found 64x36"):
        write_video(tmp_path / "a.mp4", growing(), 24)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("true_models")
def test_a_flight_shows_colour_and_relevancy_side_by_side(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, folder = tmp_path / "out.mp4", tmp_path / "frames"
    flags = ["--mode", "relevancy", "--phrase", "red ball", "--side-by-side", "--video", str(video), "--frames"]
    size = ["--seconds", "0.5", "--fps", "12", "--max-side-px", "64", "--out", str(folder)]
    assert main(["render", str(tiny_run), *flags, *size]) == 0
    assert capsys.readouterr().out.split() == [str(video), str(folder)]
    pictures = [read_image(path).float() for path in sorted(folder.iterdir())]
    found = decoded(video)
    assert found.shape == (6, 48, 128, 3) and len(pictures) == 6
    assert float((found - torch.stack(pictures)).mean(dim=(1, 2)).abs().max()) < 4
    # turbo: dark red, without any green, where the phrase fits best
    green = pictures[0][:, 64:, 1]
    tone = torch.from_numpy(tiny.ray_cast(tiny.cameras()[0].resized(64, 48)))
    on_red_ball = (tone == 1) | (tone == 2)
    assert float(green[on_red_ball].mean()) < 60 and float(green[~on_red_ball].mean()) > 120


@pytest.mark.usefixtures("true_models")
@pytest.mark.parametrize("path", ["ellipse", "file"])
def test_a_flight_without_a_video_is_a_folder_of_frames(path: str, tiny_run: Path, tmp_path: Path) -> None:
    cameras = tmp_path / "cameras.json"
    cameras.write_text(json.dumps([camera_to_json(camera) for camera in tiny.cameras()[2:5]]))
    name = str(cameras) if path == "file" else path
    out = tmp_path / "frames"
    flags = ["--path", name, "--mode", "depth", "--seconds", "1", "--fps", "3", "--out", str(out)]
    assert main(["render", str(tiny_run), *flags]) == 0
    assert [file.name for file in sorted(out.iterdir())] == [f"frame_{index:05d}.png" for index in range(3)]
    assert read_image(out / "frame_00001.png").shape == (tiny.HEIGHT, tiny.WIDTH, 3)


def test_heat_shows_the_find_in_colour_and_the_rest_in_grey(tiny_run: Path) -> None:
    run = open_run(tiny_run, tiny.TrueEncoder())
    camera = tiny.cameras()[0]
    picture = render_picture(run, camera, "heat", "green ball", None, QueryConfig()).float()
    colorful = picture.amax(dim=-1) - picture.amin(dim=-1)
    tone = torch.from_numpy(tiny.ray_cast(camera))
    on_green, on_others = (tone == 3) | (tone == 4), (tone == 1) | (tone == 2) | (tone > 4)
    assert float(colorful[on_green].median()) > 60 and float(colorful[on_others].median()) < 5


def test_an_unknown_path_and_a_file_of_something_else_are_named(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["render", str(tiny_run), "--path", "spiral"]) == 1
    assert "interpolate, ellipse or a JSON file of cameras, found no such file" in capsys.readouterr().err
    (tmp_path / "no.json").write_text("[]")
    assert main(["render", str(tiny_run), "--path", str(tmp_path / "no.json")]) == 1
    assert "expected a camera" in capsys.readouterr().err
    assert main(["render", str(tiny_run), "--phrase", "ball"]) == 1
    assert "--phrase 'ball': expected --mode relevancy or heat beside it, found rgb" in capsys.readouterr().err
    assert main(["render", str(tiny_run), "--video", str(tmp_path / "a.avi")]) == 1
    assert "expected a name that ends in .mp4, found '.avi'" in capsys.readouterr().err


def test_the_colours_of_a_flight_mean_the_same_in_every_frame(tiny_run: Path) -> None:
    run = open_run(tiny_run)
    near, *others = tiny.cameras()
    for mode in ("depth", "feature"):
        alone = painter(run, [near], mode, None, None, QueryConfig())(near)
        among_others = painter(run, [near, *others], mode, None, None, QueryConfig())(near)
        assert torch.equal(alone, render_picture(run, near, mode, None, None, QueryConfig()))
        assert not torch.equal(alone, among_others)
