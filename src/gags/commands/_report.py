"""How commands speak: results to stdout, words for people to stderr."""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from gags.progress import console
from gags.store import RunFolder


def say(text: str) -> None:
    """A line for a person, on stderr."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """A result for a script, on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_table(table: Table) -> None:
    """A result for a person, on stdout; whole lines where no terminal limits the width."""
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def print_rows(rows: Sequence[dict[str, Any]], hidden: Sequence[str] = ()) -> None:
    """Rows with equal keys as a table, without the hidden columns."""
    shown = [key for key in rows[0] if key not in hidden]
    table = Table(*shown)
    for row in rows:
        table.add_row(*("-" if row[key] is None else str(row[key]) for key in shown))
    print_table(table)


def say_costs(folder: RunFolder) -> None:
    """Time and peak memory of every stage, as run.json has them."""
    stages = folder.description()["stages"]
    table = Table("stage", "seconds", "peak memory MB", title=str(folder.root))
    for name, cost in stages.items():
        table.add_row(name, f"{cost.get('seconds', 0):.1f}", f"{cost.get('peak_memory_mb', 0):.0f}")
    table.add_row("total", f"{sum(cost.get('seconds', 0) for cost in stages.values()):.1f}", "")
    console.print(table)


def slug(text: str) -> str:
    """A phrase as a part of a file name: plain words with dashes; any other text is told apart by a number."""
    name = re.sub(r"[^\w]+", "-", text.lower())[:60].strip("-")
    return name if name.replace("-", " ") == text else f"{name}-{zlib.crc32(text.encode()):08x}".lstrip("-")
