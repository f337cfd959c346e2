"""The grid of a lens: layers upwards, positions to the right, the prompt below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from gpt2kit.printable import printable
from gpt2kit.readout import Floats
from probes.draw.colours import Ramp, bar, diverging, sequential
from probes.draw.grid import Cell, Grid
from probes.draw.words import visible

MAX_BLOCKS = 4  # of positions, one below the other
_NAMES = {
    "prob": "probability",
    "logit": "logit",
    "rank": "rank",
    "entropy": "entropy of the prediction",
    "kl": "KL(final row || this row)",
    "diff": "logit",
}
_OF_TOP = {"rank": " of the token that follows", "entropy": "", "kl": ""}


@dataclass(frozen=True)
class Shading:
    """Colours of a grid: what they measure, and the values at both ends of the ramp.

    shade: (R, P) from 0 (for a diverging ramp, -1) to 1; brighter is more certain.
    """

    ramp: Ramp
    shade: Floats
    low: str
    high: str


def shading(values: NDArray[np.generic], by: str, vocab_size: int) -> Shading:
    """Shades of values (R, P) in the quantity `by`: prob, logit, rank, entropy, kl or diff."""
    v = np.asarray(values, np.float64)
    if by == "diff":
        most = max(float(np.abs(v).max()), 1e-9)
        return Shading(diverging, v / most, f"{-most:+.1f}", f"{most:+.1f}")
    if by == "prob":
        return Shading(sequential, v, "0", "1")
    if by == "rank":
        steps = np.log1p(np.maximum(v, 0)) / np.log1p(max(v.max(), 1))
        shade = np.where(v < 0, 0, 1 - steps)
        return Shading(sequential, shade, f"rank {max(int(v.max()), 0)}", "rank 0, likeliest")
    if by == "logit":
        low, high = float(v.min()), float(v.max())
        shade = (v - low) / max(high - low, 1e-9)
        return Shading(sequential, shade, f"{low:.1f}", f"{high:.1f}")
    most = max(float(v.max()), np.log(max(2, vocab_size)) if by == "entropy" else 1e-9)
    return Shading(sequential, 1 - v / most, f"{most:.1f} nats", "0 nats")


def number_grid(
    title: Text,
    rows: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    values: NDArray[np.generic],
    *,
    by: str,
    targets: Sequence[str],
) -> Grid:
    """Cells that hold numbers of one target, or with two targets the difference of their logits.

    rows: (R,) tap names, bottom to top. columns: see `prompt_columns`. values: (R, P).
    by: the quantity that the values are; "diff" for the difference of two logits.
    """
    colours = shading(values, by, vocab_size=2)
    what = f"{_NAMES[by]} of {printable(targets[0])!r}"
    if by == "diff":
        what += f" minus logit of {printable(targets[1])!r}"
    legend = bar(colours.ramp, colours.low, colours.high, f"cell and colour: {what}")
    lines = [
        (label, [
            (_cell_number(float(value), by), colours.ramp(float(shade)))
            for value, shade in zip(values[r], colours.shade[r], strict=True)
        ])
        for r, label in _labelled(rows)
    ]  # fmt: skip
    return Grid([title, legend], lines, columns, last=MAX_BLOCKS)


def word_grid(
    title: Text,
    rows: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    values: NDArray[np.generic],
    *,
    by: str,
    tokens: Sequence[Sequence[Sequence[str]]],
    probabilities: Floats,
    correct: NDArray[np.bool_],
    lines_per_row: int,
    vocab_size: int,
) -> Grid:
    """Cells that hold the likeliest tokens, one below the other.

    tokens: (R, P, top_k). probabilities, correct: the same shape; correct tokens get a tick.
    values: (R, P) the quantity `by`, which colours the cells; with by = "prob", each token's own
    probability does. For the rest, see `number_grid`.
    """
    colours = shading(values, by, vocab_size)
    explained = Text("cell: likeliest next token, ✓ if it is the one that follows")
    what = f"colour: {_NAMES[by]}" + _OF_TOP.get(by, " of it")
    header = [title, explained, bar(colours.ramp, colours.low, colours.high, what)]

    def cell(r: int, p: int, k: int) -> Cell:
        own = k and by == "prob"  # the values are of the first token
        shade = float(probabilities[r, p, k] if own else colours.shade[r, p])
        tick = "✓" if correct[r, p, k] else " "
        return tick + visible(tokens[r][p][k]), colours.ramp(shade)

    lines = [
        ("" if k else label, [cell(r, p, k) for p in range(values.shape[1])])
        for r, label in _labelled(rows)
        for k in range(lines_per_row)
    ]
    return Grid(header, lines, columns, words=True, last=MAX_BLOCKS)


def prompt_columns(
    tokens: Sequence[str], ids: Sequence[int], positions: Sequence[int], has_next: Sequence[bool]
) -> dict[str, list[str]]:
    """Labels below the columns: tokens, ids, positions, and the tokens that follow.

    tokens, ids: (N,) of the whole prompt. positions, has_next: (P,) of the columns.
    """
    return {
        "input": [visible(tokens[i]) for i in positions],
        "id": [str(ids[i]) for i in positions],
        "pos": [str(i) for i in positions],
        "next": [
            visible(tokens[i + 1]) if follows else ""
            for i, follows in zip(positions, has_next, strict=True)
        ],
    }


def _labelled(rows: Sequence[str]) -> list[tuple[int, str]]:
    """Index and label of each row, the top of the model first."""
    labels = ["embed" if row == "blocks.0.resid_pre" else row.split(".")[1] for row in rows]
    return list(enumerate([*labels[:-1], "final"]))[::-1]


def _cell_number(value: float, by: str) -> str:
    if by == "diff":
        return f"{value:+.2f}"
    if by == "rank":
        return str(int(value))
    if by == "logit":
        return f"{value:.2f}"
    return f"{100 * value:.1f}%" if value >= 0.0005 else "<0.1%"
