"""LiveView: a training, watched in a browser while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable

from jaxtyping import Float, UInt8
from torch import Tensor

from gags.gaussians import Gaussians
from gags.images import feature_colors
from gags.scene import Scene
from gags.view._colors import plain_colors, splat_colors
from gags.view._controls import note
from gags.view._frame import DisplayFrame, display_frame, first_view
from gags.view._server import ViewConfig, close_server, open_server, page_url, set_stage
from gags.view._splats import SplatCloud, make_chunks
from gags.view._state import ViewState

MAX_SHARE = 0.02
"""Of the training's time that watching may cost here; packing for browsers, in another thread, costs about as much again."""


class Throttle:
    """Lets through so few updates that they take a small share of the time."""

    def __init__(self, max_share: float = MAX_SHARE, clock: Callable[[], float] = time.perf_counter) -> None:
        self._max_share, self._clock = max_share, clock
        self._next = -float("inf")

    def run(self, update: Callable[[], None]) -> bool:
        """Do an update, unless the last one was too short ago for what it cost; whether it was done."""
        started = self._clock()
        if started < self._next:
            return False
        update()
        ended = self._clock()
        self._next = ended + (ended - started) * (1 / self._max_share - 1)
        return True


class LiveView:
    """The page of a run in the making: what ``pipeline.run`` tells a watcher. All browsers see the same."""

    def __init__(self, config: ViewConfig) -> None:
        """Raises GagsError as ``serve``."""
        self._config = config
        self._server = open_server(config, "gags run")
        self._words = self._server.gui.add_html(note("The training begins."))
        self._frame: DisplayFrame | None = None
        self._splats: SplatCloud | None = None
        self._throttle = Throttle()

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return page_url(self._server)

    def scene(self, scene: Scene) -> None:
        """The cameras are known."""
        self._frame = display_frame(scene.views)
        set_stage(self._server, self._frame, first_view(scene.views, scene.points).camera)

    def splats(self, gaussians: Gaussians, words: str) -> None:
        """The Gaussians at some step of their training."""
        self._show(gaussians, lambda: plain_colors(gaussians), words)

    def features(self, gaussians: Gaussians, features: Float[Tensor, "gaussian d"], words: str) -> None:
        """The features at some step of their training, as three principal components."""
        self._show(gaussians, lambda: feature_colors(features[None])[0], words)

    def words(self, words: str) -> None:
        """What is being done."""
        self._words.content = note(words)

    def stop(self) -> None:
        """Serve no longer."""
        close_server(self._server)

    def _show(self, gaussians: Gaussians, colors: Callable[[], UInt8[Tensor, "gaussian 3"]], words: str) -> None:
        """Replace what is shown, unless it was replaced too short ago; nothing is before the cameras are known."""
        frame = self._frame
        if frame is None:
            return

        def update() -> None:
            chunks = make_chunks(gaussians, frame, self._config.max_splats)
            rgba = splat_colors(ViewState(), colors(), gaussians.opacities, None, None)
            with self._server.atomic():
                if self._splats is not None:
                    self._splats.remove()
                self._splats = SplatCloud(self._server.scene, chunks, rgba)
            self.words(words)

        self._throttle.run(update)
