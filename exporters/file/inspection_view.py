"""Draw the description of a file: facts, and sections in which equal layers share a line."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def facts_and_sections(
    facts: Mapping[str, str],
    sections: Mapping[str, Mapping[str, str]],
    titles: Mapping[str, str],
) -> RenderableType:
    """Facts as a list, then each section under its title.

    titles: section -> its title, if that is not the section's name.
    """
    parts: list[RenderableType] = [_facts_table(facts, name_style="bold")]
    for name, rows in sections.items():
        title = titles.get(name, name) if rows else f"{name}: none"
        parts += [Text(""), Text(title, "bold")]
        if rows:
            indented = {f"  {key}": value for key, value in merge_layers(rows).items()}
            parts.append(_facts_table(indented, value_style="dim"))
    return Group(*parts)


def _facts_table(rows: Mapping[str, str], name_style: str = "", value_style: str = "") -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        grid.add_row(Text(name, name_style), Text(value, value_style))
    return grid


def merge_layers(values: Mapping[str, str]) -> dict[str, str]:
    """One entry for layers with equal values: 'blocks.{0-11}.z'."""
    layers: dict[tuple[str, str, str], list[int]] = {}
    for name, value in values.items():
        found = re.fullmatch(r"(.*?\.)(\d+)(\..*)", name)
        key = (found[1], found[3], value) if found else (name, "", value)
        layers.setdefault(key, []).append(int(found[2]) if found else -1)
    return {
        f"{before}{_span(numbers)}{after}" if numbers[0] >= 0 else before: value
        for (before, after, value), numbers in layers.items()
    }


def _span(numbers: list[int]) -> str:
    """'3', '{0-11}' or '{0,2,5}'."""
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}-{numbers[-1]}}}"
    return "{" + ",".join(map(str, numbers)) + "}"
