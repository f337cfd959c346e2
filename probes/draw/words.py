"""Short texts of a drawing: titles, tokens, numbers, and labels of a fixed width."""

from __future__ import annotations

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from gpt2kit.printable import printable
from gpt2kit.prompts import counted


def title(name: str, *about: str) -> Text:
    """The name of a result in bold, then the parts of `about` that are not empty."""
    return Text.assemble((name, "bold"), *(f"  {part}" for part in about if part))


def tokens_read(count: int, has_bos: bool) -> str:
    """ "7 tokens, no BOS added"."""
    return f"{counted(count, 'token')}, {'' if has_bos else 'no '}BOS added"


def visible(token: str) -> str:
    """A token with its leading space and its control characters made visible."""
    text = printable(token)
    return "·" + text[1:] if text.startswith(" ") else text


def fit_width(text: str, width: int, *, right: bool = False) -> str:
    """A text padded or shortened to `width` terminal columns; a shortened text ends in …."""
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    blank = " " * (width - cell_len(text))
    return blank + text if right else text + blank


def format_number(value: float) -> str:
    """A signed number in about five characters; a dot for NaN."""
    if np.isnan(value):
        return "·"
    if abs(value) < 0.005:
        return "0.00"  # without a sign that is only rounding
    return f"{value:+.2f}" if abs(value) < 9.995 else f"{value:+.3g}"
