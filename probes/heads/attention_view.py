"""How attention looks in a terminal: one head's grid, and tables of leading heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.style import Style
from rich.text import Text

from gpt2kit.prompts import counted
from gpt2kit.readout import Floats
from probes.draw.colours import bar, sequential, style_on
from probes.draw.tables import table
from probes.draw.words import fit_width, title, visible

if TYPE_CHECKING:
    from probes.heads.attention import HeadPattern

LABEL, SHADES = 14, " ·░▒▓█"


def leading(scores: Floats, n: int, most: bool = True) -> list[tuple[int, int, float]]:
    """(layer, head, score) of the n heads with the most, or the least, of (layer, head) scores."""
    order = np.argsort(-scores if most else scores, axis=None, kind="stable")  # NaN comes last
    places = [divmod(int(i), scores.shape[1]) for i in order[:n]]
    return [(*at, float(scores[at])) for at in places if not np.isnan(scores[at])]


def leaders(first: Text, what: str, columns: Mapping[str, tuple[Floats, bool]]) -> RenderableType:
    """Five heads a column, as `layer.head score`. first, what: the lines above.
    columns: name -> (scores, whether most leads)."""
    rows = table(*columns)
    cells = [_aligned(leading(scores, 5, most)) for scores, most in columns.values()]
    for row in range(max(map(len, cells))):
        rows.add_row(*(column[row] if row < len(column) else "" for column in cells))
    return Group(first, Text(what), "", rows)


def _aligned(heads: list[tuple[int, int, float]]) -> list[str]:
    """`layer.head score`, score under score."""
    names = [f"{layer}.{head}" for layer, head, _ in heads]
    scores = [f"{score:.2f}" for *_, score in heads]
    widths = [max(map(len, part), default=0) for part in (names, scores)]
    return [
        f"{name:<{widths[0]}}  {score:>{widths[1]}}"
        for name, score in zip(names, scores, strict=True)
    ]


class PatternGrid:
    """A head's pattern in percent, or where that is too wide, in shades; a very long prompt's
    tokens are taken together, so that each cell is the attention an average token of its row pays
    to all of its column."""

    def __init__(self, of: HeadPattern) -> None:
        self.of = of

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        n, room = len(self.of.tokens), max(8, options.max_width - LABEL)
        cell = 3 if 3 * n <= room else 1
        step = -(-n * cell // room)
        starts = np.arange(0, n, step)
        sums = np.add.reduceat(np.add.reduceat(self.of.pattern, starts, 1), starts, 0)
        values = sums / np.diff([*starts, n])[:, None]
        head, read = f"attention of head {self.of.layer}.{self.of.head}", counted(n, "token")
        yield title(head, self.of.source, self.of.dtype, read)
        if cell == 1:
            taken = f", {step} tokens a cell" if step > 1 else ""
            yield Text(f"rows look at columns: ·░▒▓█ from 0 to 1{taken}")
        else:
            yield bar(sequential, "0", "100", "percent of the row's attention")
        yield Text("")
        for row, start in enumerate(starts):
            label = fit_width(f"{start:>4} {visible(self.of.tokens[start])}", LABEL - 1)
            line = Text(f"{label} ", "dim", no_wrap=True)
            for value in values[row, : row + 1]:
                line.append(_cell(float(value), cell), _style(float(value), cell))
            yield line
        if cell == 3:
            marks = "".join(f"{i:3}" for i in starts)
        else:
            marks = "".join(f"{i:<10}" for i in starts[::10])[: len(starts)]
        yield Text(" " * LABEL + marks, "dim", no_wrap=True)


def _cell(value: float, width: int) -> str:
    if width == 1:
        return SHADES[min(int(np.ceil(value * 5 - 0.05)), 5)]
    return f"{100 * value:3.0f}" if value >= 0.005 else "  ·"


def _style(value: float, width: int) -> Style:
    """A number stands on its colour; a shade is drawn in it."""
    colour = sequential(value)
    return style_on(colour) if width == 3 else Style(color=colour)
