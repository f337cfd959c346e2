"""How the errors of a comparison look in a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group
from rich.table import Table
from rich.text import Text


def draw_errors(
    rows: Iterable[tuple[str, float, str, str]], tolerance: float, lines: Iterable[str]
) -> Group:
    """A table of errors, red where they exceed the tolerance, with lines of markup below it.

    rows: kind of quantity, its worst error, the full name, and the case.
    """
    table = Table("quantity", "worst error", "where", "in", box=None, header_style="bold")
    for kind, error, name, case in rows:
        colour = "green" if error <= tolerance else "red"
        table.add_row(kind, Text(f"{error:.1e}", colour), name, case)
    return Group(table, *map(Text.from_markup, lines))


def agreement(passed: bool) -> str:
    """The verdict as markup."""
    return "[green]torch and ONNX agree[/]" if passed else "[red]they do not agree[/]"
