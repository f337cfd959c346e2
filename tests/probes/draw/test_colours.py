"""Colour ramps go from end to end, and text on them can be read."""

import numpy as np
from rich.color import Color

from probes.draw.colours import bar, diverging, sequential, style_on


def test_ramps_go_from_end_to_end_and_text_on_them_is_readable():
    assert diverging(-5) == diverging(-1) != diverging(1) == diverging(5)
    red, green, blue = diverging(0).triplet
    assert max(red, green, blue) - min(red, green, blue) < 25  # grey
    shades = [sum(sequential(x).triplet) for x in np.linspace(0, 1, 20)]
    assert shades == sorted(shades)
    for ramp in (sequential, diverging):
        for x in np.linspace(-1, 1, 21):
            style = style_on(ramp(float(x)))
            apart = np.subtract(style.color.triplet, style.bgcolor.triplet)
            assert abs(apart @ [0.30, 0.59, 0.11]) > 60
    assert style_on(Color.from_rgb(255, 255, 255)).color == style_on(sequential(1.0)).color


def test_a_bar_says_what_it_measures_and_spans_its_ramp():
    for ramp, start in ((diverging, -1.0), (sequential, 0.0)):
        found = bar(ramp, "low", "high", "metres")
        assert found.plain.startswith("low ─")
        assert found.plain.endswith("─ high  metres")
        ends = [found.spans[i].style.bgcolor for i in (0, -1)]
        assert ends == [ramp(start), ramp(1.0)]
