"""Which heads are of a known kind: previous-token, duplicate-token, induction heads, and others.

Induction heads: Olsson et al. 2022, arXiv 2209.11895. The first position can only attend to itself,
so averages over positions leave it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.checks import check_choice, check_integer
from gpt2kit.defaults import Default
from gpt2kit.errors import InputError
from gpt2kit.progress import OnProgress, Progress
from gpt2kit.prompts import Prompt, counted, prompt_ids
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import ModelResult, Row, array_rows, model_header
from gpt2kit.runner import Runner
from probes.heads.leading import LeadingHead, leading
from probes.heads.patterns import patterns_by_layer
from probes.tasks.repeated_tokens import repeated_tokens

if TYPE_CHECKING:
    from rich.console import RenderableType

HEAD_KINDS = ("previous_token", "duplicate_token", "induction", "first_token", "current_token")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class HeadScores(ModelResult):
    """How much of each head's attention goes where heads of the known kinds attend.

    A score is the mean attention, from 0 to 1, paid to the kind's target, over the positions that
    have one; NaN if no position has.
    """

    text: str  # what was run
    previous_token: Floats  # (layer, head) to the position before
    duplicate_token: Floats  # (layer, head) to earlier copies of the same token
    induction: Floats  # (layer, head) to the tokens that came after those copies
    first_token: Floats  # (layer, head) to position 0
    current_token: Floats  # (layer, head) to itself

    def leading(self, kind: str, n: int = 5) -> list[LeadingHead]:
        """(layer, head, score) of the n heads with the highest scores of a kind of HEAD_KINDS."""
        check_choice("kind", kind, HEAD_KINDS)
        return leading(getattr(self, kind), check_integer("n", n, low=0))

    def table(self) -> list[Row]:
        """One row for each head."""
        return array_rows({kind: getattr(self, kind) for kind in HEAD_KINDS}, ("layer", "head"))

    def render(self) -> RenderableType:
        """The five heads of each kind with the highest scores."""
        from probes.draw.leading_heads import leading_heads
        from probes.draw.words import title

        what = "layer.head of the five that lead, and their mean attention to it, from 0 to 1"
        first = title("what heads look at", self.source, self.dtype, self.text)
        columns = {kind.replace("_", " "): self.leading(kind) for kind in HEAD_KINDS}
        return leading_heads(first, what, columns)

    def __repr__(self) -> str:
        layers, heads = self.induction.shape
        return f"HeadScores({self.source}, {layers} layers x {heads} heads, {self.text})"


def head_scores(
    runner: Runner,
    *,
    prompt: Prompt | None = None,
    length: int = Default(50),
    batch: int = 4,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> HeadScores:
    """How much each head attends to the previous token, to copies, after copies, and so on.

    Without a prompt: on `batch` rows of `length` different random tokens said twice, from the
    positions of the second half, where every target is known (Olsson et al. 2022, arXiv
    2209.11895). With a prompt (text, or token ids): from each position that has such a target;
    copies are all earlier occurrences, and the token after a copy must come before the query.
    on_progress: called after each layer with (layers done, all layers).
    Raises InputError for a bad prompt, or if 2 * length does not fit the context.
    """
    config, start = runner.config, 1
    if prompt is None:
        ids = _repeated(runner, batch, length, seed)
        start = length = ids.shape[1] // 2
        what = f"{batch} x {length} random tokens, said twice"
    else:
        ids = prompt_ids(runner, prompt)[None]
        what = f"a text of {counted(ids.shape[1], 'token')}"
    scores = {kind: np.full((config.n_layer, config.n_head), np.nan) for kind in HEAD_KINDS}
    targets, progress = _targets(ids, start), Progress(on_progress, config.n_layer)
    for layer, pattern in patterns_by_layer(runner, ids, range(config.n_layer)):
        for kind, target in targets.items():
            if count := target.any(-1).sum():
                scores[kind][layer] = np.einsum("bhqk,bqk->h", pattern, target) / count
        progress.add(1)
    return HeadScores(**model_header(runner) | scores, text=what)


def _repeated(runner: Runner, batch: int, length: int, seed: int) -> Ints:
    """(batch, 2 * length) random tokens said twice. Raises InputError if they do not fit."""
    if isinstance(length, Default):
        length = min(length, runner.config.n_positions // 2, runner.config.vocab_size)
        if not length:
            raise InputError("a context of 1 cannot hold random tokens said twice; give a prompt")
    check_integer("length", length)
    check_integer("batch", batch)
    check_integer("seed", seed, low=0)
    if 2 * length > runner.config.n_positions:
        raise InputError(
            f"length = {length}: twice that does not fit the context of {runner.config.n_positions}"
        )
    return repeated_tokens(runner.config.vocab_size, batch, length, seed=seed)


def _targets(ids: Ints, start: int) -> dict[str, Floats]:
    """Kind -> (batch, query, key), 1 where a head of that kind attends, from query `start` on."""
    n = ids.shape[1]
    before = np.tri(n, k=-1, dtype=bool)
    copies = (ids[:, :, None] == ids[:, None, :]) & before
    after = np.zeros_like(copies)
    after[..., 1:] = copies[..., :-1]
    masks = {
        "previous_token": np.eye(n, k=-1, dtype=bool),
        "duplicate_token": copies,
        "induction": after & before,
        "first_token": np.arange(n) == 0,
        "current_token": np.eye(n, dtype=bool),
    }
    queries = (np.arange(n) >= start)[:, None]
    return {
        kind: (np.broadcast_to(mask, copies.shape) & queries).astype(np.float64)
        for kind, mask in masks.items()
    }
