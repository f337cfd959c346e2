"""What an edit does to what a model says: the text and the next tokens, with and without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gpt2kit.batch import Ids
from gpt2kit.edits import Edit
from gpt2kit.errors import InputError
from gpt2kit.generation import generate
from gpt2kit.logits import largest, log_softmax
from gpt2kit.prompts import encode
from gpt2kit.readout import Floats
from gpt2kit.result import Result
from gpt2kit.runner import Run, Runner
from probes.draw.words import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

_SIDES = ("without", "with")


@dataclass(frozen=True, eq=False)
class EditEffect(Result):
    """What `edit_effect` saw; every pair is (without the edits, with them)."""

    source: str
    prompt: str
    edits: tuple[str, ...]
    texts: tuple[str, str]  # what follows the prompt
    top_tokens: tuple[tuple[str, ...], tuple[str, ...]]  # (shown,) next tokens, likeliest first
    top_probs: Floats  # (2, shown) their probabilities
    other_probs: Floats  # (2, shown) the probabilities of the same tokens on the other side
    kl: float  # nats, KL(without || with) of the next token

    def render(self) -> RenderableType:
        """Two columns."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        what = Text(f"{self.source}  {'; '.join(self.edits)}", overflow="fold")
        tops = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for side in _SIDES:
            tops.add_column(f"next, {side}", no_wrap=True)
            tops.add_column("", justify="right")
            tops.add_column("")
        for i in range(self.top_probs.shape[1]):
            cells: list[Text] = []
            for n in (0, 1):
                here, there = self.top_probs[n, i], self.other_probs[n, i]
                was = f"({_SIDES[1 - n]}: {100 * there:.1f}%)"
                token = Text(visible(self.top_tokens[n][i]))
                cells += [token, Text(f"{100 * here:.1f}%"), Text(was, "dim")]
            tops.add_row(*cells)
        texts = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), expand=True)
        for side in _SIDES:
            texts.add_column(f"text, {side}", ratio=1, overflow="fold")
        texts.add_row(*(Text.assemble((self.prompt, "dim"), text) for text in self.texts))
        note = Text(f"KL(without || with) of the next token: {self.kl:.3f} nats", "dim")
        return Group(what, Text(""), tops, note, Text(""), texts)

    def __repr__(self) -> str:
        return f"EditEffect({self.source}, {'; '.join(self.edits)}, KL {self.kl:.3f} nats)"


def edit_effect(
    runner: Runner,
    prompt: str,
    edits: Edit | str | Sequence[Edit | str],
    *,
    shown: int = 5,
    seed: int | None = None,
    **options: Any,
) -> EditEffect:
    """Generate from a prompt without and with edits, with the same random numbers.

    edits:   Edits, or text such as "blocks.9.z[head=9] = 0" (see `Edit.parse`).
    shown:   how many of the likeliest next tokens to keep.
    options: those of `gpt2kit.generate`: max_new_tokens, greedy, top_k, ….
    """
    given = [edits] if isinstance(edits, Edit | str) else list(edits)
    if not given:
        raise InputError("no edits were given")
    parsed = [Edit.parse(edit) if isinstance(edit, str) else edit for edit in given]
    encode(runner, prompt)  # which says so if there is no tokenizer
    if not 1 <= shown <= runner.config.vocab_size:
        raise InputError(f"shown = {shown} must be from 1 to {runner.config.vocab_size}")
    assert runner.tokenizer is not None
    decode = runner.tokenizer.decode
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    heard = [_Heard(runner), _Heard(runner)]
    texts = [
        generate(cast("Runner", side), prompt, edits=changes, seed=seed, **options)
        for side, changes in zip(heard, ([], parsed), strict=True)
    ]
    logprobs = log_softmax(np.stack([side.first.astype(np.float64) for side in heard]))
    top = np.argsort(-logprobs, axis=-1, kind="stable")[:, :shown]
    p = np.exp(logprobs)
    return EditEffect(
        source=str(runner.source),
        prompt=prompt,
        edits=tuple(edit.text or repr(edit) for edit in parsed),
        texts=(texts[0], texts[1]),
        top_tokens=(
            tuple(decode([int(i)]) for i in top[0]), tuple(decode([int(i)]) for i in top[1]),
        ),
        top_probs=np.take_along_axis(p, top, -1),
        other_probs=np.take_along_axis(p[::-1], top, -1),
        kl=float((p[0] * (logprobs[0] - logprobs[1])).sum()),
    )  # fmt: skip


class _Heard:
    """A runner that keeps all logits of its first run, the prompt's; `generate` asks for a few."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.first = runner, np.empty(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def run(self, ids: Ids, *, top_k: int | None = None, **options: Any) -> Run:
        if self.first.size or top_k is None:
            return self.runner.run(ids, top_k=top_k, **options)
        run = self.runner.run(ids, **options)
        self.first = run.logits[0, -1]
        logits, top_ids = largest(run.logits, top_k)
        return replace(run, logits=logits, top_ids=top_ids)
