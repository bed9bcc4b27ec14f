"""The panel of a page: widgets, and words for people."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from jaxtyping import Float
from torch import Tensor

from gags.query import Selection
from gags.view._colors import PHRASE_COLORS
from gags.view._state import DISPLAYS, MODES, Display, History, ViewState

if TYPE_CHECKING:
    import viser

_MAX_EARLIER = 8
_SAVES = ("splats .ply", "splats .spz", "box and mask", "screenshot", "camera")
_LEVELS = ("subpart", "part", "whole")
_LEGENDS: dict[Display, str] = {
    "rgb": "",
    "depth": "Colours: bright is near.",
    "feature": "Colours: what means the same looks the same.",
    "granularity": "Colours: red trusts subparts, green parts, blue whole things.",
    "relevancy": "Colours: red fits the question, dark blue does not.",
}
_INVITATION = "Type what to find, then press Enter. Or click a thing to learn what it is."


class Actions(Protocol):
    """What a page can be told to do; each returns at once."""

    def ask(self, text: str) -> None: ...
    def change(self, **changes: object) -> None: ...
    def undo(self) -> None: ...
    def redo(self) -> None: ...
    def set_faithful(self, faithful: bool) -> None: ...
    def set_cameras(self, visible: bool) -> None: ...
    def fly_to_phrase(self, phrase: str) -> None: ...
    def save(self, what: str) -> None: ...


class Controls:
    """The widgets of one page. They are set from the page's state, and tell ``actions`` what people do with them."""

    def __init__(self, client: viser.ClientHandle, actions: Actions, title: str, vocabulary: Sequence[str]) -> None:
        self._gui, self._actions = client.gui, actions
        self._gui.add_html(note(title))
        # of several lines, so that Enter is a part of the text: as a message of its own it can overtake the last letters
        self._text = self._gui.add_text(
            "Find", "", multiline=True, hint="then Enter. Several: cat; coffee cup. What it is not: cup -red cup"
        )
        self._text.on_update(self._typed)
        self._status = self._gui.add_html("")
        self._card_folder = self._gui.add_folder("Found", visible=False)
        with self._card_folder:
            self._card = self._gui.add_html("")
        self._fly_buttons: list[viser.GuiButtonHandle] = []
        self._fly_phrases: tuple[str, ...] = ()
        self._add_state_widgets()
        self._earlier_folder = self._gui.add_folder("Earlier", visible=False)
        self._earlier: list[viser.GuiButtonHandle] = []
        self._asked: tuple[str, ...] = ()
        self._state = ViewState()
        with self._gui.add_folder("What is it?", expand_by_default=False):
            self._place = self._gui.add_html(note("Click a place in the scene."))
            self._vocabulary = self._gui.add_text("Vocabulary", "\n".join(vocabulary), multiline=True)
        with self._gui.add_folder("Save", expand_by_default=False):
            what = self._gui.add_dropdown("What", _SAVES, hint="splats, box and mask: of what is found")
            button = self._gui.add_button("Download")
            button.on_click(lambda _: actions.save(what.value))

    def _add_state_widgets(self) -> None:
        """The widgets that show a ``ViewState``, and those that walk through its history."""
        gui, actions = self._gui, self._actions
        state = ViewState()
        with gui.add_folder("Show"):
            self._mode = gui.add_dropdown("What is found", MODES, initial_value=state.mode)
            self._threshold = gui.add_slider(
                "Threshold", 0.0, 1.0, 0.01, state.threshold, hint="relevancy, upper half of its range over the scene"
            )
            self._invert = gui.add_checkbox("Invert", state.invert)
            self._largest = gui.add_checkbox("Largest part", state.largest, hint="the largest connected part alone")
            self._display = gui.add_dropdown("Colours", DISPLAYS, initial_value=state.display)
            self._faithful = gui.add_checkbox(
                "Faithful", False, hint="the server draws every pixel when the camera rests: what the metrics measure"
            )
            self._cameras = gui.add_checkbox("Cameras", True, hint="the photographs where they were taken; click one")
            self._undo = gui.add_button("Undo", disabled=True)
            self._redo = gui.add_button("Redo", disabled=True)
        for name, widget in self._state_widgets().items():
            widget.on_update(self._changed(name))
        self._faithful.on_update(lambda event: actions.set_faithful(event.target.value))
        self._cameras.on_update(lambda event: actions.set_cameras(event.target.value))
        self._undo.on_click(lambda _: actions.undo())
        self._redo.on_click(lambda _: actions.redo())

    def _state_widgets(self) -> dict[str, viser.GuiInputHandle]:
        """By the name of the field of ``ViewState`` that they show."""
        return {
            "mode": self._mode,
            "threshold": self._threshold,
            "invert": self._invert,
            "largest": self._largest,
            "display": self._display,
        }

    def _typed(self, event: viser.GuiEvent) -> None:
        text = self._text.value
        if event.client is not None and "\n" in text:
            self._text.value = " ".join(text.split())  # type: ignore[misc]
            self._actions.ask(self._text.value)

    def _changed(self, name: str) -> Callable[[viser.GuiEvent], None]:
        def on_update(event: viser.GuiEvent) -> None:
            # set by a person, not by show_history
            if event.client is not None:
                self._actions.change(**{name: event.target.value})

        return on_update

    @property
    def faithful(self) -> bool:
        """Whether the server is to draw what a resting camera sees."""
        return self._faithful.value

    @property
    def cameras(self) -> bool:
        """Whether the photographs are shown where they were taken."""
        return self._cameras.value

    @property
    def vocabulary(self) -> str:
        """What a place may be, as it stands in the box."""
        return self._vocabulary.value

    def show_history(self, history: History) -> None:
        """Set the widgets to a state."""
        state, before = history.present, self._state
        self._state = state
        for name, widget in {"text": self._text, **self._state_widgets()}.items():
            # one that stays is left alone: its person may be at it at this very moment
            if getattr(state, name) != getattr(before, name):
                widget.value = getattr(state, name)  # type: ignore[misc]
        self._undo.disabled = not history.past
        self._redo.disabled = not history.future
        if history.asked != self._asked:
            self._asked = history.asked
            self._earlier = self._buttons(
                self._earlier_folder, self._earlier, history.asked[:_MAX_EARLIER], "", self._actions.ask
            )

    def show_answer(self, state: ViewState, selections: Sequence[Selection], sent: int, seconds: float) -> None:
        """The result card, and how long it took."""
        done = f"{seconds:.2f} s, {sent:,} splats sent" if state.text else _INVITATION
        self.idle(f"{done} {_LEGENDS[state.display]}".strip())
        self._card.content = "".join(_card(number, selection) for number, selection in enumerate(selections))
        self._card_folder.visible = bool(selections)
        found = tuple(selection.phrase for selection in selections if selection.box_world is not None)
        if found != self._fly_phrases:
            self._fly_phrases = found
            fly = self._actions.fly_to_phrase
            self._fly_buttons = self._buttons(self._card_folder, self._fly_buttons, found, "Fly to: ", fly)
            self._card_folder.visible = bool(selections)

    def show_place(
        self,
        gaussian_id: int,
        position_world: Float[Tensor, " 3"],
        named: Sequence[tuple[str, float]],
        level_weights: Float[Tensor, " 3"] | None,
    ) -> None:
        """What a place is, best first, and at which granularity that was learned."""
        best, score = named[0]
        rows = "".join(
            f"<tr><td>{html.escape(phrase)}</td><td style='text-align:right'>{value:.2f}</td></tr>"
            for phrase, value in named
        )
        lines = [f"splat {gaussian_id:,} at {_numbers(position_world)}"]
        if level_weights is not None:
            shares = (f"{name} {float(w):.0%}" for name, w in zip(_LEVELS, level_weights, strict=True))
            lines.append(f"granularity: {', '.join(shares)}")
        self._place.content = _block(f"<table style='width:100%'>{rows}</table>{'<br>'.join(lines)}")
        self.idle(f"That is: {best} ({score:.2f}). More under 'What is it?'")

    def busy(self, doing: str) -> None:
        """Say what takes its time."""
        self._status.content = note(f"{doing} ...")

    def idle(self, done: str) -> None:
        """Say what was done."""
        self._status.content = note(done)

    def show_error(self, words: str) -> None:
        """Say what went wrong."""
        self._status.content = _block(f"<span style='color:#d32f2f'>{html.escape(words)}</span>")

    def _buttons(
        self,
        folder: viser.GuiFolderHandle,
        old: Sequence[viser.GuiButtonHandle],
        labels: Sequence[str],
        prefix: str,
        action: Callable[[str], None],
    ) -> list[viser.GuiButtonHandle]:
        """A button for every label in place of the old ones; a folder without any is not shown."""
        for button in old:
            button.remove()
        buttons = []
        with folder:
            for label in labels:
                button = self._gui.add_button(prefix + label, color="gray")
                button.on_click(partial(_call, action, label))
                buttons.append(button)
        folder.visible = bool(labels)
        return buttons


def _call(action: Callable[[str], None], label: str, _: viser.GuiEvent) -> None:
    action(label)


def _card(number: int, selection: Selection) -> str:
    color = "rgb({},{},{})".format(*PHRASE_COLORS[number % len(PHRASE_COLORS)])
    dot = f"<span style='color:{color}'>&#9679;</span>"
    lines = [f"{dot} <b>{html.escape(selection.phrase)}</b>"]
    if selection.box_world is None or selection.centroid_world is None:
        lines.append("nothing above the threshold")
    else:
        low, high = selection.box_world
        size = " &times; ".join(f"{float(side):.3g}" for side in high - low)
        lines.append(f"score {selection.score:.2f}, {len(selection.gaussian_ids):,} splats")
        lines.append(f"size {size} scene units")
        lines.append(f"box {_numbers(low)} to {_numbers(high)}")
        lines.append(f"centre {_numbers(selection.centroid_world)}")
    return _block("<br>".join(lines))


def _numbers(values: Float[Tensor, " 3"]) -> str:
    return "(" + ", ".join(f"{float(value):.3g}" for value in values) + ")"


def note(words: str) -> str:
    """A small paragraph for the panel."""
    return _block(html.escape(words))


def _block(content: str) -> str:
    return f"<div style='padding:0.2em 0.8em;font-size:0.8em;line-height:1.4'>{content}</div>"
