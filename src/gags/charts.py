"""Line charts as inline SVG: a few hundred bytes, no library, sharp at any size."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

_WIDTH, _HEIGHT = 280, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 24, 22


def line_chart(title: str, xs: Sequence[float], ys: Sequence[float]) -> str:
    """One line from the smallest to the largest x, with the ends of both axes written out; values that are not finite are gaps.

    Returns an ``<svg>`` element whose colours are those of the text around it.
    """
    finite = [y for y in ys if math.isfinite(y)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    first, last = min(xs), max(xs)

    def place(x: float, y: float) -> str:
        across = (x - first) / (last - first) if last > first else 0.5
        up = (y - low) / (high - low) if high > low else 0.5
        return f"{_LEFT + across * (_WIDTH - _LEFT - _RIGHT):.1f},{_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM):.1f}"

    strokes: list[list[str]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            strokes[-1].append(place(x, y))
        else:
            strokes.append([])
    lines = "".join(
        f'<polyline points="{" ".join(stroke)}" fill="none" stroke="#d9480f" stroke-width="1.8"/>'
        if len(stroke) > 1
        else f'<circle cx="{stroke[0].split(",")[0]}" cy="{stroke[0].split(",")[1]}" r="2" fill="#d9480f"/>'
        for stroke in strokes
        if stroke
    )
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    texts = [
        _text(_LEFT, 14, title, "start", "bold"),
        _text(_LEFT - 6, _TOP + 4, _short(high), "end"),
        _text(_LEFT - 6, bottom + 3, _short(low), "end"),
        _text(_LEFT, _HEIGHT - 6, _short(first), "start"),
        _text(right, _HEIGHT - 6, _short(last), "end"),
    ]
    axes = f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="currentColor" stroke-opacity=".35"/>'
    head = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" aria-label="{html.escape(title)}">'
    return f"{head}{axes}{lines}{''.join(texts)}</svg>"


def _text(x: float, y: float, text: str, anchor: str, weight: str = "normal") -> str:
    style = f'font-size="11" font-weight="{weight}" text-anchor="{anchor}" fill="currentColor"'
    return f'<text x="{x}" y="{y}" {style}>{html.escape(text)}</text>'


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"
