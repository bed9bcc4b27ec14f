"""Moving pictures: frames to an H.264 file that browsers and phones play."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from gags.errors import GagsError
from gags.store import write_atomically

# x264's scale: 18 is next to invisible, 23 its default.
_QUALITY_CRF = "18"


def write_video(path: Path, frames: Iterable[UInt8[Tensor, "height width 3"]], fps: int) -> int:
    """Write frames of equal size as H.264 in an .mp4 file; they are taken one by one as they come.

    An odd width or height is made even by repeating the last column or row: the format stores colour at half the
    resolution. The file appears whole or not at all. Equal frames give equal bytes.

    Returns:
        The number of frames.

    Raises:
        GagsError: another ending than .mp4, no frame, or frames of different sizes.
    """
    check_video_name(path)
    written = 0

    def write(temporary: Path) -> None:
        nonlocal written
        written = _encode(temporary, path, frames, fps)

    write_atomically(path, write)
    return written


def check_video_name(path: Path) -> None:
    """Raise a GagsError for a name that ``write_video`` has no format for."""
    if path.suffix.lower() != ".mp4":
        raise GagsError(f"{path}: expected a name that ends in .mp4, found {path.suffix or 'no ending'!r}; rename it")


def _encode(temporary: Path, path: Path, frames: Iterable[UInt8[Tensor, "height width 3"]], fps: int) -> int:
    import av
    from av.video.reformatter import ColorRange, Colorspace

    count, size = 0, (0, 0)
    # fast start: the table of contents in front, so that a browser plays while it loads
    with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": _QUALITY_CRF, "preset": "medium"})
        stream.pix_fmt = "yuv420p"
        # BT.709, said in the file: players guess untagged colours by the size of the picture
        context = stream.codec_context
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries = context.color_trc = 1
        for frame in frames:
            height, width = frame.shape[:2]
            if count == 0:
                size = (width, height)
                stream.width, stream.height = width + width % 2, height + height % 2
            if (width, height) != size:
                raise GagsError(
                    f"{path}: expected frames of {size[0]}x{size[1]} pixels like the first, found {width}x{height}"
                )
            picture = np.pad(frame.cpu().numpy(), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            rgb = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(
                stream.encode(
                    rgb.reformat(
                        format="yuv420p",
                        dst_colorspace=Colorspace.ITU709,
                        src_color_range=ColorRange.JPEG,
                        dst_color_range=ColorRange.MPEG,
                    )
                )
            )
            count += 1
        if count == 0:
            raise GagsError(f"{path}: expected at least one frame, found none; ask for a longer video")
        container.mux(stream.encode())
    return count
