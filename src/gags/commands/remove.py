"""gags remove: the scene without the splats of a phrase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from gags.commands._edit import EditArguments, write_edited


@dataclass(frozen=True)
class Arguments(EditArguments):
    """Write the scene without the splats that phrases name; the others stay as they are, in their order."""


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, write what is left."""
    options = tyro.cli(Arguments, args=list(arguments), prog="gags remove")
    write_edited(options, "removed", lambda gaussians, chosen: gaussians.subset(~chosen))
