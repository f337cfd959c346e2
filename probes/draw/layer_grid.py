"""The grid of a sweep: a row for each layer, or one row for a tap outside the blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.text import Text

from gpt2kit.readout import Floats
from probes.draw.colours import bar, diverging
from probes.draw.grid import Grid
from probes.draw.words import title


def sweep_grid(
    about: Sequence[str],
    lines: Sequence[str],
    notes: Sequence[str],
    values: Floats,
    columns: Mapping[str, Sequence[str]],
    *,
    most: float,
    legend: str,
    tap: str | None,
) -> Grid:
    """A title, a colour legend, and values (layers, columns), the last layer on top.

    about:  the title's parts.
    lines:  text below the title; the legend follows the first line.
    notes:  dim text above the grid.
    most:   the value with the strongest colour. legend: what a cell shows.
    tap:    the tap's name if it is outside the blocks: the one row is labelled with it.
    """
    first, *more = lines
    header = [title(*about), Text(first), bar(diverging, f"{-most:+.2g}", f"{most:+.2g}", legend)]
    header += [*map(Text, more), *(Text(note, "dim") for note in notes)]
    grid = Grid.of_numbers(header, values, columns, most=most)
    if tap is None:
        return grid
    return replace(grid, corner="tap", lines=[(tap, cells) for _, cells in grid.lines])
