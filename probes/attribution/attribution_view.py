"""How attribution looks: tables of the strongest parts and tokens, and a grid of the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group, RenderableType
from rich.style import Style
from rich.text import Text

from gpt2kit.tokenizer import printable
from probes.draw.colours import bar, diverging
from probes.draw.grid import Grid
from probes.draw.tables import table
from probes.draw.words import title, tokens_read

if TYPE_CHECKING:
    from probes.attribution.direct import Asked, DirectLogitAttribution
    from probes.attribution.inputs import InputAttribution

STRONGEST, MOST_TOKENS = 10, 40  # lines of a table
BAR = 24  # terminal columns


def parts(of: DirectLogitAttribution) -> RenderableType:
    """The strongest parts for and against, then every layer's heads and MLP."""
    values = of.parts
    ranked = sorted(zip(values.tolist(), of.names, strict=True))
    rows = table("for", "", "against", "", numbers=[""])
    for most, least in zip(ranked[: -STRONGEST - 1 : -1], ranked[:STRONGEST], strict=True):
        if most[0] > 0 or least[0] < 0:
            rows.add_row(*_cells(most, most[0] > 0), *_cells(least, least[0] < 0))
    count = f"the strongest of {len(values)} parts, which sum to {values.sum():+.3f}"
    columns = of.by_layer()
    by_layer = np.stack(list(columns.values()), axis=1)
    most_of_all = max(float(np.abs(by_layer).max()), 1e-30)
    ends = f"{-most_of_all:+.2f}", f"{most_of_all:+.2f}"
    legend = bar(diverging, *ends, "cell: what it adds to the logit")
    grid = Grid.of_numbers([legend], by_layer, {"part": list(columns)}, most=most_of_all)
    return Group(*_header(of, "direct logit attribution"), "", rows, Text(count, "dim"), "", grid)


def tokens(of: InputAttribution) -> RenderableType:
    """The tokens in order; of a long prompt, the strongest of them."""
    seen = of.values[: of.position + 1]
    shown = np.sort(np.argsort(-np.abs(seen), kind="stable")[:MOST_TOKENS])
    most = max(float(np.abs(seen).max()), 1e-30)
    rows = table("pos", "token", "value", "", numbers=("pos", "value"))
    rows.columns[1].overflow, rows.columns[1].no_wrap = "ellipsis", True
    for i in shown:
        share = float(seen[i]) / most
        length = Text("█" * round(BAR * abs(share)), Style(color=diverging(np.sign(share))))
        token = Text(repr(printable(of.prompt_tokens[i])))
        rows.add_row(str(i), token, f"{seen[i]:+.3f}", length)
    hidden = len(seen) - len(shown)
    note = f"; the {hidden} weakest tokens are not shown" if hidden else ""
    change = f"{of.total - of.baseline_total:+.3f} from the baseline, {of.baseline}"
    total = Text(f"sum {seen.sum():+.3f}; change {change}{note}")
    return Group(*_header(of, of.method.replace("_", " ")), total, "", rows)


def _header(of: Asked, what: str) -> list[RenderableType]:
    token = printable(of.prompt_tokens[of.position])
    where = f" after {token!r} (position {of.position})"
    read = tokens_read(len(of.prompt_ids), of.has_bos)
    return [title(what, of.source, of.dtype, read), Text(of.explained + where)]


def _cells(part: tuple[float, str], shown: bool) -> tuple[str, str]:
    return (part[1], f"{part[0]:+.3f}") if shown else ("", "")
