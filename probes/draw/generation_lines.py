"""One line a generated token: how its probability grew through the layers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from rich.table import Table
from rich.text import Text

from gpt2kit.readout import Floats
from probes.draw.words import fit_width, visible

BARS = " ▁▂▃▄▅▆▇█"
TOKEN_WIDTH, LEADS_WIDTH = 14, 12  # terminal columns
_RANGE = 5 * np.log(10)  # nats between an empty bar and a full one


def stacked(lines: Iterable[Text]) -> Table:
    """Lines one below the other."""
    grid = Table.grid()
    for line in lines:
        grid.add_row(line)
    return grid


def header(rows: int) -> tuple[Text, Text]:
    """What the columns are. rows: the embedding and every layer."""
    titles = f"{'token':<{TOKEN_WIDTH}}{'leads from':<{LEADS_WIDTH}}"
    bars = "bars: its probability from the embedding up, 0.001% to 100% on a log scale"
    return Text(f"{titles}{_ends(rows)}  final", "bold"), Text(bars, "dim")


def _ends(rows: int) -> str:
    """The names of the first and the last bar, as far as there is room."""
    return f"{'e':<{max(rows - len(str(rows - 2)), 1)}}{rows - 2}"[:rows].ljust(max(rows, 3))


def token_line(token: str, leads_from: int, logprobs: Floats, last_rank: int) -> Text:
    """A token, the layer from which it leads, its probability row by row, and in the last row.

    leads_from: index of a row, -1 if the token does not lead in the last one. logprobs: (R,) nats.
    last_rank: the token's rank in the last row.
    """
    out = Text(fit_width(visible(token), TOKEN_WIDTH - 1) + " ")
    leads = {-1: "drawn", 0: "embed"}.get(leads_from, f"layer {leads_from - 1}")
    out.append(f"{leads:<{LEADS_WIDTH}}", "dim" if leads_from < 0 else "")
    out.append(_bars(logprobs).ljust(3), "green")
    out.append(f"  {100 * float(np.exp(logprobs[-1])):5.1f}%")
    if leads_from < 0:
        out.append(f"  rank {last_rank}", "dim")
    return out


def _bars(logprobs: Floats) -> str:
    """One character a row; its height is the logarithm of the probability."""
    share = np.clip(1 + logprobs / _RANGE, 0, 1)
    return "".join(BARS[h] for h in np.round(share * (len(BARS) - 1)).astype(int))
