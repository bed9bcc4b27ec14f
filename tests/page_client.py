"""What a browser knows of a page of ``gags view``: a client of viser's protocol, without the drawing."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import viser
import zstandard
from websockets.sync.client import connect


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class PageClient:
    """Connects, keeps the widgets and scene nodes that the server sends, and acts as a person would."""

    def __init__(self, url: str) -> None:
        version = viser.__version__
        address = url.replace("http://", "ws://")
        self._socket = connect(address, subprotocols=[f"viser-v{version}"], max_size=None, compression=None)  # type: ignore[list-item]
        self.widgets: dict[str, dict[str, Any]] = {}
        self.nodes: dict[str, dict[str, Any]] = {}
        self.hidden: set[str] = set()
        self.background: bytes | None = None
        self.splats_received = 0
        self.downloads: dict[str, bytes] = {}
        self._transfers: dict[str, tuple[str, list[bytes]]] = {}
        self.look((0.0, -1.0, -4.0))

    def __enter__(self) -> PageClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the browser."""
        self._socket.close()

    def _send(self, kind: str, **content: Any) -> None:
        self._socket.send(msgspec.msgpack.encode({"type": kind, **content}))

    def look(self, position: tuple[float, float, float], size_px: tuple[int, int] = (48, 64)) -> None:
        """Move the camera; it looks along z, y down, and draws so many rows and columns."""
        self._send(
            "ViewerCameraMessage",
            **{"wxyz": (1.0, 0.0, 0.0, 0.0), "position": position, "fov": 0.8, "near": 0.01, "far": 1000.0},
            **{
                "image_height": size_px[0],
                "image_width": size_px[1],
                "look_at": (0.0, -1.0, 0.0),
                "up_direction": (0.0, -1.0, 0.0),
            },
        )

    def widget(self, label: str) -> dict[str, Any]:
        """The widget with this label."""
        return next(widget for widget in list(self.widgets.values()) if widget["props"].get("label") == label)

    def labels(self) -> set[str]:
        """Of all widgets."""
        return {widget["props"].get("label") for widget in self.widgets.values()}

    def text(self) -> str:
        """All the words of the page."""
        return " ".join(widget["props"]["content"] for widget in self.widgets.values() if "content" in widget["props"])

    def set(self, label: str, value: Any) -> None:
        """Type, tick, drag or press."""
        self._send("GuiUpdateMessage", uuid=self.widget(label)["uuid"], updates={"value": value})

    def ask(self, phrase: str) -> None:
        """Type a phrase, and Enter."""
        self.set("Find", phrase + "\n")

    def click(self, origin: tuple[float, ...], direction: tuple[float, ...]) -> None:
        """Click a place in the scene."""
        self._send(
            "ScenePointerMessage",
            **{"event_type": "click", "ray_origin": origin, "ray_direction": direction},
            **{"screen_pos": ((0.5, 0.5),), "modifier": None},
        )

    def frustums(self) -> list[dict[str, Any]]:
        """The photographs in the scene."""
        return [node for node in self.nodes.values() if node["type"] == "CameraFrustumMessage"]

    def colors(self) -> np.ndarray:
        """RGBA of all splats, chunk by chunk."""
        chunks = [node["props"]["buffer"] for node in self.nodes.values() if node["type"] == "GaussianSplatsMessage"]
        return np.concatenate(chunks).reshape(-1, 8)[:, 7:].copy().view(np.uint8)

    def wait(self, condition: Callable[[PageClient], bool], timeout_s: float = 10.0) -> None:
        """Take messages until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition(self):
            try:
                self._take(self._socket.recv(timeout=max(0.0, deadline - time.monotonic())))  # type: ignore[arg-type]
            except TimeoutError:
                raise AssertionError(f"waited in vain; the page says: {self.text()}") from None

    def _take(self, data: bytes) -> None:
        size = int.from_bytes(data[8:16], "little")
        content = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(data[16 : 16 + size]))
        arrays, offset = [], 16 + size
        for length in content["binaryBufferLengths"]:
            offset += -offset % 8
            arrays.append(data[offset : offset + length])
            offset += length
        for message in content["messages"]:
            self._apply(message, arrays)

    def _apply(self, message: dict[str, Any], arrays: list[bytes]) -> None:
        kind, name = message["type"], message.get("name", "")
        for values in (message.get("props"), message.get("updates")):
            for key, value in (values or {}).items():
                if isinstance(value, dict) and "__binary_index" in value:
                    values[key] = np.frombuffer(arrays[value["__binary_index"]], value["dtype"])
                    self.splats_received += len(values[key]) // 8
        if kind in ("GaussianSplatsMessage", "CameraFrustumMessage", "FrameMessage"):
            self.nodes[name] = message
        elif kind == "SceneNodeUpdateMessage":
            self.nodes[name]["props"].update(message["updates"])
        elif kind == "SetSceneNodeVisibilityMessage":
            (self.hidden.discard if message["visible"] else self.hidden.add)(name)
        elif kind == "BackgroundImageMessage":
            self.background = message["rgb_data"]
        elif kind == "GuiUpdateMessage":
            widget = self.widgets[message["uuid"]]
            for key, value in message["updates"].items():
                (widget if key == "value" else widget["props"])[key] = value
        elif kind == "GuiRemoveMessage":
            self.widgets.pop(message["uuid"], None)
        elif kind.startswith("Gui") and "props" in message:
            self.widgets[message["uuid"]] = message
        elif kind == "FileTransferStartDownload":
            self._transfers[message["transfer_uuid"]] = (message["filename"], [b""] * message["part_count"])
        elif kind == "FileTransferPart":
            file_name, parts = self._transfers[message["transfer_uuid"]]
            parts[message["part_index"]] = message["content"]
            if all(parts):
                self.downloads[file_name] = b"".join(parts)
