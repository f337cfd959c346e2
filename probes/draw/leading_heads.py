"""Tables of the heads with the largest or smallest scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from probes.draw.tables import table

RankedHead = tuple[int, int, float]  # layer, head, score


def leading_heads(
    title: Text, explained: str, columns: Mapping[str, Sequence[RankedHead]]
) -> RenderableType:
    """Heads as `layer.head score`, best first. columns: name -> the heads in it."""
    rows = table(*columns)
    cells = [_aligned(heads) for heads in columns.values()]
    for row in range(max(map(len, cells))):
        rows.add_row(*(column[row] if row < len(column) else "" for column in cells))
    return Group(title, Text(explained), "", rows)


def _aligned(heads: Sequence[RankedHead]) -> list[str]:
    """`layer.head score` with the names and the scores in columns."""
    names = [f"{layer}.{head}" for layer, head, _ in heads]
    scores = [f"{score:.2f}" for *_, score in heads]
    widths = [max(map(len, part), default=0) for part in (names, scores)]
    return [
        f"{name:<{widths[0]}}  {score:>{widths[1]}}"
        for name, score in zip(names, scores, strict=True)
    ]
