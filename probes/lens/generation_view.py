"""How a token's way through the layers looks: one line each."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from rich.table import Table
from rich.text import Text

from gpt2kit.readout import Floats
from probes.draw.words import fit_width, visible
from probes.lens.generation_lens import GenerationLens, Step

BARS = " ▁▂▃▄▅▆▇█"
TOKEN, LEADS = 14, 12  # columns
_DECADES = 5 * np.log(10)  # that the bars span


def table(lens: GenerationLens) -> Table:
    """All steps below one another."""
    grid = Table.grid()
    for text in (*header(len(lens.rows)), *map(line, lens.steps)):
        grid.add_row(text)
    return grid


def header(rows: int) -> Iterable[Text]:
    """What the columns are."""
    title = f"{'token':<{TOKEN}}{'leads from':<{LEADS}}"
    yield Text(f"{title}{_ends(rows)}  in the end", "bold")
    bars = "bars: its probability from the embedding up, 0.001% to 100% on a log scale"
    yield Text(bars, "dim")


def _ends(rows: int) -> str:
    """The embedding and the last layer over a row of bars, as far as there is room."""
    return f"{'e':<{max(rows - len(str(rows - 2)), 1)}}{rows - 2}"[:rows].ljust(max(rows, 3))


def line(step: Step) -> Text:
    """Token, the layers after which it leads, its probability layer by layer, and in the end."""
    out = Text(fit_width(visible(step.token), TOKEN - 1) + " ")
    leads = {-1: "drawn", 0: "embed"}.get(step.leads_from, f"layer {step.leads_from - 1}")
    out.append(f"{leads:<{LEADS}}", "dim" if step.leads_from < 0 else "")
    out.append(_bars(step.logprobs).ljust(3), "green")
    out.append(f"  {100 * float(np.exp(step.logprobs[-1])):5.1f}%")
    if step.leads_from < 0:
        out.append(f"  rank {int(step.ranks[-1])}", "dim")
    return out


def _bars(logprobs: Floats) -> str:
    """One character a row, its height the logarithm of the probability."""
    share = np.clip(1 + logprobs / _DECADES, 0, 1)
    return "".join(BARS[h] for h in np.round(share * (len(BARS) - 1)).astype(int))
