"""Markdown of the model card: tables, texts, and grids of heads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

SHADES = "·░▒▓█"  # a value from 0 to 1, in fifths


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column is aligned left, the others right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def plain(text: str) -> str:
    """A text as one line of Markdown: ` / ` for line breaks, special characters escaped."""
    text = re.sub(r"\s*\n\s*", " / ", text)
    for character in "\\`*_<[|#":
        text = text.replace(character, "\\" + character)
    return text


def code(token: str) -> str:
    """A token as code, its leading space and line break made visible."""
    text = token.replace(" ", "·").replace("\n", "⏎").replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def head_name(layer: int, head: int) -> str:
    """ "4.2": layer.head, both counted from 0."""
    return f"{layer}.{head}"


def shade(value: float) -> str:
    """One character for a value from 0 to 1."""
    return SHADES[int(np.clip(value * len(SHADES), 0, len(SHADES) - 1))]


def head_grids(scores: Mapping[str, NDArray[np.floating]]) -> str:
    """Pictures of (layer, head) scores from 0 to 1, side by side in a code block."""
    layers, heads = next(iter(scores.values())).shape
    width = max(2 * heads, *(len(name) + 2 for name in scores)) + 2
    numbers = " ".join(str(head) for head in range(heads))
    lines = [
        " " * 9 + "".join(f"{name:<{width}}" for name in scores),
        "head     " + "".join(f"{numbers:<{width}}" for _ in scores),
    ]
    for layer in range(layers):
        drawn = (" ".join(shade(x) for x in grid[layer]) for grid in scores.values())
        lines.append(f"layer {layer:<3}" + "".join(f"{row:<{width}}" for row in drawn))
    return "\n".join(["```text", *(line.rstrip() for line in lines), "```"])


def token_grid(values: NDArray[np.floating], tokens: Sequence[str]) -> str:
    """A picture of (layer, position) values from 0 to 1: a row a position, with its token."""
    layers = values.shape[0]
    width = max(len(token) for token in tokens) + 2
    lines = [" " * width + " ".join(f"{layer:<2}" for layer in range(layers))]
    for token, column in zip(tokens, values.T, strict=True):
        drawn = " ".join(f"{shade(x):<2}" for x in column)
        lines.append(f"{token.replace(' ', '·'):<{width}}{drawn}")
    return "\n".join(["```text", *(line.rstrip() for line in lines), "```"])
