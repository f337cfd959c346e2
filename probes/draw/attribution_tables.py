"""Drawings of attribution: the strongest parts and tokens as tables, the layers as a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.style import Style
from rich.text import Text

from gpt2kit.printable import printable
from gpt2kit.readout import Floats
from probes.draw.colours import bar, diverging
from probes.draw.grid import Grid
from probes.draw.tables import table
from probes.draw.words import title

STRONGEST, MOST_TOKENS = 10, 40  # lines of a table
BAR = 24  # terminal columns of the longest bar


def parts_table(
    about: Sequence[str],
    explained: str,
    names: Sequence[str],
    values: Floats,
    by_layer: Mapping[str, Floats],
) -> RenderableType:
    """The strongest parts for and against, then a grid of every layer.

    about: the title's parts. names, values: one for each part. by_layer: column -> (layers,).
    """
    ranked = sorted(zip(values.tolist(), names, strict=True))
    rows = table("for", "", "against", "", numbers=[""])
    for most, least in zip(ranked[: -STRONGEST - 1 : -1], ranked[:STRONGEST], strict=True):
        if most[0] > 0 or least[0] < 0:
            rows.add_row(*_cells(most, most[0] > 0), *_cells(least, least[0] < 0))
    count = f"the strongest of {len(values)} parts, which sum to {values.sum():+.3f}"
    stacked = np.stack(list(by_layer.values()), axis=1)
    most_of_all = max(float(np.abs(stacked).max()), 1e-30)
    ends = f"{-most_of_all:+.2f}", f"{most_of_all:+.2f}"
    legend = bar(diverging, *ends, "cell: what it adds to the logit")
    grid = Grid.of_numbers([legend], stacked, {"part": list(by_layer)}, most=most_of_all)
    return Group(title(*about), Text(explained), "", rows, Text(count, "dim"), "", grid)


def tokens_table(
    about: Sequence[str],
    explained: str,
    tokens: Sequence[str],
    values: Floats,
    change: str,
) -> RenderableType:
    """The tokens in order; of a long prompt, the strongest of them.

    about: the title's parts. tokens, values: (N,). change: what the values should sum to, in words.
    """
    shown = np.sort(np.argsort(-np.abs(values), kind="stable")[:MOST_TOKENS])
    most = max(float(np.abs(values).max()), 1e-30)
    rows = table("pos", "token", "value", "", numbers=("pos", "value"))
    rows.columns[1].overflow, rows.columns[1].no_wrap = "ellipsis", True
    for i in shown:
        share = float(values[i]) / most
        length = Text("█" * round(BAR * abs(share)), Style(color=diverging(np.sign(share))))
        token = Text(repr(printable(tokens[i])))
        rows.add_row(str(i), token, f"{values[i]:+.3f}", length)
    hidden = len(values) - len(shown)
    note = f"; the {hidden} weakest tokens are not shown" if hidden else ""
    total = Text(f"sum {values.sum():+.3f}; change {change}{note}")
    return Group(title(*about), Text(explained), total, "", rows)


def _cells(part: tuple[float, str], shown: bool) -> tuple[str, str]:
    return (part[1], f"{part[0]:+.3f}") if shown else ("", "")
