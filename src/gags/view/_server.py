"""serve(): a run's page, for as many browsers as come."""

from __future__ import annotations

import contextlib
import io
import socket
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gags.distill import LanguageField
from gags.errors import GagsError
from gags.geometry import Camera
from gags.query import VOCABULARY, QueryConfig
from gags.runs import Run
from gags.settings import Count, Side, check_settings
from gags.view._frame import DisplayFrame, display_frame, first_view, vertical_fov
from gags.view._search import SearchIndex
from gags.view._session import Session, Shared
from gags.view._splats import make_chunks

if TYPE_CHECKING:
    import viser

_THUMBNAIL_PX = 160


@dataclass(frozen=True)
class ViewConfig:
    """Where the page is served, and how much it shows."""

    host: str = "127.0.0.1"
    """Address to listen at: 127.0.0.1 is this machine alone, 0.0.0.0 its whole network."""
    port: int = 8080
    """Port to listen at; if it is taken, the next free one."""
    share_off: bool = False
    """Take away the page's button that asks viser's server on the internet for a public address."""
    max_splats: Count = 500_000
    """Splats that a browser draws, at most. Larger scenes are thinned for display; searches and files have them all."""
    max_side_px: Side = 1600
    """Longer side of the server's own pictures (faithful mode) in pixels, at most."""


@dataclass(frozen=True)
class Page:
    """A page that is being served."""

    server: viser.ViserServer
    index: Future[SearchIndex]
    """Done as soon as the page can answer questions."""
    pool: ThreadPoolExecutor

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return page_url(self.server)

    def stop(self) -> None:
        """Serve no longer. Pages that are open say that the connection is lost."""
        close_server(self.server)
        self.pool.shutdown(wait=False, cancel_futures=True)


def serve(
    run: Run,
    field: LanguageField,
    query_config: QueryConfig,
    config: ViewConfig,
    vocabulary: Sequence[str] = VOCABULARY,
) -> Page:
    """Serve the page of a run's field; returns at once.

    Every browser has a state of its own: what one asks, selects and looks at, the others do not see.

    Raises:
        GagsError: a setting out of range; the address is none of this machine's.
    """
    check_settings(config)
    check_settings(query_config)
    views = run.scene.views
    frame = display_frame(views)
    chunks = make_chunks(field.gaussians, frame, config.max_splats)
    server = open_server(config, f"gags: {run.folder.root.name}")
    pool = ThreadPoolExecutor(2, "view")
    thumbnails = pool.submit(lambda: [view.image(_THUMBNAIL_PX) for view in views])
    # the encoder is opened there as well: it takes as long as the decoding
    index = pool.submit(lambda: SearchIndex.build(field, run.encoder, query_config))
    shown, total = sum(len(chunk.ids) for chunk in chunks), len(field.gaussians)
    title = f"{run.folder.root.name}: {total:,} splats, {len(views)} photographs"
    if shown < total:
        title += f"; {shown:,} splats are drawn, searches have all"
    shared = Shared(
        title=title,
        scene=run.scene,
        gaussians=field.gaussians,
        frame=frame,
        chunks=chunks,
        index=index,
        thumbnails=thumbnails,
        vocabulary=tuple(vocabulary),
        max_side_px=config.max_side_px,
    )
    sessions: dict[int, Session] = {}
    set_stage(server, frame, first_view(views, field.gaussians.means).camera)

    @server.on_client_connect
    def _(client: viser.ClientHandle) -> None:
        sessions[client.client_id] = Session(client, shared)

    @server.on_client_disconnect
    def _(client: viser.ClientHandle) -> None:
        session = sessions.pop(client.client_id, None)
        if session is not None:
            session.close()

    return Page(server, index, pool)


def open_server(config: ViewConfig, label: str) -> viser.ViserServer:
    """A server without anything to see.

    Raises:
        GagsError: the address is none of this machine's.
    """
    import viser

    if not 0 <= config.port <= 65535:
        raise GagsError(f"--port: expected 0 to 65535, found {config.port}")
    try:
        with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
            probe.bind((config.host, 0))
    except OSError as error:
        raise GagsError(
            f"--host {config.host}: expected an address of this machine, found another ({error}); use 127.0.0.1 or 0.0.0.0"
        ) from error
    # a browser may close at any moment, also while something is on its way to it
    warnings.filterwarnings("ignore", message="Queued a .* on a closed connection", category=UserWarning)
    with _without_stdout():
        server = viser.ViserServer(config.host, config.port, label=label, verbose=False)
    # dark: splats are trained before black, and what little shines through them would be white
    server.gui.configure_theme(
        control_width="large", dark_mode=True, show_logo=False, show_share_button=not config.share_off
    )
    server.gui.main_panel.dock_right()
    return server


def close_server(server: viser.ViserServer) -> None:
    """Serve no longer."""
    with _without_stdout():
        server.stop()


def _without_stdout() -> contextlib.AbstractContextManager[Any]:
    """viser greets on stdout, and takes its leave there: it is kept for results."""
    return contextlib.redirect_stdout(io.StringIO())


def set_stage(server: viser.ViserServer, frame: DisplayFrame, camera: Camera) -> None:
    """Which way is up, and where a page opens: where a photograph was taken."""
    server.scene.set_up_direction(frame.up_world.numpy())
    pose = frame.pose(camera)
    server.initial_camera.position = pose.position.astype(np.float64)
    server.initial_camera.look_at = pose.look_at.astype(np.float64)
    server.initial_camera.up = frame.up_world.numpy().astype(np.float64)
    server.initial_camera.fov = vertical_fov(camera)


def page_url(server: viser.ViserServer) -> str:
    """Where a browser on this machine finds a server."""
    host = server.get_host()
    return f"http://{'localhost' if host in ('0.0.0.0', '127.0.0.1') else host}:{server.get_port()}"
