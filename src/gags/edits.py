"""Scenes edited by what a phrase names: which Gaussians, and the scene with them alone, without them, or in another colour.

Nothing but the chosen Gaussians changes: the others keep their order and every bit of their parameters.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from gags.encode import ImageTextEncoder
from gags.errors import GagsError
from gags.gaussians import SH_C0, Gaussians
from gags.images import Rgb
from gags.query import QueryableField, QueryConfig, largest_part, nearest_gaussians, query_3d, smooth_within
from gags.settings import NonNegative, check_settings

# ``largest_part`` looks at a Gaussian and its ten nearest.
_NEIGHBOURS = 11


@dataclass(frozen=True)
class ChoiceConfig:
    """What becomes of the Gaussians that a query finds before they are edited, in this order."""

    smooth: NonNegative = 0.0
    """Radius in scene units: each Gaussian does as most of those within it do, which closes holes and drops strays. 0: as found."""
    largest: bool = False
    """Of what is found for a phrase, keep the largest connected part alone."""
    invert: bool = False
    """Take everything else instead."""


def choose(
    field: QueryableField,
    phrases: Sequence[str],
    encoder: ImageTextEncoder,
    query_config: QueryConfig,
    config: ChoiceConfig,
) -> Bool[Tensor, " gaussian"]:
    """The Gaussians that any of the phrases names.

    Raises:
        GagsError: an empty phrase, a setting out of range, or a choice of nothing or of everything.
    """
    check_settings(config)
    means = field.gaussians.means
    chosen = torch.zeros(len(means), dtype=torch.bool)
    nearest = nearest_gaussians(means, _NEIGHBOURS) if config.largest else None
    for selection in query_3d(field, phrases, encoder, query_config):
        found = torch.zeros_like(chosen)
        found[selection.gaussian_ids] = True
        if config.smooth > 0:
            found = smooth_within(means, found, config.smooth)
        chosen |= found if nearest is None else largest_part(found, nearest)
    chosen ^= config.invert
    if not bool(chosen.any()) or bool(chosen.all()):
        raise GagsError(
            f"{', '.join(phrases)}: expected some of the {len(chosen)} splats, found {'all' if chosen.any() else 'none'} of them; "
            "try another --threshold (lower finds more) or another phrase"
        )
    return chosen


def recolored(gaussians: Gaussians, chosen: Bool[Tensor, " gaussian"], color: Rgb, strength: float) -> Gaussians:
    """The scene with the chosen Gaussians in another colour.

    Args:
        strength: share of the new colour, 0..1; the rest is the old one with its texture and highlights.
    """
    target = (torch.tensor(color, dtype=torch.float32) / 255 - 0.5) / SH_C0
    tinted = gaussians.sh[chosen] * (1 - strength)
    tinted[:, 0] += strength * target
    sh = gaussians.sh.clone()
    sh[chosen] = tinted
    return dataclasses.replace(gaussians, sh=sh)


def parse_color(text: str) -> Rgb:
    """``#rrggbb`` as red, green and blue in 0..255; a GagsError for anything else."""
    digits = re.fullmatch(r"#?([0-9a-fA-F]{6})", text.strip())
    if digits is None:
        raise GagsError(f"--color {text}: expected a colour as #rrggbb, for instance #ff3c1e, found something else")
    red, green, blue = bytes.fromhex(digits[1])
    return red, green, blue
