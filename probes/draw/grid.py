"""Grids of coloured cells that fit the width of the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.cells import cell_len
from rich.color import Color
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.text import Text

from gpt2kit.readout import Floats
from probes.draw.colours import diverging, style_on
from probes.draw.words import fit_width, format_number, visible

MIN_WIDTH, MAX_WIDTH = 6, 12  # terminal columns of one cell
Cell = tuple[str, Color]  # text, background


@dataclass(frozen=True)
class Grid:
    """Coloured cells in lines and columns.

    Columns that do not fit the terminal side by side go into blocks below one another.
    header:  lines above the grid.
    lines:   the topmost first: a label, and a cell for each column.
    columns: the lines of labels below the grid: name -> one label for each column.
    corner:  the name of the labels on the left.
    words:   cells hold words, which are aligned left and shortened; else numbers, aligned right
             and never shortened.
    last:    show only this many blocks, the last ones, and say so.
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
        """A grid of values (layers, columns), layer 0 at the bottom.

        most: the size of a value that gets the strongest colour. NaN gets a dot.
        """
        lines = [
            (
                str(layer),
                [(format_number(v), diverging(0.0 if np.isnan(v) else v / most)) for v in row],
            )
            for layer, row in enumerate(values.tolist())
        ]
        shown = {name: [visible(text) for text in texts] for name, texts in columns.items()}
        return cls(header, lines[::-1], shown, corner="layer")

    @property
    def width(self) -> int:
        """Terminal columns that the grid takes with all columns side by side."""
        return self._label + self._count * self._cell_width(self._count * MAX_WIDTH)

    @property
    def _label(self) -> int:
        """Terminal columns of the labels on the left."""
        labels = (label for label, _ in self.lines)
        return max(map(cell_len, [self.corner, *labels, *self.columns])) + 1

    @property
    def _count(self) -> int:
        """How many columns the grid has."""
        return len(self.lines[0][1])

    def _cell_width(self, room: int) -> int:
        """Terminal columns of a cell, if `room` is left for all cells of a line.

        Words: enough for the longest, up to MAX_WIDTH. Numbers: enough for the longest, and for the
        labels if they fit.
        """
        cells = max(cell_len(text) for _, line in self.lines for text, _ in line)
        labels = max((cell_len(x) for line in self.columns.values() for x in line), default=0)
        if self.words:
            return min(max(cells, labels + 1, MIN_WIDTH) + 1, MAX_WIDTH)
        return max(cells + 1, MIN_WIDTH, min(labels + 1, room // self._count, MAX_WIDTH))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self._label + MIN_WIDTH, self.width)

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
        """The lines of one block. page: its columns. cell: the width of each."""
        if self.corner:
            yield Text(self.corner, "dim")
        for label, cells in self.lines:
            line = Text.assemble((fit_width(label, self._label), "dim"))  # cells are not dim
            for text, colour in (cells[i] for i in page):
                line.append(fit_width(text, cell, right=not self.words), style_on(colour))
            yield line
        yield Text("─" * (self._label + cell * len(page)), "dim")
        for n, (name, texts) in enumerate(self.columns.items()):
            line = Text(fit_width(name, self._label), "dim")
            for text in (texts[i] for i in page):
                shown = " " + fit_width(text, cell - 1, right=not self.words)
                line.append(shown, "dim" if n else "not dim bold")
            yield line
