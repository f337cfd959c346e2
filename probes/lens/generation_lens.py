"""A logit lens of every token as it is generated: where it comes to lead, and how it grew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2kit.edit_arrays import listed
from gpt2kit.edits import Edit
from gpt2kit.generation import generate
from gpt2kit.logits import log_softmax
from gpt2kit.prompts import encode
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import Result
from gpt2kit.runner import Run, Runner
from gpt2kit.taps import resolve

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, eq=False)
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

    def __repr__(self) -> str:
        led = f"leads from row {self.leads_from}" if self.leads_from >= 0 else "drawn"
        return f"Step({self.token!r}, {led} of {len(self.ranks)}, {self.logprobs[-1]:.3g} nats)"


@dataclass(frozen=True, eq=False)
class GenerationLens(Result):
    """What `generation_lens` saw. Rows (R) are the taps in `rows`, bottom to top of the model."""

    source: str
    prompt: str
    text: str
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

    def render(self) -> RenderableType:
        """A line for each token."""
        from probes.lens.generation_view import table

        return table(self)

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
    options: those of `gpt2kit.generate` for one prompt: max_new_tokens, greedy, seed, edits, ….
    """
    encode(runner, prompt)  # with its errors, before anything else
    assert runner.tokenizer is not None
    decode = runner.tokenizer.decode
    last = runner.config.n_layer
    rows = ("blocks.0.resid_pre", *(f"blocks.{i}.resid_post" for i in range(last)))
    steps: list[Step] = []
    logits: Floats = np.empty(0)
    last_is_model = not _edited_above(options.get("edits", ()), last)

    def head(run: Run) -> Floats:
        nonlocal logits
        logits = runner.unembed(np.stack([run.taps[row][0, -1] for row in rows]))
        return logits[-1:]

    def watch(run: Run, chosen: Ints) -> None:
        if not last_is_model:
            head(run)
        token = int(chosen[0])
        ranks = (logits > logits[:, chosen]).sum(-1)
        logprobs = log_softmax(logits)[:, token]
        step = Step(token, decode([token]), logprobs, ranks, _leads_from(ranks))
        steps.append(step)
        on_step(step)

    text = generate(
        runner, prompt, taps=rows, head=head if last_is_model else None, watch=watch, **options
    )
    return GenerationLens(str(runner.source), prompt, text, rows, tuple(steps))


def _edited_above(edits: Any, n_layer: int) -> bool:
    """Whether an edit comes after the last layer, so that its stream is not what is predicted from;
    a function might."""
    return any(
        not isinstance(edit, Edit)
        or any(tap.startswith("ln_f") for tap in resolve(edit.tap, n_layer))
        for edit in listed(edits)
    )


def _leads_from(ranks: Ints) -> int:
    """The row from which all ranks are 0, or -1."""
    behind = np.flatnonzero(ranks)
    first = int(behind[-1]) + 1 if behind.size else 0
    return first if first < len(ranks) else -1
