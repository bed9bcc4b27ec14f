"""One browser's page: its controls, its state, its work. Pages know nothing of each other."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from scipy.spatial.transform import Rotation
from torch import Tensor

from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.geometry import Camera
from gags.query import Selection, best_view, split_vocabulary
from gags.scene import Scene
from gags.view._colors import base_colors, chosen_splats, plain_colors, splat_colors, visible_splats
from gags.view._controls import Controls
from gags.view._faithful import faithful_pictures
from gags.view._frame import DisplayFrame, Pose, close_pose, vertical_fov
from gags.view._saving import camera_bytes, picture_bytes, selection_bytes, splat_bytes
from gags.view._search import Answer, SearchIndex
from gags.view._splats import Chunk, SplatCloud
from gags.view._state import Display, History, parse_question
from gags.view._worker import Worker

if TYPE_CHECKING:
    import viser

logger = logging.getLogger(__name__)

_REST_S = 0.3
"""A camera that did not move for so long is at rest."""
_UNPACK_S = 0.25
"""A browser has unpacked a picture after so long; until then black would stand in its place."""
_STILL = 1e-6
"""Cameras that differ less, in display units and radians, are the same."""
_ASPECT_WEIGHT = 3e-5
"""Sides in whole pixels change a picture's shape by a hundredth or so: that is no move."""
_FLIGHT_STEPS, _FLIGHT_S = 18, 0.6
_BEST_PHRASES = 5
FRUSTUM_SIZE = 0.12
"""Of a camera in the scene, display units: the edge of a cube three times as large as its pyramid, as viser counts."""


@dataclass(frozen=True)
class Shared:
    """What all pages show."""

    title: str
    scene: Scene
    gaussians: Gaussians
    frame: DisplayFrame
    chunks: list[Chunk]
    index: Future[SearchIndex]
    """Ready for questions; while it is not, a page shows the scene."""
    thumbnails: Future[list[UInt8[Tensor, "height width 3"]]]
    """Of every view of the scene, in order."""
    vocabulary: tuple[str, ...]
    max_side_px: int
    """Longer side of the server's own pictures, at most."""


@dataclass(frozen=True)
class _Shown:
    """What the page shows now, of which state."""

    answer: Answer | None
    selected: Bool[Tensor, "phrase gaussian"] | None
    selections: list[Selection]


class Session:
    """A client of the server. Every slow thing happens in its worker; ``History`` is all that it remembers."""

    def __init__(self, client: viser.ClientHandle, shared: Shared) -> None:
        self._client = client
        self._shared = shared
        self._history = History()
        self._history_lock = threading.Lock()
        self._shown = _Shown(None, None, [])
        self._base_colors: tuple[Display, UInt8[Tensor, "gaussian 3"]] | None = None
        self._splats: SplatCloud | None = None
        self._cameras: viser.FrameHandle | None = None
        self._frustums: list[viser.CameraFrustumHandle] = []
        self._picture_lock = threading.Lock()
        self._picture_sent = False
        self._stand = self._where()
        self._connected = True
        self._worker = Worker(f"page-{client.client_id}", self._tell)
        self._controls = Controls(client, self, shared.title, shared.vocabulary)
        client.scene.on_click()(self._clicked)
        client.camera.on_update(lambda _: self._moved())
        self._worker.submit("start", self._start)

    def close(self) -> None:
        """The browser is gone."""
        self._connected = False
        self._worker.stop()

    # What the controls call: each returns at once.

    def change(self, **changes: Any) -> None:
        """Take a step to another state."""
        self._step(lambda history: history.to(**changes))

    def ask(self, text: str) -> None:
        """Ask a question; an empty text takes the last one back."""
        try:
            parse_question(text)
        except GagsError as error:
            self._tell(error)
            return
        self.change(text=text.strip())

    def undo(self) -> None:
        """Go a step back."""
        self._step(History.undo)

    def redo(self) -> None:
        """Go a step forward again."""
        self._step(History.redo)

    def set_faithful(self, faithful: bool) -> None:
        """Have the server draw what the resting camera sees, or leave it to the browser."""
        if faithful:
            self._worker.submit("faithful", self._show_faithful)
        else:
            self._worker.cancel("faithful")
            self._hide_faithful()

    def set_cameras(self, visible: bool) -> None:
        """Show the photographs where they were taken, or do not."""
        if self._cameras is not None:
            self._cameras.visible = visible

    def fly_to_phrase(self, phrase: str) -> None:
        """Go and look at what was found for a phrase."""
        self._worker.submit("fly", lambda: self._fly(self._pose_of(phrase)))

    def fly_to_camera(self, camera: Camera) -> None:
        """Go where a photograph was taken."""
        self._worker.submit("fly", lambda: self._fly(self._shared.frame.pose(camera)))

    def save(self, what: str) -> None:
        """Send the browser a file: ``splats .ply``, ``splats .spz``, ``box and mask``, ``screenshot`` or ``camera``."""
        self._worker.submit("save", lambda: self._save(what))

    # What happens in the worker.

    def _start(self) -> None:
        """Show the scene, which is at hand, and questions' answers as soon as they can be had."""
        gaussians = self._shared.gaussians
        self._paint(splat_colors(self._history.present, plain_colors(gaussians), gaussians.opacities, None, None))
        self._controls.busy("getting ready for questions: every splat's feature is decoded, once")
        self._shared.index.add_done_callback(lambda _: self._worker.submit("show", self._show_state))
        self._shared.thumbnails.add_done_callback(lambda _: self._worker.submit("cameras", self._add_cameras))

    def _add_cameras(self) -> None:
        """A frustum with its photograph for every view; a click flies there."""
        frame, scene = self._shared.frame, self._client.scene
        self._cameras = scene.add_frame("/cameras", show_axes=False, visible=self._controls.cameras)
        for number, (view, picture) in enumerate(
            zip(self._shared.scene.views, self._shared.thumbnails.result(), strict=True)
        ):
            camera = view.camera
            x, y, z, w = Rotation.from_matrix(camera.T_camera_world[:3, :3].T.double().numpy()).as_quat()
            frustum = scene.add_camera_frustum(
                f"/cameras/{number}",
                fov=vertical_fov(camera),
                aspect=camera.width / camera.height,
                scale=FRUSTUM_SIZE,
                thickness=0.004,
                color=(230, 160, 40) if view.held_out else (90, 90, 90),
                image=picture.numpy(),
                format="jpeg",
                wxyz=(w, x, y, z),
                position=frame.points(camera.center_world),
            )
            frustum.on_click(partial(self._fly_to_clicked, camera))
            self._frustums.append(frustum)
        self._clear_view()

    def _clear_view(self) -> None:
        """Hide the photographs that the page's camera stands in: they would cover everything else."""
        position = np.array(self._client.camera.position)
        for frustum in self._frustums:
            frustum.visible = bool(np.linalg.norm(frustum.position - position) > 2 * FRUSTUM_SIZE)

    def _fly_to_clicked(self, camera: Camera, _: viser.SceneNodePointerEvent) -> None:
        self.fly_to_camera(camera)

    def _index(self) -> SearchIndex:
        if not self._shared.index.done():
            raise GagsError("still getting ready for questions; try again in a moment")
        return self._shared.index.result()

    def _step(self, step: Callable[[History], History]) -> None:
        with self._history_lock:
            history = step(self._history)
            changed = history != self._history
            self._history = history
        if changed:
            self._controls.show_history(history)
            self._worker.submit("show", self._show_state)

    def _show_state(self) -> None:
        """Bring the page to the present state."""
        if not self._shared.index.done():
            # it comes back when the index is there
            return
        state, index = self._history.present, self._index()
        started = time.perf_counter()
        question = parse_question(state.text)
        if question is not None:
            self._controls.busy("searching")
        answer: Answer | None = None
        selected: Bool[Tensor, "phrase gaussian"] | None = None
        selections: list[Selection] = []
        if question is not None:
            answer = self._shown.answer
            if answer is None or answer.question != question:
                answer = index.ask(question)
            selected = index.select(answer, state.threshold, state.largest)
            selections = index.describe(answer, selected)
        self._shown = _Shown(answer, selected, selections)
        sent = self._paint(
            splat_colors(state, self._base(index, state.display), self._shared.gaussians.opacities, answer, selected)
        )
        seconds = time.perf_counter() - started
        self._controls.show_answer(state, selections, sent, seconds)
        logger.debug("%r: %.3f s, %d splats sent", state, seconds, sent)
        if self._controls.faithful:
            self._worker.submit("faithful", self._show_faithful)

    def _base(self, index: SearchIndex, display: Display) -> UInt8[Tensor, "gaussian 3"]:
        """``base_colors``, kept while the display mode stays; depth changes with the camera."""
        if display == "depth" or self._base_colors is None or self._base_colors[0] != display:
            self._base_colors = display, base_colors(index, display, self._camera())
        return self._base_colors[1]

    def _paint(self, rgba: UInt8[Tensor, "gaussian 4"]) -> int:
        with self._client.atomic():
            if self._splats is None:
                self._splats = SplatCloud(self._client.scene, self._shared.chunks, rgba)
                return len(rgba)
            return self._splats.recolor(rgba)

    def _show_faithful(self) -> None:
        if self._splats is None:
            return
        state, shown = self._history.present, self._shown
        camera = self._camera().limited(self._shared.max_side_px)
        index = self._index()
        for picture in faithful_pictures(index, state, shown.answer, shown.selected, camera):
            with self._picture_lock:
                if self._faithful_is_late():
                    return
                self._client.scene.set_background_image(picture.numpy(), format="jpeg", jpeg_quality=92)
                self._picture_sent = True
            if self._splats.visible:
                time.sleep(_UNPACK_S)
                with self._picture_lock:
                    if not self._picture_sent or self._faithful_is_late():
                        return
                    self._splats.visible = False

    def _faithful_is_late(self) -> bool:
        return self._worker.waiting("faithful") or self._worker.waiting("show") or not self._controls.faithful

    def _hide_faithful(self) -> None:
        with self._picture_lock, self._client.atomic():
            if self._splats is not None and self._picture_sent:
                self._client.scene.set_background_image(None)
                self._splats.visible = True
                self._picture_sent = False

    def _moved(self) -> None:
        """The camera moves: the browser draws until it rests."""
        before, self._stand = self._stand, self._where()
        # a browser that is slow draws fewer pixels of the same view: were that a move, what it causes could begin it anew
        rests = np.allclose(before, self._stand, rtol=0.0, atol=_STILL)
        if rests or not self._connected:
            return
        self._clear_view()
        if self._controls.faithful:
            self._worker.submit("faithful", self._show_faithful, _REST_S)
            self._hide_faithful()
        if self._history.present.display == "depth":
            self._worker.submit("show", self._show_state, _REST_S)

    def _where(self) -> np.ndarray:
        """All that makes a view, save the number of its pixels."""
        seen = self._client.camera
        aspect = _ASPECT_WEIGHT * seen.image_width / seen.image_height
        return np.array([*seen.wxyz, *seen.position, seen.fov, aspect])

    def _camera(self) -> Camera:
        """The browser's camera in the world."""
        seen = self._client.camera
        return self._shared.frame.camera(seen.wxyz, seen.position, seen.fov, seen.image_width, seen.image_height)

    def _pose_of(self, phrase: str) -> Pose:
        selection = next((found for found in self._shown.selections if found.phrase == phrase), None)
        if selection is None or selection.centroid_world is None or selection.box_world is None:
            raise GagsError(f"{phrase!r}: nothing was found to fly to; lower the threshold")
        gaussians = self._shared.gaussians
        view = best_view(gaussians, selection, self._shared.scene.views)
        return close_pose(self._shared.frame, view.camera, selection.centroid_world, selection.box_world)

    def _fly(self, pose: Pose) -> None:
        camera = self._client.camera
        start_position, start_look_at = np.array(camera.position), np.array(camera.look_at)
        for step in range(1, _FLIGHT_STEPS + 1):
            if self._worker.waiting("fly"):
                return
            # starts and lands softly
            way = 0.5 - 0.5 * np.cos(np.pi * step / _FLIGHT_STEPS)
            with self._client.atomic():
                camera.position = start_position + way * (pose.position - start_position)
                camera.look_at = start_look_at + way * (pose.look_at - start_look_at)
            time.sleep(_FLIGHT_S / _FLIGHT_STEPS)

    def _clicked(self, event: viser.SceneClickEvent) -> None:
        self._worker.submit("name", lambda: self._name(event))

    def _name(self, event: viser.SceneClickEvent) -> None:
        """Say what is under the mouse."""
        index, shown = self._index(), self._shown
        visible = torch.ones(len(self._shared.gaussians), dtype=torch.bool)
        if shown.selected is not None:
            visible = visible_splats(self._history.present, shown.selected)
        origin = self._shared.frame.to_world(event.ray_origin)
        direction = torch.tensor(event.ray_direction, dtype=torch.float32)
        hit = index.first_hit(origin, direction, self._camera().fx_px, visible)
        if hit is None:
            self._controls.idle("There is nothing.")
            return
        vocabulary = split_vocabulary(self._controls.vocabulary)
        if not vocabulary:
            raise GagsError("What is it: expected a vocabulary, found none; write phrases into the box, one a line")
        weights = index.level_weights(torch.tensor([hit]))
        named = index.name(hit, vocabulary, _BEST_PHRASES)
        self._controls.show_place(
            hit, self._shared.gaussians.means[hit], named, None if weights is None else weights[0]
        )

    def _save(self, what: str) -> None:
        state, shown, gaussians = self._history.present, self._shown, self._shared.gaussians
        if what == "camera":
            self._download("camera.json", camera_bytes(self._camera()))
        elif what == "screenshot":
            self._download("screenshot.png", picture_bytes(self._screenshot()))
        else:
            if shown.selected is None or not bool((chosen := chosen_splats(state, shown.selected)).any()):
                raise GagsError(
                    "save: expected a selection, found none; ask for something first, or lower the threshold"
                )
            if what == "box and mask":
                content = selection_bytes(state, shown.selections, chosen, gaussians.means)
                self._download("selection.json", content)
            else:
                suffix = what.split()[-1]
                self._download(f"selection{suffix}", splat_bytes(gaussians.subset(chosen), suffix))

    def _screenshot(self) -> UInt8[Tensor, "height width 3"]:
        camera = self._camera()
        if self._controls.faithful:
            shown = self._shown
            camera = camera.limited(self._shared.max_side_px)
            pictures = faithful_pictures(self._index(), self._history.present, shown.answer, shown.selected, camera)
            return list(pictures)[-1]
        # what little shines through the splats is dark, as on the page; without an alpha channel viser makes it white
        drawn = self._client.get_render(camera.height, camera.width, transport_format="png", timeout=30)
        rgb, alpha = torch.from_numpy(np.array(drawn)).split([3, 1], dim=-1)
        return (rgb * (alpha / 255)).round().to(torch.uint8)

    def _download(self, name: str, content: bytes) -> None:
        self._client.send_file_download(name, content, save_immediately=True)
        self._controls.idle(f"saved {name}")

    def _tell(self, error: Exception) -> None:
        """What went wrong, on the page, in words; nothing where nobody is left to read it."""
        if not self._connected:
            return
        if not isinstance(error, GagsError):
            logger.error("a page failed", exc_info=error)
        self._controls.show_error(str(error) if isinstance(error, GagsError) else f"{type(error).__name__}: {error}")
