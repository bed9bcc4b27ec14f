"""A real browser, and a page for it: headless Chromium, drawn by its processor, shows the tiny scene."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

import tiny
from browser_client import BrowserClient
from gags.query import QueryConfig
from gags.runs import Run, open_run
from gags.view import Page, ViewConfig, serve
from gags.view._frame import display_frame
from page_client import free_port

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# without a graphics card WebGL is drawn by SwiftShader, which Chromium has to be asked for
_FLAGS = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")

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


@pytest.fixture
def visit(browser: Browser, page: Page, run: Run) -> Iterator[Callable[[], BrowserClient]]:
    """Opens the page: every call is another person with a browser of their own."""
    contexts = []

    def open_page() -> BrowserClient:
        contexts.append(browser.new_context(viewport={"width": 720, "height": 380}, accept_downloads=True))
        return BrowserClient(contexts[-1].new_page(), page, display_frame(run.scene.views))

    yield open_page
    for context in contexts:
        context.close()
