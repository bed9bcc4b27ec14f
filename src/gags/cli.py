"""The command line: finds the command, shows errors in one line. A command's module is imported when it is called."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from gags.errors import GagsError

COMMANDS = {
    "demo": "make, learn and search a small built-in scene: a first look, with no data of yours",
    "run": "photographs or a COLMAP scene -> a searchable run folder",
    "query": "where is it? points, boxes, masks and pictures for phrases, or the splats themselves",
    "view": "a page in the browser: fly, ask, isolate, delete, click, save",
    "evaluate": "how good is it? mIoU and localisation accuracy on LERF-OVS labels",
    "benchmark": "a public dataset: every scene, beside the published figures",
    "ablate": "what granularity is worth: the paper's seven settings on one scene",
    "render": "pictures and videos of any view: colour, depth, features, granularity, relevancy",
    "report": "a run as one HTML file: pictures, curves, costs, metrics, queries, inventory, settings",
    "inventory": "what is in this scene? its things, named, placed, measured, each with a picture",
    "select": "the splats of a phrase as a scene of their own",
    "remove": "the scene without the splats of a phrase",
    "recolor": "the scene with the splats of a phrase in another colour",
    "export": "the field in other programs' files: splats, features of the splats, label maps and mask features",
    "doctor": "what this machine has, and what to do about what is missing",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 bad input, 2 unknown command, 130 interrupted, 141 nobody reads."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_overview())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"gags {version('gags')}\n")
        return 0
    if arguments[0] not in COMMANDS:
        sys.stderr.write(f"gags: unknown command {arguments[0]!r}\n\n{_overview()}")
        return 2
    try:
        _log_to_stderr()
        importlib.import_module(f"gags.commands.{arguments[0]}").main(arguments[1:])
    except GagsError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except BrokenPipeError:
        # the reader (head, say) has seen enough; nothing more may be written to it, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.stderr.write(
            f"error: {error.filename or 'a file'}: the disk is full; free some space, then run the same command\n"
        )
        return 1
    except (KeyboardInterrupt, SystemError) as error:
        # numba reports an interruption in its midst as an error of its own
        if isinstance(error, SystemError) and not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        sys.stderr.write("stopped; the same command goes on where it stopped\n")
        return 130
    return 0


def _overview() -> str:
    lines = [f"  {name:<10}{summary}" for name, summary in COMMANDS.items()]
    head = ["usage: gags COMMAND ...", "", "Search a 3D scene in your own words.", ""]
    return "\n".join([*head, *lines, "", "'gags COMMAND --help' says more.", ""])


def _log_to_stderr() -> None:
    from rich.logging import RichHandler

    from gags.progress import console

    handler = RichHandler(console=console, show_path=False, show_time=False, show_level=False)
    logger = logging.getLogger("gags")
    logger.setLevel(logging.INFO)
    logger.handlers = [handler]
    logger.propagate = False
