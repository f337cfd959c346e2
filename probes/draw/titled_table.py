"""A title, and a table of text below it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.text import Text

from probes.draw.tables import table
from probes.draw.words import title


def titled_table(
    about: Sequence[str],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
) -> Group:
    """about: the title's parts. rows: the cells of each line. numbers: columns set to the right."""
    lines = table(*columns, numbers=numbers)
    for cells in rows:
        lines.add_row(*map(Text, cells))
    return Group(title(*about), "", lines)
