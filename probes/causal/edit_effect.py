"""What an edit changes: the generated text and the next tokens, without and with the edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2kit.checks import check_top_k
from gpt2kit.defaults import Default
from gpt2kit.edits import Edit
from gpt2kit.errors import InputError
from gpt2kit.finite import finite_run
from gpt2kit.generation import check_window, generate
from gpt2kit.logits import log_softmax
from gpt2kit.prompts import encode
from gpt2kit.readout import Floats
from gpt2kit.result import ModelResult, Row, model_header
from gpt2kit.runner import Runner

if TYPE_CHECKING:
    from rich.console import RenderableType

SIDES = ("without", "with")


@dataclass(frozen=True, eq=False)
class EditEffect(ModelResult):
    """The prediction without edits and with them; every pair is in this order."""

    prompt: str
    edits: tuple[str, ...]
    texts: tuple[str, str]  # what follows the prompt
    top_tokens: tuple[tuple[str, ...], tuple[str, ...]]  # (shown,) next tokens, likeliest first
    top_probs: Floats  # (2, shown) their probabilities
    other_probs: Floats  # (2, shown) the probabilities of the same tokens on the other side
    kl: float  # nats, KL(without || with) of the next token

    def table(self) -> list[Row]:
        """One row for each next token shown on each side."""
        return [
            {
                "side": side,
                "rank": rank,
                "token": token,
                "prob": float(self.top_probs[n, rank]),
                "other_prob": float(self.other_probs[n, rank]),
            }
            for n, side in enumerate(SIDES)
            for rank, token in enumerate(self.top_tokens[n])
        ]

    def render(self) -> RenderableType:
        """Two columns."""
        from probes.draw.edit_effect_view import edit_effect_view

        return edit_effect_view(
            f"{self.source}  {'; '.join(self.edits)}",
            f"KL(without || with) of the next token: {self.kl:.3f} nats",
            self.prompt,
            self.texts,
            self.top_tokens,
            self.top_probs,
            self.other_probs,
        )

    def __repr__(self) -> str:
        return f"EditEffect({self.source}, {'; '.join(self.edits)}, KL {self.kl:.3f} nats)"


def edit_effect(
    runner: Runner,
    prompt: str,
    edits: Edit | str | Sequence[Edit | str],
    *,
    shown: int = Default(5),
    seed: int | None = None,
    **options: Any,
) -> EditEffect:
    """Generate from a prompt without and with edits, with the same random numbers.

    edits:   Edits, or text such as "blocks.9.z[head=9] = 0" (see `Edit.parse`).
    shown:   how many of the likeliest next tokens to keep.
    seed:    of the random numbers; by default a fresh one.
    options: passed to `gpt2kit.generate`: max_new_tokens, greedy, top_k, ….
    Raises InputError for a prompt that is not one text, and as `generate` does; EditError for
    edits that do not fit.
    """
    parsed = _parse(edits)
    window = options.get("window")
    check_window(window, runner.config)
    ids = encode(runner, prompt, window=window)[-(window or 0) :]
    shown = check_top_k(shown, runner.config.vocab_size, name="shown")
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    sides: tuple[list[Edit], list[Edit]] = [], parsed
    texts = [generate(runner, prompt, edits=side, seed=seed, **options) for side in sides]
    logits = np.stack([_next_logits(runner, ids, side) for side in sides])
    logprobs = log_softmax(logits.astype(np.float64))
    top = np.argsort(-logprobs, axis=-1, kind="stable")[:, :shown]
    p = np.exp(logprobs)
    return EditEffect(
        **model_header(runner),
        prompt=prompt,
        edits=tuple(edit.text or repr(edit) for edit in parsed),
        texts=(texts[0], texts[1]),
        top_tokens=(_decode_each(runner, top[0]), _decode_each(runner, top[1])),
        top_probs=np.take_along_axis(p, top, -1),
        other_probs=np.take_along_axis(p[::-1], top, -1),
        kl=float((p[0] * (logprobs[0] - logprobs[1])).sum()),
    )


def _parse(edits: Any) -> list[Edit]:
    """The edits as a list. Raises InputError unless it holds edits or texts of edits."""
    given = [edits] if isinstance(edits, Edit | str) else edits
    if not isinstance(given, Sequence):
        raise InputError(f"edits = {edits!r} must be an edit, its text, or a list of them")
    if not given:
        raise InputError("no edits were given")
    for edit in given:
        if not isinstance(edit, Edit | str):
            raise InputError(f"edits: {edit!r} is neither an Edit nor its text")
    return [Edit.parse(edit) if isinstance(edit, str) else edit for edit in given]


def _next_logits(runner: Runner, ids: list[int], edits: list[Edit]) -> Floats:
    """(vocab,) logits after the prompt. `generate` computes a few of them only.

    The prompt runs with a cache, as in generation, since edits read positions differently there.
    """
    logits: Floats = finite_run(runner, ids, edits=edits, cached=True, last_only=True).logits[0, -1]
    return logits


def _decode_each(runner: Runner, ids: np.ndarray) -> tuple[str, ...]:
    assert runner.tokenizer is not None  # `encode` has checked
    return tuple(runner.tokenizer.decode([int(i)]) for i in ids)
