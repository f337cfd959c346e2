"""The strongest paths as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from probes.draw.tables import table
from probes.draw.words import format_number, title


def path_table(
    about: Sequence[str],
    metric: str,
    notes: Sequence[str],
    paths: Sequence[tuple[str, str, float]],
    whole: float,
) -> RenderableType:
    """One line for each path.

    about: the title's parts. metric: what was measured. notes: dim lines.
    paths: sender, receiver, effect. whole: the effect of changing everything.
    """
    numbers = ("effect", "of clean - corrupt")
    rows = table("sender", "receiver", *numbers, numbers=numbers)
    for sender, receiver, effect in paths:
        rows.add_row(sender, receiver, f"{effect:+.4g}", format_number(effect / whole))
    lines = [title(*about), Text(metric), *(Text(note, "dim") for note in notes)]
    return Group(*lines, "", rows)
