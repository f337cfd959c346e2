"""How a logit lens looks: a grid for terminals and notebooks."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console
from rich.text import Text

from gpt2kit.errors import InputError
from gpt2kit.readout import Floats
from gpt2kit.result import as_html as _as_html
from gpt2kit.tokenizer import printable
from probes.draw.colours import bar, diverging, sequential
from probes.draw.grid import Cell, Grid
from probes.draw.words import title, tokens_read, visible
from probes.lens.logit_lens import LogitLens

MOST_BLOCKS = 4  # of positions, below one another


def show(lens: LogitLens, console: Console, *, by: str = "prob", lines: int = 1) -> None:
    """Print the grid: layers upwards, positions to the right, input tokens below.

    by: what colours a cell (and, with a target, what it says): see `QUANTITIES`.
    lines: how many of the top tokens a cell shows.
    """
    console.print(grid(lens, by=by, lines=lines))


def as_text(lens: LogitLens, width: int | None = None) -> str:
    """The grid as plain text, `width` columns wide (the terminal's by default)."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        show(lens, console)
    return capture.get()


def as_html(lens: LogitLens, by: str = "prob") -> str:
    """The grid as an HTML fragment that scrolls sideways."""
    return _as_html(grid(lens, by=by))


def grid(lens: LogitLens, *, by: str = "prob", lines: int = 1) -> Grid:
    """What `show` prints."""
    if not 1 <= lines <= lens.top_ids.shape[-1]:
        raise InputError(f"{lines} tokens a cell asked for, the lens has {lens.top_ids.shape[-1]}")
    view = _View(lens, by, lines)
    return Grid(
        view.header(), view.lines(), view.columns(), words=not view.targeted, last=MOST_BLOCKS
    )


class _View:
    """Texts and colours of one lens."""

    def __init__(self, lens: LogitLens, by: str, lines: int) -> None:
        self.lens, self.by, self.count = lens, by, lines
        if len(lens.targets) > 2:
            raise InputError(f"the grid shows one target and one foil, not {len(lens.targets)}")
        # Entropy and KL are of the whole prediction: a target has no part in them.
        self.targeted = bool(lens.targets) and by not in ("entropy", "kl")
        self.diff = self.targeted and len(lens.targets) == 2
        values = lens.logit_diff if self.diff else lens.values(by)
        self.values = np.asarray(values, np.float64)
        self.ramp = diverging if self.diff else sequential
        self.shade, self.low, self.high = self._scale()

    def _scale(self) -> tuple[Floats, str, str]:
        """(R, P) shade from 0, or -1, to 1 (brighter: more certain), and what its ends are."""
        v, by = self.values, self.by
        vocab = np.log(max(2, int(self.lens.top_ids.max()) + 1))
        if self.diff:
            most = max(float(np.abs(v).max()), 1e-9)
            return v / most, f"{-most:+.1f}", f"{most:+.1f}"
        if by == "prob":
            return v, "0", "1"
        if by == "rank":
            shade = np.where(v < 0, 0, 1 - np.log1p(np.maximum(v, 0)) / np.log1p(max(v.max(), 1)))
            return shade, f"rank {max(int(v.max()), 0)}", "rank 0, likeliest"
        if by == "logit":
            low, high = float(v.min()), float(v.max())
            return (v - low) / max(high - low, 1e-9), f"{low:.1f}", f"{high:.1f}"
        most = max(float(v.max()), vocab if by == "entropy" else 1e-9)
        return 1 - v / most, f"{most:.1f} nats", "0 nats"

    def header(self) -> list[Text]:
        """What a reader must know to trust the grid."""
        lens = self.lens
        read = tokens_read(len(lens.prompt_ids), lens.has_bos)
        first = title(lens.kind, lens.source, lens.dtype, read)
        targets = [repr(printable(t)) for t in lens.targets]
        quantity = {
            "prob": "probability", "logit": "logit", "rank": "rank",
            "entropy": "entropy of the prediction", "kl": "KL(final row || this row)",
        }[self.by]  # fmt: skip
        if self.targeted:
            what = f"{quantity} of {targets[0]}"
            if self.diff:
                what = f"logit of {targets[0]} minus logit of {targets[1]}"
            return [first, bar(self.ramp, self.low, self.high, f"cell and colour: {what}")]
        of = {"rank": " of the token that follows", "entropy": "", "kl": ""}
        what = f"colour: {quantity}" + of.get(self.by, " of it")
        cell = Text("cell: likeliest next token, ✓ if it is the one that follows")
        return [first, cell, bar(self.ramp, self.low, self.high, what)]

    def lines(self) -> list[tuple[str, list[Cell]]]:
        """The final layer first; several a layer if cells show several tokens."""
        rows, out = self.lens.rows, list[tuple[str, list[Cell]]]()
        for r in reversed(range(len(rows))):
            for n in range(1 if self.targeted else self.count):
                cells = [self._cell(r, p, n) for p in range(len(self.lens.positions))]
                out.append(("" if n else _label(rows[r], len(rows) - 1 == r), cells))
        return out

    def columns(self) -> dict[str, list[str]]:
        """The prompt, below its columns."""
        lens = self.lens
        shown = lens.positions.tolist()
        return {
            "input": [visible(lens.prompt_tokens[i]) for i in shown],
            "id": [str(int(lens.prompt_ids[i])) for i in shown],
            "pos": [str(i) for i in shown],
            "next": [
                visible(lens.prompt_tokens[i + 1]) if n >= 0 else ""
                for i, n in zip(shown, lens.next_ids.tolist(), strict=True)
            ],
        }

    def _cell(self, r: int, p: int, n: int) -> Cell:
        lens, shade = self.lens, float(self.shade[r, p])
        if self.targeted:
            return self._number(float(self.values[r, p])), self.ramp(shade)
        if n and self.by == "prob":
            shade = float(np.exp(lens.top_logprobs[r, p, n]))
        mark = "✓" if lens.top_ids[r, p, n] == lens.next_ids[p] else " "
        return mark + visible(lens.top_tokens[r][p][n]), self.ramp(shade)

    def _number(self, value: float) -> str:
        if self.diff:
            return f"{value:+.2f}"
        if self.by == "rank":
            return str(int(value))
        if self.by == "logit":
            return f"{value:.2f}"
        return f"{100 * value:.1f}%" if value >= 0.0005 else "<0.1%"


def _label(row: str, is_last: bool) -> str:
    if row == "blocks.0.resid_pre":
        return "embed"
    return "final" if is_last else row.split(".")[1]
