"""gags recolor: the scene with the splats of a phrase in another colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from gags.commands._edit import EditArguments, write_edited
from gags.edits import parse_color, recolored
from gags.settings import Share, check_settings


@dataclass(frozen=True)
class Arguments(EditArguments):
    """Write the scene with the splats that phrases name in another colour; the others stay as they are, in their order."""

    color: str = "#ff3c1e"
    """The new colour, #rrggbb."""
    strength: Share = 0.7
    """How much of the new colour, 0..1; the rest is the old one with its texture."""


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, write the recoloured scene."""
    options = tyro.cli(Arguments, args=list(arguments), prog="gags recolor")
    check_settings(options)
    color = parse_color(options.color)
    write_edited(options, "recoloured", lambda gaussians, chosen: recolored(gaussians, chosen, color, options.strength))
