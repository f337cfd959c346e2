"""Next tokens and texts of two generations, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gpt2kit.readout import Floats
from probes.draw.words import visible

_SIDES = ("without", "with")


def edit_effect_view(
    title: str,
    note: str,
    prompt: str,
    texts: Sequence[str],
    tokens: Sequence[Sequence[str]],
    probs: Floats,
    other_probs: Floats,
) -> RenderableType:
    """Two columns: without the edits, and with them.

    texts: (2,) what follows the prompt. tokens: (2, shown) the likeliest next tokens. probs,
    other_probs: (2, shown) their probabilities, on their own side and on the other.
    """
    what = Text(title, overflow="fold")
    tops = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for side in _SIDES:
        tops.add_column(f"next, {side}", no_wrap=True)
        tops.add_column("", justify="right")
        tops.add_column("")
    for i in range(probs.shape[1]):
        cells: list[Text] = []
        for n in (0, 1):
            was = f"({_SIDES[1 - n]}: {100 * other_probs[n, i]:.1f}%)"
            token = Text(visible(tokens[n][i]))
            cells += [token, Text(f"{100 * probs[n, i]:.1f}%"), Text(was, "dim")]
        tops.add_row(*cells)
    columns = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), expand=True)
    for side in _SIDES:
        columns.add_column(f"text, {side}", ratio=1, overflow="fold")
    columns.add_row(*(Text.assemble((prompt, "dim"), text) for text in texts))
    return Group(what, Text(""), tops, Text(note, "dim"), Text(""), columns)
