"""A real browser, and a page for it: headless Chromium, drawn by its processor, shows the tiny scene."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

import tiny
from browser_client import BrowserClient
from gags.query import QueryConfig
from gags.runs import Run, open_run
from gags.view import Page, ViewConfig, serve
from gags.view._frame import display_frame
from page_client import free_port

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# without a graphics card WebGL is drawn by SwiftShader, which Chromium has to be asked for; smooth edges cost it half its time
_FLAGS = (
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--webgl-antialiasing-mode=none",
)
WINDOW = {"width": 660, "height": 300}
"""Small, since every pixel costs; the panel stands beside the scene all the same."""

VOCABULARY = (*tiny.BALLS, "floor")


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """Chromium without a window."""
    program = request.config.getoption("--chromium") or next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("no Chromium found: install it (apt-get install chromium), or say where it is with --chromium")
    # root may run Chromium without its sandbox alone
    flags = [*_FLAGS, "--no-sandbox"] if os.geteuid() == 0 else list(_FLAGS)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> Iterator[Run]:
    """The tiny scene's run, opened by an encoder that knows its truth."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gags.runs.make_encoder", lambda *_: tiny.TrueEncoder())
        yield open_run(tiny_run)


@pytest.fixture(scope="module")
def page(run: Run) -> Iterator[Page]:
    """What 'gags view' serves."""
    page = serve(run, run.field("galift"), QueryConfig(), ViewConfig(port=free_port()), VOCABULARY)
    yield page
    page.stop()


@pytest.fixture(scope="module")
def window(browser: Browser) -> Iterator[BrowserContext]:
    """What all tabs share: the page's program is fetched and compiled once."""
    context = browser.new_context(viewport=WINDOW, accept_downloads=True)
    yield context
    context.close()


@pytest.fixture
def visit(window: BrowserContext, page: Page, run: Run) -> Iterator[Callable[[], BrowserClient]]:
    """Opens the page: every call is another person with a tab of their own."""
    yield lambda: BrowserClient(window.new_page(), page, display_frame(run.scene.views))
    # a tab that stays open goes on drawing
    for tab in window.pages:
        tab.close()
