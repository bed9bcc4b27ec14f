"""What select, remove and recolor have in common: which splats, and where the edited scene goes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from jaxtyping import Bool
from torch import Tensor

from gags.commands._report import say
from gags.edits import ChoiceConfig, choose
from gags.gaussians import Gaussians, check_splat_name, write_splats
from gags.query import QueryConfig
from gags.runs import FieldKind, open_run


@dataclass(frozen=True)
class EditArguments:
    """Which splats, and where the edited scene goes."""

    run: tyro.conf.Positional[Path]
    """A run folder made by 'gags run'."""
    phrases: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PHRASE ...", help_behavior_hint="(at least one)")
    ]
    """What the splats are, one phrase an argument; several are taken together."""
    out: Path
    """File for the edited scene: .ply (lossless), .spz or .splat (both quantised)."""
    choice: tyro.conf.OmitArgPrefixes[ChoiceConfig] = dataclasses.field(default_factory=ChoiceConfig)
    """What becomes of the find before it is edited."""
    query: tyro.conf.OmitArgPrefixes[QueryConfig] = dataclasses.field(default_factory=QueryConfig)
    """How relevancy becomes a find."""
    field: FieldKind | None = None
    """Which of the run's fields to ask; without it, the one the run was made with."""


def write_edited(
    options: EditArguments, done: str, edit: Callable[[Gaussians, Bool[Tensor, " gaussian"]], Gaussians]
) -> None:
    """Choose, edit, write and say what was done; ``done`` is its verb."""
    # before the search, which takes seconds
    check_splat_name(options.out)
    run = open_run(options.run)
    field = run.field(options.field)
    chosen = choose(field, options.phrases, run.encoder, run.query_config(options.query), options.choice)
    edited = edit(run.gaussians, chosen)
    write_splats(options.out, edited)
    sys.stdout.write(f"{options.out}\n")
    say(f"{done} {int(chosen.sum())} of {len(chosen)} splats; the file holds {len(edited)}")
