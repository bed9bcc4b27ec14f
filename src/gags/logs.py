"""Training logs: a JSON object a line, and the same numbers for TensorBoard on request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gags.errors import GagsError
from gags.store import write_text

LogRow = Mapping[str, float]
"""Named numbers of a stretch of a training; ``iteration`` is its last one, counted from 1."""


@contextmanager
def training_log(path: Path, done: int, tensorboard: Path | None = None) -> Iterator[Callable[[LogRow], None]]:
    """A function that appends a row to the JSON-lines file ``path``, at once on disk.

    Args:
        done: iterations that the training starts from. Later rows in the file are of an attempt that was killed after
            its last checkpoint: they are dropped, since they will come again. 0 starts a new file.
        tensorboard: folder for event files with the same numbers; None: none.
    """
    kept = [row for row in read_log(path) if row["iteration"] <= done]
    write_text(path, "".join(map(_line, kept)))
    with path.open("a", encoding="utf-8") as file, _event_writer(tensorboard, done) as write_events:

        def log(row: LogRow) -> None:
            file.write(_line(row))
            file.flush()
            write_events(row)

        yield log


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a training log, in order; none where there is no file. A last line cut off by a kill is passed over."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # a whole line ends with a line break, so that what follows the last one is half a row or nothing
    return [json.loads(line) for line in lines[:-1]]


def require_tensorboard() -> None:
    """Raise a GagsError where TensorBoard's event files cannot be written."""
    if find_spec("tensorboard") is None:
        raise GagsError(
            "--tensorboard: expected the package tensorboard, found none; pip install 'gags[tensorboard]', or leave the "
            "flag out (RUN/logs/*.jsonl hold the same numbers)"
        )


def _line(row: LogRow) -> str:
    return json.dumps(dict(row)) + "\n"


@contextmanager
def _event_writer(folder: Path | None, done: int) -> Iterator[Callable[[LogRow], Any]]:
    if folder is None:
        yield lambda row: None
        return
    from torch.utils.tensorboard import SummaryWriter

    if done == 0:
        shutil.rmtree(folder, ignore_errors=True)
    # events from this step on are of the attempt that was killed: TensorBoard leaves them out
    with SummaryWriter(str(folder), purge_step=done + 1) as writer:

        def write(row: LogRow) -> None:
            for name, value in row.items():
                if name != "iteration":
                    writer.add_scalar(name, value, int(row["iteration"]))
            writer.flush()

        yield write
