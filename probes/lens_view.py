"""How a logit lens looks: a grid for terminals and notebooks, drawn with rich."""

from __future__ import annotations

import io

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from gpt2kit.errors import InputError
from gpt2kit.readout import Floats, Ints
from gpt2kit.tokenizer import printable
from probes.lens import LogitLens

LABEL, WIDEST, MOST_PAGES = 7, 11, 4  # columns, columns, blocks of positions below one another
RGB = tuple[int, int, int]
_SEQUENTIAL: tuple[RGB, ...] = (
    (34, 37, 58), (38, 72, 112), (40, 124, 126), (116, 178, 88), (250, 224, 96)
)  # fmt: skip
_LIGHT, _DARK = Color.from_rgb(245, 245, 245), Color.from_rgb(12, 14, 20)  # ink
_DIVERGING: tuple[RGB, ...] = ((52, 96, 190), (52, 56, 72), (214, 84, 56))


def show(lens: LogitLens, console: Console, *, by: str = "prob", lines: int = 1) -> None:
    """Print the grid: layers upwards, positions to the right, input tokens below.

    by: what colours a cell (and, with a target, what it says): see `QUANTITIES`.
    lines: how many of the top tokens a cell shows.
    """
    if not 1 <= lines <= lens.top_ids.shape[-1]:
        raise InputError(f"{lines} tokens a cell asked for, the lens has {lens.top_ids.shape[-1]}")
    view = _View(lens, by, lines)
    for line in view.header():
        console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
    pages = view.pages(console.width)
    if hidden := int(pages[0][0]):
        note = Text(f"the first {hidden} columns are not shown; choose with --pos", "dim")
        console.print(note)
    for page, columns in enumerate(pages):
        if page:
            console.print()
        for line in view.block(columns):
            console.print(line, no_wrap=True, overflow="crop", crop=True)


def as_text(lens: LogitLens, width: int | None = None) -> str:
    """The grid as plain text, `width` columns wide (the terminal's by default)."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        show(lens, console)
    return capture.get()


def as_html(lens: LogitLens, by: str = "prob") -> str:
    """The grid as an HTML fragment that scrolls sideways."""
    wide = LABEL + len(lens.positions) * (WIDEST + 1)
    console = Console(
        file=io.StringIO(), record=True, width=max(wide, 100), color_system="truecolor",
        force_terminal=True, force_jupyter=False,
    )  # fmt: skip
    show(lens, console, by=by)
    code = console.export_html(inline_styles=True, code_format="{code}")
    return (
        '<pre style="overflow-x:auto;line-height:1.35;font-family:ui-monospace,monospace;'
        f'background:#16181d;color:#d8dade;padding:0.8em">{code}</pre>'
    )


class _View:
    """Texts and colours of one lens."""

    def __init__(self, lens: LogitLens, by: str, lines: int) -> None:
        self.lens, self.by, self.lines = lens, by, lines
        if len(lens.targets) > 2:
            raise InputError(f"the grid shows one target and one foil, not {len(lens.targets)}")
        # Entropy and KL are of the whole prediction: a target has no part in them.
        self.targeted = bool(lens.targets) and by not in ("entropy", "kl")
        self.diff = self.targeted and len(lens.targets) == 2
        values = lens.logit_diff if self.diff else lens.values(by)
        self.values = np.asarray(values, np.float64)
        self.shade, self.low, self.high = self._scale()
        tokens = [*lens.prompt_tokens, *(t for r in lens.top_tokens for c in r for t in c[:lines])]
        need = max((cell_len(_visible(t)) for t in tokens), default=1) + 1
        self.width = min(max(need, 6), WIDEST) + 1

    def _scale(self) -> tuple[Floats, str, str]:
        """(R, P) shade from 0 to 1 (brighter: more certain), and what its ends stand for."""
        v, by = self.values, self.by
        vocab = np.log(max(2, int(self.lens.top_ids.max()) + 1))
        if self.diff:
            most = max(float(np.abs(v).max()), 1e-9)
            return (v / most + 1) / 2, f"{-most:+.1f}", f"{most:+.1f}"
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
        bos = "<|endoftext|> added in front" if lens.has_bos else "no BOS added"
        quantity = {
            "prob": "probability", "logit": "logit", "rank": "rank",
            "entropy": "entropy of the prediction", "kl": "KL(final row || this row)",
        }[self.by]  # fmt: skip
        targets = [repr(printable(t)) for t in lens.targets]
        if self.diff:
            what = f"cell and colour: logit of {targets[0]} minus logit of {targets[1]}"
        elif self.targeted:
            what = f"cell and colour: {quantity} of {targets[0]}"
        else:
            of = {"rank": " of the token that follows", "entropy": "", "kl": ""}
            what = f"cell: likeliest next token; colour: {quantity}" + of.get(self.by, " of it")
        count = f"{len(lens.prompt_ids)} tokens"
        title = Text.assemble(
            ("logit lens", "bold"), f"  {lens.source}  {lens.dtype}  {count}, {bos}"
        )
        bar = Text(f"{self.low} ")
        for i in range(12):
            bar.append(" ", Style(bgcolor=self._colour(i / 11)))
        bar.append(f" {self.high}")
        mark = "    ✓ the token that does follow" if not self.targeted else ""
        return [title, Text(what), bar + Text(mark), Text("")]

    def pages(self, width: int) -> list[Ints]:
        """Column numbers, block by block; only the last blocks of a very long prompt."""
        fit = max(1, (width - LABEL) // self.width)
        columns = np.arange(len(self.lens.positions))
        pages = [columns[i : i + fit] for i in range(0, len(columns), fit)]
        return pages[-MOST_PAGES:]

    def block(self, columns: Ints) -> list[Text]:
        """The lines of one block of columns, final layer first."""
        lens, out = self.lens, list[Text]()
        for r in reversed(range(len(lens.rows))):
            for line in range(self._lines_of_cell()):
                text = Text(
                    _label(lens.rows[r], len(lens.rows) - 1 == r) if not line else "", "dim"
                )
                text.pad_right(LABEL - cell_len(text.plain))
                for p in columns:
                    text.append_text(self._cell(r, int(p), line))
                out.append(text)
        out.append(Text("─" * (LABEL + self.width * len(columns)), "dim"))
        shown = [int(lens.positions[p]) for p in columns]
        following = [int(lens.next_ids[p]) for p in columns]
        names = {
            "input": [_visible(lens.prompt_tokens[i]) for i in shown],
            "id": [str(int(lens.prompt_ids[i])) for i in shown],
            "pos": [str(i) for i in shown],
            "next": [
                _visible(lens.prompt_tokens[i + 1]) if n >= 0 else ""
                for i, n in zip(shown, following, strict=True)
            ],
        }
        for label, cells in names.items():
            style = "bold" if label == "input" else "dim"
            row = Text(f"{label:<{LABEL}}", "dim")
            for cell in cells:
                row.append(" " + _fit(cell, self.width - 1), style)
            out.append(row)
        return out

    def _lines_of_cell(self) -> int:
        return 1 if self.targeted else self.lines

    def _cell(self, r: int, p: int, line: int) -> Text:
        lens = self.lens
        if self.targeted:
            text = self._number(float(self.values[r, p]))
        else:
            follows = lens.top_ids[r, p, line] == lens.next_ids[p]
            text = ("✓" if follows else " ") + _visible(lens.top_tokens[r][p][line])
        shade = float(self.shade[r, p])
        if line and self.by == "prob":
            shade = float(np.exp(lens.top_logprobs[r, p, line]))
        colour = self._colour(shade)
        red, green, blue = colour.triplet or (0, 0, 0)
        dark = 0.30 * red + 0.59 * green + 0.11 * blue < 140
        return Text(_fit(text, self.width), Style(color=_LIGHT if dark else _DARK, bgcolor=colour))

    def _number(self, value: float) -> str:
        if self.diff:
            return f" {value:+.2f}"
        if self.by == "rank":
            return f" {int(value)}"
        if self.by == "logit":
            return f" {value:.2f}"
        return f" {100 * value:.1f}%" if value >= 0.0005 else " <0.1%"

    def _colour(self, shade: float) -> Color:
        stops = _DIVERGING if self.diff else _SEQUENTIAL
        place = min(max(shade, 0.0), 1.0) * (len(stops) - 1)
        i = min(int(place), len(stops) - 2)
        mix = [a + (b - a) * (place - i) for a, b in zip(stops[i], stops[i + 1], strict=True)]
        return Color.from_rgb(*mix)


def _label(row: str, is_last: bool) -> str:
    if row == "blocks.0.resid_pre":
        return "embed"
    return "final" if is_last else row.split(".")[1]


def _visible(token: str) -> str:
    """A token with its leading space and line breaks to be seen."""
    text = printable(token)
    return "·" + text[1:] if text.startswith(" ") else text


def _fit(text: str, width: int) -> str:
    """Exactly `width` terminal columns; what is cut ends in …."""
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    return set_cell_size(text, width)
