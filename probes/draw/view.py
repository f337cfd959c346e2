"""How probes' results look: titles, tables, colours, and grids of numbers that fit the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.style import Style
from rich.table import Table
from rich.text import Text

from gpt2kit.prompts import counted
from gpt2kit.readout import Floats
from gpt2kit.tokenizer import printable

NARROWEST, WIDEST = 6, 12  # terminal columns of a grid's cell
RGB = tuple[int, int, int]
Ramp = Callable[[float], Color]
Cell = tuple[str, Color]  # what it says, and what it stands on
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
    place = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    i = min(int(place), len(stops) - 2)
    mixed = (a + (b - a) * (place - i) for a, b in zip(stops[i], stops[i + 1], strict=True))
    return Color.from_rgb(*mixed)


def on(colour: Color) -> Style:
    """That background, and ink that can be read on it."""
    red, green, blue = colour.triplet or (0, 0, 0)
    dark = 0.30 * red + 0.59 * green + 0.11 * blue < 140
    return Style(color=_LIGHT if dark else _DARK, bgcolor=colour)


def bar(ramp: Ramp, low: str, high: str, what: str) -> Text:
    """The colours from one end to the other, and what they measure."""
    start = -1.0 if ramp is diverging else 0.0
    out = Text(f"{low} ")
    for share in np.linspace(start, 1, 13):
        colour = ramp(float(share))
        out.append("─", Style(color=colour, bgcolor=colour))
    return out.append(f" {high}  {what}")


def title(what: str, *about: str) -> Text:
    """What a result is, then its source, its dtype and how much was read."""
    return Text.assemble((what, "bold"), *(f"  {part}" for part in about if part))


def tokens_read(count: int, has_bos: bool) -> str:
    """ "7 tokens, no BOS added"."""
    return f"{counted(count, 'token')}, {'' if has_bos else 'no '}BOS added"


def table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    """An empty table without lines; the columns named in `numbers` are set to the right."""
    out = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        out.add_column(Text(printable(name)), justify="right" if name in numbers else "left")
    return out


def visible(token: str) -> str:
    """A token with its leading space and line breaks to be seen."""
    text = printable(token)
    return "·" + text[1:] if text.startswith(" ") else text


def fit(text: str, width: int, *, right: bool = False) -> str:
    """Exactly `width` terminal columns; what is cut ends in …."""
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    blank = " " * (width - cell_len(text))
    return blank + text if right else text + blank


def number(value: float) -> str:
    """Five characters for all usual sizes; a dot where there is no number."""
    if np.isnan(value):
        return "·"
    if abs(value) < 0.005:
        return "0.00"  # without a sign that is only rounding
    return f"{value:+.2f}" if abs(value) < 9.995 else f"{value:+.3g}"


@dataclass(frozen=True)
class Grid:
    """Coloured cells, in as many blocks of columns below one another as the terminal asks for.

    header:  lines above.
    lines:   the topmost first: a label, and a cell for each column.
    columns: what each line of labels below is called -> its labels, one a column.
    corner:  what the labels at the left are.
    words:   cells are words, set to the left and cut where they are long; else numbers.
    last:    show only so many blocks, the last ones, and say so.
    """

    header: Sequence[Text]
    lines: Sequence[tuple[str, Sequence[Cell]]]
    columns: Mapping[str, Sequence[str]]
    corner: str = ""
    words: bool = False
    last: int | None = None

    @classmethod
    def of_numbers(
        cls,
        header: Sequence[Text],
        values: Floats,
        columns: Mapping[str, Sequence[str]],
        *,
        most: float,
    ) -> Grid:
        """Layers (layers, columns) upwards; `most` is coloured as strongly as can be."""
        lines = [
            (str(layer), [(number(v), diverging(0.0 if np.isnan(v) else v / most)) for v in row])
            for layer, row in enumerate(values.tolist())
        ]
        shown = {name: [visible(text) for text in texts] for name, texts in columns.items()}
        return cls(header, lines[::-1], shown, corner="layer")

    @property
    def width(self) -> int:
        """Terminal columns with all columns side by side."""
        return self._label + self._count * self._cell_width(self._count * WIDEST)

    @property
    def _label(self) -> int:
        labels = (label for label, _ in self.lines)
        return max(map(cell_len, [self.corner, *labels, *self.columns])) + 1

    @property
    def _count(self) -> int:
        return len(self.lines[0][1])

    def _cell_width(self, room: int) -> int:
        """Wide enough for all words; or for all numbers, and their labels if that fits."""
        cells = max(cell_len(text) for _, line in self.lines for text, _ in line)
        labels = max((cell_len(x) for line in self.columns.values() for x in line), default=0)
        if self.words:
            return min(max(cells, labels + 1, NARROWEST) + 1, WIDEST)
        return max(cells + 1, NARROWEST, min(labels + 1, room // self._count, WIDEST))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self._label + NARROWEST, self.width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield from self.header
        room = options.max_width - self._label
        cell = self._cell_width(room)
        fits = max(1, room // cell)
        pages = [range(i, min(i + fits, self._count)) for i in range(0, self._count, fits)]
        pages = pages[-self.last :] if self.last else pages
        if hidden := pages[0][0]:
            yield Text(f"the first {hidden} columns are not shown; choose with --pos", "dim")
        for page in pages:
            yield Text("")
            for line in self._block(page, cell):
                line.no_wrap, line.overflow = True, "crop"
                yield line

    def _block(self, page: range, cell: int) -> Iterator[Text]:
        if self.corner:
            yield Text(self.corner, "dim")
        for label, cells in self.lines:
            line = Text(fit(label, self._label), "dim")
            for text, colour in (cells[i] for i in page):
                line.append(fit(text, cell, right=not self.words), on(colour))
            yield line
        yield Text("─" * (self._label + cell * len(page)), "dim")
        for n, (name, texts) in enumerate(self.columns.items()):
            line = Text(fit(name, self._label), "dim")
            for text in (texts[i] for i in page):
                shown = " " + fit(text, cell - 1, right=not self.words)
                line.append(shown, "dim" if n else "not dim bold")
            yield line
