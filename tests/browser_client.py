"""What a person does with a page of ``gags view``, done in a real browser that draws."""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import viser
from jaxtyping import Float, UInt8
from PIL import Image
from playwright.sync_api import Locator
from playwright.sync_api import Page as Tab
from torch import Tensor

from gags.geometry import Camera, project
from gags.view import Page
from gags.view._frame import DisplayFrame, vertical_fov
from gags.view._session import FRUSTUM_SIZE

WAIT_S = 60.0
"""Longer than any answer takes on a machine that is busy with other things."""


class BrowserClient:
    """One tab: types, clicks and looks; and the server's end of its connection."""

    def __init__(self, tab: Tab, page: Page, frame: DisplayFrame) -> None:
        self.tab = tab
        self._page, self._frame = page, frame
        tab.set_default_timeout(1000 * WAIT_S)
        self._known = set(page.server.get_clients())
        tab.goto(page.url)
        self._arrive()

    def _arrive(self) -> None:
        """Wait until the page shows its splats and can be asked."""
        clients = self._page.server.get_clients
        self.until(lambda: bool(set(clients()) - self._known), "the browser to connect")
        self.server_side: viser.ClientHandle = clients()[max(clients())]
        self._known.add(self.server_side.client_id)
        self.says("then press Enter")
        # that there is no graphics card covers a part of the scene
        if (notice := self.tab.locator("#webgl-software-rendering button")).count():
            notice.click()
        self.until(lambda: self.tab.locator("[data-scene-node='/cameras']").count() > 0, "the photographs")
        self.until(lambda: bool((self.render() > 60).any()), "the splats to be drawn")

    def reload(self) -> None:
        """Load the page again, as F5 does."""
        self.tab.reload()
        self._arrive()

    def until(self, condition: Callable[[], bool], what: str | Callable[[], str]) -> None:
        """Wait for a condition, looking again and again."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if time.monotonic() > deadline:
                missing = what if isinstance(what, str) else what()
                raise AssertionError(f"waited in vain for {missing}; the page says: {self.words()}")
            # lets the browser's messages in, which a plain sleep would not
            self.tab.wait_for_timeout(50)

    # Hands

    def ask(self, question: str) -> None:
        """Type a question letter by letter, and Enter."""
        box = self._text_box("Find")
        box.fill("")
        box.press_sequentially(question)
        box.press("Enter")

    def write(self, label: str, text: str) -> None:
        """Replace the text in a box."""
        self._text_box(label).fill(text)

    def choose(self, label: str, option: str) -> None:
        """Choose from a dropdown."""
        self.tab.get_by_label(label, exact=True).click()
        self.tab.get_by_role("option", name=option, exact=True).click()

    def tick(self, label: str) -> None:
        """Change a checkbox."""
        self.tab.get_by_label(label, exact=True).click()

    def press(self, label: str) -> None:
        """Press a button."""
        self.tab.get_by_role("button", name=label, exact=True).click()

    def unfold(self, folder: str) -> None:
        """Open or close a folder of the panel."""
        self.tab.get_by_text(folder, exact=True).click()

    def drag_slider(self, share: float) -> None:
        """Drag the threshold to a share of its track."""
        self.tab.get_by_role("slider").scroll_into_view_if_needed()
        thumb = self.tab.get_by_role("slider").bounding_box()
        track = self.tab.get_by_role("slider").locator("xpath=../..").bounding_box()
        assert thumb is not None and track is not None
        y = thumb["y"] + thumb["height"] / 2
        self.tab.mouse.move(thumb["x"] + thumb["width"] / 2, y)
        self.tab.mouse.down()
        self.tab.mouse.move(track["x"] + share * track["width"], y, steps=6)
        self.tab.mouse.up()

    def click(self, point_world: Float[Tensor, " 3"]) -> None:
        """Click where a point of the scene is seen."""
        x, y = self.pixel(point_world)
        self._canvas().click(position={"x": x, "y": y})

    def download(self, what: str, folder: Path) -> Path:
        """Save something, as a file in a folder."""
        self.choose("What", what)
        with self.tab.expect_download() as started:
            self.press("Download")
        path = folder / started.value.suggested_filename
        started.value.save_as(path)
        return path

    # Eyes

    def words(self) -> str:
        """Everything that is written on the page."""
        return self.tab.locator("body").inner_text()

    def says(self, words: str) -> None:
        """Wait until the page says so."""
        self.until(lambda: words in self.words(), repr(words))

    def found(self) -> int:
        """Number of splats on the result card."""
        card = re.search(r"score [\d.]+, ([\d,]+) splats", self.words())
        return int(card[1].replace(",", "")) if card else 0

    def text(self, label: str) -> str:
        """What stands in a text box."""
        return self._text_box(label).input_value()

    def camera(self) -> Camera:
        """Where the page looks from, in the world."""
        seen = self.server_side.camera
        return self._frame.camera(seen.wxyz, seen.position, seen.fov, seen.image_width, seen.image_height)

    def pixel(self, point_world: Float[Tensor, " 3"]) -> tuple[float, float]:
        """Where a point of the scene is seen, in pixels of the canvas."""
        xy_px, depth = project(self.camera(), point_world[None])
        assert float(depth[0]) > 0
        return float(xy_px[0, 0]), float(xy_px[0, 1])

    def middle_of_photograph(self, camera: Camera) -> Float[Tensor, " 3"]:
        """Where the middle of a photograph stands in the scene: viser draws a pyramid of FRUSTUM_SIZE cubed, whatever its shape."""
        half_height = math.tan(vertical_fov(camera) / 2)
        shape = half_height * half_height * camera.width / camera.height / 3
        height_of_pyramid = FRUSTUM_SIZE / shape ** (1 / 3) / self._frame.scale
        return camera.center_world + height_of_pyramid * camera.T_camera_world[2, :3]

    def render(self) -> UInt8[np.ndarray, "height width 3"]:
        """What the browser draws, as it tells the server: the scene alone."""
        camera = self.server_side.camera
        size = camera.image_height, camera.image_width
        drawn = np.asarray(self.server_side.get_render(*size, transport_format="png", timeout=WAIT_S))
        # before black
        return (drawn[..., :3] * (drawn[..., 3:] / 255)).astype(np.uint8)

    def screenshot(self) -> UInt8[np.ndarray, "height width 3"]:
        """What a person sees in the scene's part of the page."""
        return np.asarray(Image.open(io.BytesIO(self._canvas().screenshot())).convert("RGB"))

    def color(self, picture: UInt8[np.ndarray, "height width 3"], point_world: Float[Tensor, " 3"]) -> np.ndarray:
        """Mean colour of a picture around a point of the scene."""
        x, y = (int(value) for value in self.pixel(point_world))
        return picture[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3).mean(axis=0)

    def _canvas(self) -> Locator:
        return self.tab.locator("canvas[data-engine]")

    def _text_box(self, label: str) -> Locator:
        return self.tab.locator(f"xpath=//label[normalize-space()='{label}']/following::textarea[1]")
