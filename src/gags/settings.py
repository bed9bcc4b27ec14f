"""What a setting may be: said in its annotation, checked by one function before any work is done.

``batch_size: Count`` is 1 or more; ``max_side_px: Side | None`` is 16 or more, or nothing; ``checkpoint_every:
Neutral[Natural]`` is 0 or more, and what comes out does not depend on it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar, get_args, get_origin, get_type_hints, runtime_checkable

import torch

from gags.errors import GagsError

Setting = TypeVar("Setting")


@runtime_checkable
class Rule(Protocol):
    """An annotation that knows which values no work can be done with."""

    def refusal(self, value: Any) -> str | None:
        """What is expected in place of this value; None if the value will do."""
        ...


@dataclass(frozen=True)
class Within:
    """Finite numbers from ``low`` to ``high``."""

    low: float = -math.inf
    high: float = math.inf
    open: bool = False
    """The two ends themselves are refused."""
    or_zero: bool = False
    """0 is accepted as well: it switches something off."""

    def refusal(self, value: float) -> str | None:
        # a NaN fails every comparison, and so is refused too
        inside = self.low < value < self.high if self.open else self.low <= value <= self.high
        if (inside and value != math.inf) or (self.or_zero and value == 0):
            return None
        if math.isnan(value) or math.isinf(value):
            return "a finite number"
        lower = f"more than {self.low}" if self.open else f"at least {self.low}"
        upper = f" and less than {self.high}" if self.open else f" and at most {self.high}"
        return f"{'0, or ' if self.or_zero else ''}{lower}{upper if self.high < math.inf else ''}"


@dataclass(frozen=True)
class Device:
    """The devices that this machine has, in torch's words."""

    def refusal(self, value: str) -> str | None:
        cards = torch.cuda.device_count()
        known = ["cpu", *(["cuda"] if cards else []), *(f"cuda:{i}" for i in range(cards))]
        return None if value in known else f"one of this machine's devices ({', '.join(known)})"


@dataclass(frozen=True)
class Phrases:
    """At least one phrase, and none of them empty."""

    def refusal(self, value: tuple[str, ...]) -> str | None:
        return None if value and all(phrase.strip() for phrase in value) else "phrases of at least one word each"


class _Neutral:
    """Marks settings that say how the work is done and never what comes out."""


Neutral = Annotated[Setting, _Neutral()]
"""A setting that the result does not depend on: fingerprints leave it out."""

Count = Annotated[int, Within(1)]
Natural = Annotated[int, Within(0)]
Side = Annotated[int, Within(16)]
"""The longer side of a picture in pixels: smaller ones show nothing."""
Seed = Annotated[int, Within(0, 2**63 - 1)]
Share = Annotated[float, Within(0, 1)]
Positive = Annotated[float, Within(0, open=True)]
NonNegative = Annotated[float, Within(0)]


def check_settings(config: Any, prefix: str = "") -> None:
    """Raise a GagsError for the first setting of a config dataclass that no work can be done with.

    prefix: what the flags of this config begin with, as in ``encode.``: the message names the flag as it is typed.
    """
    for name, hint in _hints(config):
        value = getattr(config, name)
        for expected in _refusals(hint, value):
            raise GagsError(f"--{prefix}{name.replace('_', '-')}: expected {expected}, found {value!r}")


def decisive(config: Any) -> dict[str, Any]:
    """The settings of a config dataclass that the result depends on, by name."""
    return {name: getattr(config, name) for name, hint in _hints(config) if not _is_neutral(hint)}


def _hints(config: Any) -> Iterator[tuple[str, Any]]:
    """Name and annotation of every field."""
    hints = get_type_hints(type(config), include_extras=True)
    return ((field.name, hints[field.name]) for field in dataclasses.fields(config))


def _is_neutral(hint: Any) -> bool:
    return get_origin(hint) is Annotated and any(isinstance(mark, _Neutral) for mark in get_args(hint)[1:])


def _refusals(hint: Any, value: Any) -> Iterator[str]:
    """What the rules inside an annotation expect in place of a value, or of an item of a tuple."""
    if value is None:
        return
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        found = (mark.refusal(value) for mark in marks if isinstance(mark, Rule))
        yield from (expected for expected in found if expected is not None)
        yield from _refusals(inner, value)
    elif isinstance(value, tuple):
        for part, item in zip(get_args(hint), value, strict=False):
            yield from _refusals(part, item)
    else:
        # X | None has parts, a plain type has none
        for part in get_args(hint):
            yield from _refusals(part, value)
