"""gags export: the products of a run in other programs' files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from gags.commands._report import say
from gags.errors import GagsError
from gags.exchange import write_field, write_language_features
from gags.gaussians import check_splat_name, write_splats
from gags.runs import FieldKind, open_run


@dataclass(frozen=True)
class Arguments:
    """Write what a run holds in other programs' files. Each flag writes one thing; give at least one."""

    run: tyro.conf.Positional[Path]
    """A run folder made by 'gags run'."""
    splats: Path | None = None
    """File for the splats: .ply (Inria layout), .spz or .splat."""
    semantic_ply: Path | None = None
    """.ply file for the splats with their features as vertex properties semantic_0, semantic_1, ..."""
    decoders: Path | None = None
    """Folder for the decoders of a learned field: feature_decoder.pth, granularity_decoder.pth."""
    language_features: Path | None = None
    """Folder for label maps and mask features of every training view: *_s.npy, *_f.npy."""
    field: FieldKind | None = None
    """Whose features and decoders; without it, the field the run was made with."""


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, write the files, name them."""
    options = tyro.cli(Arguments, args=list(arguments), prog="gags export")
    run = open_run(options.run)
    wanted = [options.splats, options.semantic_ply, options.decoders, options.language_features]
    if not any(wanted):
        raise GagsError(
            "gags export: expected something to write, found none of --splats, --semantic-ply, --decoders, --language-features"
        )
    # what may be refused is so before anything is written
    if options.splats is not None:
        check_splat_name(options.splats)
    if options.semantic_ply is not None or options.decoders is not None:
        field = run.field(options.field)
        write_field(field, options.semantic_ply, options.decoders)
        if field.meta.kind != "gad":
            say(
                f"the features are coordinates in a basis that only {options.run} holds; decoders for other programs: --field gad"
            )
    if options.language_features is not None:
        write_language_features(options.language_features, run.masks, run.embeddings)
    if options.splats is not None:
        write_splats(options.splats, run.gaussians)
    for path in wanted:
        if path is not None:
            sys.stdout.write(f"{path}\n")
