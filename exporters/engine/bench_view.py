"""How a measurement looks in a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group
from rich.table import Table
from rich.text import Text


def draw_figures(title: str, rows: Iterable[tuple[str, str, str]], footer: str) -> Group:
    """One line per figure. rows: name, value with its unit, and a remark."""
    table = Table(box=None, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in rows:
        table.add_row(*map(Text, row))
    return Group(Text(title, "bold"), table, Text(footer, "dim"))


def megabytes(size: int) -> str:
    """Bytes as "1,234.5 MB"."""
    return f"{size / 1e6:,.1f} MB"
