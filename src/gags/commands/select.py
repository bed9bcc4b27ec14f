"""gags select: the splats of a phrase, alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from gags.commands._edit import EditArguments, write_edited


@dataclass(frozen=True)
class Arguments(EditArguments):
    """Write the splats that phrases name as a scene of their own, in their order."""


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, write the selected splats."""
    options = tyro.cli(Arguments, args=list(arguments), prog="gags select")
    write_edited(options, "selected", lambda gaussians, chosen: gaussians.subset(chosen))
