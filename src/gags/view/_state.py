"""What a page shows, as a value: the question, how its answer is drawn, and the steps that undo goes back."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from gags.errors import GagsError

Mode = Literal["highlight", "isolate", "delete", "heat"]
"""Tint what was found; show it alone; show all but it; draw how well everything fits over its colours."""
Display = Literal["rgb", "depth", "feature", "granularity", "relevancy"]
"""What the splats' colours say. feature: three principal components; granularity: red subpart, green part, blue whole."""
MODES: tuple[Mode, ...] = get_args(Mode)
DISPLAYS: tuple[Display, ...] = get_args(Display)

_LONGEST_MEMORY = 100


@dataclass(frozen=True)
class Question:
    """What the text box asks for."""

    phrases: tuple[str, ...]
    """What to find; each is searched on its own."""
    negatives: tuple[str, ...] = ()
    """What a find must resemble less than its phrase, beside the canonical negatives; they hold for every phrase."""


def parse_question(text: str) -> Question | None:
    """``red mug; spoon -fork`` asks for a red mug and for a spoon, and not for forks. None: nothing is asked.

    Phrases are separated by ``;``. A ``-`` at the start of a word begins a negative, which ends at the next ``;`` or ``-``.

    Raises:
        GagsError: negatives alone, or a ``-`` with nothing behind it.
    """
    phrases: list[str] = []
    negatives: list[str] = []
    for part in text.split(";"):
        phrase, *excluded = (re.sub(r"\s+", " ", piece).strip() for piece in re.split(r"(?:^|(?<=\s))-", part))
        if not all(excluded):
            raise GagsError(f"{text!r}: expected a phrase behind each '-', found none; write it as in 'mug -red mug'")
        phrases += [phrase] if phrase else []
        negatives += excluded
    if negatives and not phrases:
        raise GagsError(
            f"{text!r}: expected a phrase to find, found only what not to find; write it as in 'mug -red mug'"
        )
    return Question(tuple(dict.fromkeys(phrases)), tuple(dict.fromkeys(negatives))) if phrases else None


@dataclass(frozen=True)
class ViewState:
    """Everything on the page that undo brings back."""

    text: str = ""
    """The question as it was typed; empty: none."""
    mode: Mode = "highlight"
    """How the answer is drawn."""
    display: Display = "rgb"
    """What the colours say where the answer does not."""
    threshold: float = 0.4
    """A Gaussian is found when its relevancy, the upper half of the range over the scene as 0..1, is above this."""
    invert: bool = False
    """Find what the answer leaves out."""
    largest: bool = False
    """Of what is found, keep the largest connected part alone."""


@dataclass(frozen=True)
class History:
    """The present state, the way back, and the way forward again."""

    present: ViewState = ViewState()
    past: tuple[ViewState, ...] = ()
    """Oldest first."""
    future: tuple[ViewState, ...] = ()
    """Nearest first."""
    asked: tuple[str, ...] = ()
    """Questions so far, latest first, each once."""

    def to(self, **changes: Any) -> History:
        """A step to the present state with these fields changed; itself where that changes nothing.

        Steps of the threshold alone, one after another, count as one: a slider that is dragged is undone in one go.
        """
        state = replace(self.present, **changes)
        if state == self.present:
            return self
        past = self.past
        dragged = past and _only_threshold(past[-1], self.present) and _only_threshold(self.present, state)
        if not dragged:
            past = (*past, self.present)[-_LONGEST_MEMORY:]
        elif state == past[-1]:
            # dragged back to where it was: no step at all
            past = past[:-1]
        asked = self.asked
        if state.text and state.text != self.present.text:
            asked = (state.text, *(text for text in asked if text != state.text))
        return History(state, past, (), asked)

    def undo(self) -> History:
        """A step back; itself at the beginning."""
        if not self.past:
            return self
        return replace(self, present=self.past[-1], past=self.past[:-1], future=(self.present, *self.future))

    def redo(self) -> History:
        """The step that was last undone; itself where there is none."""
        if not self.future:
            return self
        return replace(self, present=self.future[0], past=(*self.past, self.present), future=self.future[1:])


def _only_threshold(before: ViewState, after: ViewState) -> bool:
    return before != after and replace(before, threshold=after.threshold) == after
