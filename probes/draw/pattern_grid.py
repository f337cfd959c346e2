"""The grid of an attention pattern: queries downwards, keys to the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from gpt2kit.readout import Floats, Ints
from probes.draw.colours import bar, sequential, style_on
from probes.draw.words import fit_width, visible

LABEL_WIDTH, SHADES = 14, " ·░▒▓█"
_NUMBER_WIDTH = 3  # terminal columns of a percentage


@dataclass(frozen=True)
class PatternGrid:
    """A causal attention pattern that fits the terminal.

    Cells are percentages, or shades where these are too wide. Where shades are too wide as well,
    neighbouring tokens share a cell: the attention that an average token of the cell's row pays
    to all tokens of its column.

    title: the line above. tokens: (N,). pattern: (N, N), query and key.
    """

    title: Text
    tokens: Sequence[str]
    pattern: Floats

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        n, room = len(self.tokens), max(8, options.max_width - LABEL_WIDTH)
        width = _NUMBER_WIDTH if _NUMBER_WIDTH * n <= room else 1
        step = -(-n * width // room)  # tokens a cell
        starts = np.arange(0, n, step)
        yield self.title
        if width == 1:
            shared = f", {step} tokens a cell" if step > 1 else ""
            yield Text(f"rows look at columns: ·░▒▓█ from 0 to 1{shared}")
        else:
            yield bar(sequential, "0", "100", "percent of the row's attention")
        yield Text("")
        yield from self._grid_rows(starts, width)
        if width == 1:
            marks = "".join(f"{i:<10}" for i in starts[::10])[: len(starts)]
        else:
            marks = "".join(f"{i:{width}}" for i in starts)
        yield Text(" " * LABEL_WIDTH + marks, "dim", no_wrap=True)

    def _grid_rows(self, starts: Ints, width: int) -> RenderResult:
        """One line for each first token of a cell, up to the diagonal."""
        sums = np.add.reduceat(np.add.reduceat(self.pattern, starts, 1), starts, 0)
        values = sums / np.diff([*starts, len(self.tokens)])[:, None]
        for row, start in enumerate(starts):
            label = fit_width(f"{start:>4} {visible(self.tokens[start])}", LABEL_WIDTH - 1)
            line = Text.assemble((f"{label} ", "dim"), no_wrap=True)  # cells are not dim
            for value in values[row, : row + 1]:
                line.append(_cell(float(value), width), _style(float(value), width))
            yield line


def _cell(value: float, width: int) -> str:
    if width == 1:
        return SHADES[min(int(np.ceil(value * 5 - 0.05)), 5)]
    return f"{100 * value:3.0f}" if value >= 0.005 else "  ·"


def _style(value: float, width: int) -> Style:
    """Numbers stand on their colour; shades are drawn in it."""
    colour = sequential(value)
    return Style(color=colour) if width == 1 else style_on(colour)
