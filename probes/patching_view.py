"""How patching results look: a grid of numbers, layers upwards, coloured by size and sign."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.console import Console, ConsoleOptions
from rich.style import Style
from rich.text import Text

from gpt2kit.readout import Floats
from gpt2kit.tokenizer import printable

NARROWEST, WIDEST = 6, 11  # columns of a cell
_STOPS = ((52, 96, 190), (52, 56, 72), (214, 84, 56))  # -1, 0, 1
_INK = Color.from_rgb(245, 245, 245)


class Grid:
    """Numbers (layers, columns) that rich draws as wide as there is room, in blocks of columns.

    header:  lines above.
    columns: what each line of labels below is called -> its labels, one a column.
    most:    what is coloured as strongly as can be.
    """

    def __init__(
        self,
        header: Sequence[str],
        values: Floats,
        *,
        columns: dict[str, Sequence[str]],
        most: float,
    ) -> None:
        self.header, self.values, self.most = header, values, max(most, 1e-12)
        self.rows = [str(layer) for layer in range(len(values))]
        self.columns = {name: [visible(text) for text in line] for name, line in columns.items()}
        self.label = max(map(cell_len, ["layer", *columns])) + 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        for n, line in enumerate(self.header):
            yield Text(line, "bold" if not n else "", no_wrap=True, overflow="ellipsis")
        yield self._legend()
        cell = self._cell_width(options.max_width)
        fit = max(1, (options.max_width - self.label) // cell)
        for start in range(0, self.values.shape[1], fit):
            yield Text("")
            yield from self._block(range(start, min(start + fit, self.values.shape[1])), cell)

    def _cell_width(self, room: int) -> int:
        """Wide enough for the longest column label, if all columns still fit; else narrow."""
        need = max((cell_len(x) for line in self.columns.values() for x in line), default=1)
        fits = (room - self.label) // max(1, self.values.shape[1])
        width: int = min(max(need + 1, NARROWEST), max(fits, NARROWEST), WIDEST)
        return width

    def _legend(self) -> Text:
        bar = Text(f"{-self.most:+.2g} ")
        for i in range(13):
            bar.append(" ", Style(bgcolor=colour(i / 6 - 1)))
        return bar.append(f" {self.most:+.2g}")

    def _block(self, columns: range, cell: int) -> Iterator[Text]:
        yield Text("layer", "dim")
        for row in reversed(range(len(self.rows))):
            line = Text(_fit(self.rows[row], self.label), "dim", no_wrap=True)
            for column in columns:
                value = float(self.values[row, column])
                shade = 0.0 if np.isnan(value) else value / self.most
                line.append(_fit(number(value), cell), Style(color=_INK, bgcolor=colour(shade)))
            yield line
        yield Text("─" * (self.label + cell * len(columns)), "dim", no_wrap=True)
        for name, texts in self.columns.items():
            line = Text(_fit(name, self.label), "dim", no_wrap=True)
            for column in columns:
                line.append(" " + _fit(texts[column], cell - 1))
            yield line


def colour(value: float) -> Color:
    """Blue at -1, grey at 0, red at 1."""
    value = min(max(value, -1.0), 1.0)
    end = _STOPS[0] if value < 0 else _STOPS[2]
    return Color.from_rgb(*(a + (b - a) * abs(value) for a, b in zip(_STOPS[1], end, strict=True)))


def number(value: float) -> str:
    """At most five characters after a space; a dot where there is no number."""
    if np.isnan(value):
        return "   ·"
    if abs(value) < 0.005:
        return "  0.00"  # without a sign that is only rounding
    return f" {value:+.2f}" if abs(value) < 9.995 else f" {value:+.3g}"


def visible(token: str) -> str:
    """A token with its leading space and line breaks to be seen."""
    text = printable(token)
    return "·" + text[1:] if text.startswith(" ") else text


def _fit(text: str, width: int) -> str:
    """Exactly `width` terminal columns; what is cut ends in …."""
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    return set_cell_size(text, width)
