"""A logit lens of every token as it is generated: from which layer it leads, and how it grew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit.checks import check_function
from gpt2kit.edit_arrays import listed
from gpt2kit.edits import Edit
from gpt2kit.finite import finite_unembed
from gpt2kit.generation import generate
from gpt2kit.logits import log_softmax
from gpt2kit.prompts import encode, tokenizer_of
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import PromptResult, Result, Row, prompt_header
from gpt2kit.runner import Run, Runner
from gpt2kit.taps import residual_stream, resolve

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


@dataclass(frozen=True, eq=False, repr=False)
class Step(Result):
    """One generated token, read at the position that chose it. Logarithms are natural.

    leads_from: the first row from which the token leads in every row up to the last; -1 if it does
    not lead in the last (it was drawn from below).
    """

    id: int
    token: str
    logprobs: Floats  # (R,) of the token, row by row
    ranks: Ints  # (R,) 0 = likeliest
    leads_from: int

    def table(self) -> list[Row]:
        """One row for each row of the lens, bottom to top."""
        return [
            {"row": r, "logprob": float(logprob), "rank": int(rank)}
            for r, (logprob, rank) in enumerate(zip(self.logprobs, self.ranks, strict=True))
        ]

    def line(self) -> Text:
        """One line for a terminal: the token, and its probability row by row as bars."""
        from probes.draw.generation_lines import token_line

        return token_line(self.token, self.leads_from, self.logprobs, int(self.ranks[-1]))

    def __repr__(self) -> str:
        led = f"leads from row {self.leads_from}" if self.leads_from >= 0 else "drawn"
        return f"Step({self.token!r}, {led} of {len(self.ranks)}, {self.logprobs[-1]:.3g} nats)"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class GenerationLens(PromptResult):
    """Every token of a generated text, row by row.

    Rows (R) are the taps in `rows`, bottom to top of the model.
    """

    prompt: str
    text: str  # generated, without the prompt
    rows: tuple[str, ...]  # (R,)
    steps: tuple[Step, ...]  # (T,)

    @property
    def logprobs(self) -> Floats:
        """(T, R) log-probability of each generated token in each row, nats."""
        return np.stack([step.logprobs for step in self.steps])

    @property
    def leads_from(self) -> Ints:
        """(T,) see `Step`."""
        return np.array([step.leads_from for step in self.steps])

    def table(self) -> list[Row]:
        """One row for each generated token and row of the lens."""
        return [
            {
                "step": number,
                "id": step.id,
                "token": step.token,
                "leads_from": step.leads_from,
                "row": self.rows[cell["row"]],
                "logprob": cell["logprob"],
                "rank": cell["rank"],
            }
            for number, step in enumerate(self.steps)
            for cell in step.table()
        ]

    def render(self) -> RenderableType:
        """A line for each token."""
        from probes.draw.generation_lines import header, stacked

        return stacked([*header(len(self.rows)), *(step.line() for step in self.steps)])

    def __repr__(self) -> str:
        return f"GenerationLens({self.source}, {len(self.steps)} tokens x {len(self.rows)} rows)"


def generation_lens(
    runner: Runner,
    prompt: str,
    *,
    on_step: Callable[[Step], None] = lambda step: None,
    **options: Any,
) -> GenerationLens:
    """Generate, and read each chosen token's probability in the residual stream after every layer.

    Rows are the embedding and the stream after each layer; the last is the model's own prediction.
    on_step: called with every token as soon as it is chosen.
    options: the options of `gpt2kit.generate` for one prompt: max_new_tokens, greedy, seed, ….
    Raises InputError and EditError as `generate` does.
    """
    ids = np.array(encode(runner, prompt, window=options.get("window")))  # first, for its errors
    check_function("on_step", on_step)
    rows = residual_stream(runner.config.n_layer)
    steps: list[Step] = []
    reader = _Reader(runner, rows)

    def watch(run: Run, chosen: Ints) -> None:
        steps.append(reader.step(run, int(chosen[0])))
        on_step(steps[-1])

    # Without edits above the last layer, the reader's last row holds the model's own logits, so
    # that the engine need not compute them as well.
    own = None if _edited_above(options.get("edits", ()), runner) else reader.last_logits
    text = generate(runner, prompt, taps=rows, head=own, watch=watch, **options)
    return GenerationLens(
        **prompt_header(runner, ids), prompt=prompt, text=text, rows=rows, steps=tuple(steps)
    )


class _Reader:
    """Reads the residual stream of a decode step; `step` reuses the logits of `last_logits`."""

    def __init__(self, runner: Runner, rows: tuple[str, ...]) -> None:
        self.runner, self.rows, self.decode = runner, rows, tokenizer_of(runner).decode
        self._read: tuple[Run, Floats] | None = None  # the last run, and its logits

    def last_logits(self, run: Run) -> Floats:
        """(1, vocab) of the last row, which chooses the token."""
        return self._logits(run)[-1:]

    def step(self, run: Run, token: int) -> Step:
        """The token chosen from a run, in every row."""
        logits = self._logits(run)
        ranks = (logits > logits[:, [token]]).sum(-1)
        logprobs = log_softmax(logits)[:, token]
        return Step(token, self.decode([token]), logprobs, ranks, leads_from(ranks))

    def _logits(self, run: Run) -> Floats:
        """(R, vocab) of each row at the last position."""
        if self._read is None or self._read[0] is not run:
            resid = np.stack([run.taps[row][0, -1] for row in self.rows])
            self._read = run, finite_unembed(self.runner, resid)
        return self._read[1]


def _edited_above(edits: Any, runner: Runner) -> bool:
    """Whether an edit may act after the last layer, whose stream then decides no token.

    A function may act anywhere.
    """
    return any(
        not isinstance(edit, Edit)
        or any(tap.startswith("ln_f") for tap in resolve(edit.tap, runner.config.n_layer))
        for edit in listed(edits)
    )


def leads_from(ranks: Ints | NDArray[np.bool_]) -> int:
    """The first row from which all ranks (R,) are 0, or -1."""
    behind = np.flatnonzero(ranks)
    first = int(behind[-1]) + 1 if behind.size else 0
    return first if first < len(ranks) else -1
