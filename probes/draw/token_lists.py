"""Two lists of tokens with a number each, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from gpt2kit.readout import Floats
from probes.draw.tables import table
from probes.draw.words import visible


class TokenList(NamedTuple):
    """Tokens and their numbers, under a name."""

    name: str
    tokens: Sequence[str]
    values: Floats


def side_by_side(
    title: Text, left: TokenList, right: TokenList, *, unit: str, number: str
) -> RenderableType:
    """Two lists of equal length. unit: heads both columns of numbers. number: their format."""
    rows = table(left.name, unit, right.name, unit, numbers=[unit])
    for token, value, other, other_value in zip(*left[1:], *right[1:], strict=True):
        rows.add_row(
            Text(visible(token)), format(value, number),
            Text(visible(other)), format(other_value, number),
        )  # fmt: skip
    return Group(title, "", rows)
