"""The table of facts: claimed beside measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from probes.draw.tables import table

MAX_FACT_WIDTH = 66  # terminal columns of a fact and its source
_COLOURS = {"holds": "green", "differs": "bold red", "skipped": "yellow"}


class FactLine(NamedTuple):
    """One fact as texts. note: its source, or why it was skipped. reason: shown if it differs."""

    name: str
    note: str
    reason: str
    claimed: Sequence[str]
    measured: Sequence[str]
    verdict: str  # "holds", "differs" or "skipped"


def facts_table(title: Text, lines: Iterable[FactLine]) -> RenderableType:
    """One fact below the other."""
    rows = table("fact", "claimed", "measured", "verdict", numbers=("claimed", "measured"))
    rows.padding = (0, 2, 1, 0)
    for column in rows.columns:
        column.no_wrap = column is not rows.columns[0]
    rows.columns[0].max_width = MAX_FACT_WIDTH
    for line in lines:
        about = Text.assemble(line.name, (f"\n{line.note}", "dim"))
        if line.verdict == "differs":
            about.append(f"\n{line.reason}", "dim italic")
        verdict = Text(line.verdict, _COLOURS[line.verdict])
        rows.add_row(about, "\n".join(line.claimed), "\n".join(line.measured), verdict)
    return Group(title, "", rows)
