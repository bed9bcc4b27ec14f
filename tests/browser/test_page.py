"""The page of ``gags view`` in a real browser: what a person does, and the pixels that person sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from PIL import Image
from playwright.sync_api import BrowserContext
from torch import Tensor

import tiny
from browser_client import WAIT_S, BrowserClient
from gags.cli import main
from gags.gaussians import read_splats
from gags.runs import Run
from gags.scene import read_camera
from page_client import free_port

pytestmark = pytest.mark.browser

Visit = Callable[[], BrowserClient]


def ball(name: str) -> Float[Tensor, " 3"]:
    """Centre of a ball of the tiny scene."""
    x, z = tiny.BALLS[name]
    return torch.tensor([x, -tiny.RADIUS, z])


RED, GREEN, BLUE = (ball(f"{name} ball") for name in ("red", "green", "blue"))


def is_orange(color: np.ndarray) -> bool:
    """The tint of a first phrase."""
    return bool(color[0] > color[1] + 20 and color[0] > color[2] + 20)


def is_grey(color: np.ndarray) -> bool:
    """As the rest is beside what was found, and as the floor is."""
    return bool(color.max() - color.min() < 12 and not is_background(color))


def is_background(color: np.ndarray) -> bool:
    """Nearly black: nothing is drawn there."""
    return bool(color.max() < 40)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean of absolute differences."""
    return float(np.abs(one.astype(float) - other).mean())


def wait_for(client: BrowserClient, looks: Callable[[np.ndarray], bool], where: Float[Tensor, " 3"]) -> None:
    """Until both what the browser draws and the screenshot look so at a place."""
    for picture in (client.render, client.screenshot):
        seen: list[np.ndarray] = []

        def looked(picture=picture, seen=seen) -> bool:
            seen.append(client.color(picture(), where))
            return looks(seen[-1])

        client.until(looked, lambda seen=seen: f"{looks.__name__} at {where.tolist()}, found {seen[-1]}")


def test_a_phrase_lights_up_its_object_and_the_controls_follow(visit: Visit) -> None:
    client = visit()
    for place, channel in ((RED, 0), (GREEN, 1), (BLUE, 2)):
        assert client.color(client.render(), place).argmax() == channel
        assert client.color(client.screenshot(), place).argmax() == channel

    client.ask("blue ball")
    client.says("score")
    wait_for(client, is_orange, BLUE)
    wait_for(client, is_grey, GREEN)

    client.drag_slider(1.0)
    client.says("nothing above the threshold")
    wait_for(client, is_grey, BLUE)
    # a whole drag is one step
    client.press("Undo")
    wait_for(client, is_orange, BLUE)

    client.ask("red ball")
    wait_for(client, is_orange, RED)
    found = client.found()
    client.tick("Largest part")
    client.until(lambda: 0 < client.found() < found, "what is not connected to be left out")
    client.press("Undo")
    client.until(lambda: client.found() == found, "all parts")
    client.press("Undo")
    wait_for(client, is_grey, RED)

    client.choose("What is found", "isolate")
    wait_for(client, is_background, GREEN)
    assert client.color(client.screenshot(), BLUE).argmax() == 2
    client.tick("Invert")
    # the floor behind it
    wait_for(client, is_grey, BLUE)
    assert client.color(client.screenshot(), GREEN).argmax() == 1
    client.press("Undo")
    wait_for(client, is_background, GREEN)
    client.press("Undo")
    wait_for(client, is_orange, BLUE)
    client.press("Redo")
    wait_for(client, is_background, GREEN)

    client.ask("red ball")
    wait_for(client, lambda color: color.argmax() == 0 and not is_background(color), RED)
    wait_for(client, lambda color: color.argmax() != 2 or is_background(color), BLUE)
    client.press("blue ball")
    wait_for(client, lambda color: color.argmax() == 2 and not is_background(color), BLUE)
    assert client.text("Find") == "blue ball"


def test_a_click_names_what_it_hits_and_a_photograph_is_flown_to(visit: Visit, run: Run) -> None:
    client = visit()
    for name in ("blue", "red"):
        client.click(ball(f"{name} ball"))
        client.says(f"That is: {name} ball")
    client.unfold("What is it?")
    client.write("Vocabulary", "thing")

    def is_a_thing() -> bool:
        # a click may overtake what is typed
        client.click(ball("blue ball"))
        return "That is: thing" in client.words()

    client.until(is_a_thing, "the new vocabulary")

    # from farther away the photographs on the other side are in sight
    near, seen = client.screenshot(), client.server_side.camera
    seen.position = seen.look_at + 2 * (seen.position - seen.look_at)
    client.until(lambda: difference(client.screenshot(), near) > 2, "the browser to go back")
    start, width, height = client.camera().center_world, client.camera().width, client.camera().height
    photographs = {}
    for view in run.scene.views:
        photograph = client.middle_of_photograph(view.camera)
        x, y = client.pixel(photograph)
        if 20 < x < width - 20 and 20 < y < height - 20:
            photographs[view.camera.center_world] = photograph
    there = max(photographs, key=lambda place: float((place - start).norm()))

    def has_landed() -> bool:
        here = client.camera().center_world
        if float((here - start).norm()) < 1e-2:
            # a browser that is still drawing the last move loses a click
            client.click(photographs[there])
            client.tab.wait_for_timeout(2000)
        return float((here - there).norm()) < 1e-2

    client.until(has_landed, "the flight to land")


def test_what_the_colours_say_can_be_chosen(visit: Visit) -> None:
    client = visit()
    plain = client.screenshot()
    for display in ("depth", "feature", "granularity"):
        client.choose("Colours", display)
        client.until(lambda: difference(client.screenshot(), plain) > 5, f"colours of {display}")
    levels = client.color(client.screenshot(), GREEN)
    client.choose("Colours", "rgb")
    client.until(lambda: difference(client.screenshot(), plain) < 2, "plain colours")
    # red, green, blue in the shares of the three levels
    assert abs(float(levels.sum()) - 255) < 40

    client.tick("Faithful")
    client.until(lambda: difference(client.screenshot(), plain) > 0.5, "the server's picture")
    assert client.color(client.screenshot(), GREEN).argmax() == 1
    client.tick("Faithful")

    client.ask("blue ball")
    client.says("score")
    client.choose("What is found", "isolate")
    wait_for(client, is_background, GREEN)
    client.choose("Colours", "relevancy")
    client.says("red fits the question")
    wait_for(client, is_orange, BLUE)


def test_files_come_down_and_a_saved_camera_is_asked_from(
    visit: Visit, run: Run, tmp_path: Path, true_models: None, capsys: pytest.CaptureFixture[str]
) -> None:
    client = visit()
    client.unfold("Save")
    client.choose("What", "splats .ply")
    client.press("Download")
    client.says("ask for something first")

    client.ask("green ball")
    client.says("score")
    saved = {
        what: client.download(what, tmp_path)
        for what in ("splats .ply", "splats .spz", "box and mask", "screenshot", "camera")
    }
    mask = json.loads(saved["box and mask"].read_text())["mask"]
    assert len(read_splats(saved["splats .ply"])) == len(read_splats(saved["splats .spz"])) == len(mask) > 0
    picture = np.asarray(Image.open(saved["screenshot"]).convert("RGB"))
    assert is_orange(client.color(picture, GREEN)) and is_grey(client.color(picture, BLUE))

    camera = read_camera(saved["camera"])
    torch.testing.assert_close(camera.T_camera_world, client.camera().T_camera_world)
    question = ["query", str(run.folder.root), "green ball", "--field", "galift", "--camera", str(saved["camera"])]
    assert main([*question, "--json", "--out", str(tmp_path / "query")]) == 0
    (hit,) = json.loads(capsys.readouterr().out)
    x, y = client.pixel(GREEN)
    assert np.hypot(hit["point_xy_px"][0] - x, hit["point_xy_px"][1] - y) < 0.15 * camera.height


def test_two_people_see_what_each_of_them_asked_and_a_reload_begins_anew(visit: Visit) -> None:
    first, second = visit(), visit()
    first.ask("green ball")
    second.ask("blue ball")
    wait_for(first, is_orange, GREEN)
    wait_for(second, is_orange, BLUE)
    assert is_grey(first.color(first.screenshot(), BLUE)) and is_grey(second.color(second.screenshot(), GREEN))
    first.reload()
    assert first.text("Find") == "" and first.color(first.screenshot(), BLUE).argmax() == 2
    assert is_orange(second.color(second.screenshot(), BLUE))


def test_mistakes_are_told_in_words(visit: Visit) -> None:
    client = visit()
    client.ask("-mug")
    client.says("expected a phrase to find, found only what not to find")
    client.ask("red ball")
    client.says("score")
    assert "expected a phrase" not in client.words()


@pytest.fixture
def serving(run: Run) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Starts 'gags view' as a program of its own, at a port."""
    tests = Path(__file__).parent.parent
    # the run's encoder is one of the tests
    script = "import sys, gags.runs, tiny; gags.runs.make_encoder = lambda *_: tiny.TrueEncoder(); import gags.cli; "
    script += "sys.exit(gags.cli.main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])}
    servers: list[subprocess.Popen[str]] = []

    def start(port: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, "view", str(run.folder.root), "--port", str(port)]
        servers.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
        assert servers[-1].stderr is not None
        said = next(line for line in servers[-1].stderr if "http://" in line)
        assert f"http://localhost:{port}" in said
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
        server.wait(WAIT_S)
        assert server.stderr is not None
        server.stderr.close()


def test_a_killed_server_leaves_a_page_that_comes_back_with_it(
    window: BrowserContext, serving: Callable[[int], subprocess.Popen[str]]
) -> None:
    port = free_port()
    server = serving(port)
    tab = window.new_page()
    tab.set_default_timeout(1000 * WAIT_S)
    tab.goto(f"http://localhost:{port}")
    tab.get_by_text("then press Enter").wait_for()
    server.kill()
    dimmed = tab.locator("div[style*='pointer-events: none'] textarea").first
    dimmed.wait_for()
    serving(port)
    dimmed.wait_for(state="detached")
    tab.get_by_text("then press Enter").wait_for()
    tab.locator("xpath=//label[normalize-space()='Find']/following::textarea[1]").press_sequentially("red ball\n")
    tab.get_by_text("score").wait_for()
    tab.close()
