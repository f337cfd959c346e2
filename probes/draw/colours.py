"""Colour ramps, and text colours that can be read on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from rich.color import Color
from rich.style import Style
from rich.text import Text

RGB = tuple[int, int, int]
Ramp = Callable[[float], Color]
_DARK_TO_BRIGHT: tuple[RGB, ...] = (
    (34, 37, 58), (38, 72, 112), (40, 124, 126), (116, 178, 88), (250, 224, 96)
)  # fmt: skip
_BLUE_TO_RED: tuple[RGB, ...] = ((52, 96, 190), (52, 56, 72), (214, 84, 56))
_LIGHT, _DARK = Color.from_rgb(245, 245, 245), Color.from_rgb(12, 14, 20)


def sequential(share: float) -> Color:
    """Dark at 0, bright at 1."""
    return _mix(_DARK_TO_BRIGHT, share)


def diverging(value: float) -> Color:
    """Blue at -1, grey at 0, red at 1."""
    return _mix(_BLUE_TO_RED, (value + 1) / 2)


def _mix(stops: Sequence[RGB], share: float) -> Color:
    """The colour at a share, from 0 to 1, of the way through evenly spaced stops."""
    place = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    i = min(int(place), len(stops) - 2)
    mixed = (a + (b - a) * (place - i) for a, b in zip(stops[i], stops[i + 1], strict=True))
    return Color.from_rgb(*mixed)


def style_on(colour: Color) -> Style:
    """`colour` as the background, with light or dark text, whichever is easier to read."""
    red, green, blue = colour.triplet or (0, 0, 0)
    dark = 0.30 * red + 0.59 * green + 0.11 * blue < 140
    return Style(color=_LIGHT if dark else _DARK, bgcolor=colour)


def bar(ramp: Ramp, low: str, high: str, what: str) -> Text:
    """A legend: a ramp between the labels of its ends, then what its colours measure."""
    start = -1.0 if ramp is diverging else 0.0
    out = Text(f"{low} ")
    for share in np.linspace(start, 1, 13):
        colour = ramp(float(share))
        out.append("─", Style(color=colour, bgcolor=colour))
    return out.append(f" {high}  {what}")
