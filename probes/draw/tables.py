"""Tables without borders."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from gpt2kit.printable import printable


def table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    """An empty table without borders; the columns named in `numbers` are aligned right."""
    out = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        out.add_column(Text(printable(name)), justify="right" if name in numbers else "left")
    return out
