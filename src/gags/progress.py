"""Progress bars with an ETA for long loops; silent where nobody watches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")

console = Console(stderr=True)
"""Everything meant for a person's eyes goes here; stdout is kept for results that scripts read."""


def track(items: Sequence[Item] | Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items and show a bar with elapsed and remaining time on stderr, if that is a terminal.

    ``total`` is taken from ``len(items)`` where it has one.
    """
    if total is None and isinstance(items, Sequence):
        total = len(items)
    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        yield from bars.track(items, total=total, description=description)
