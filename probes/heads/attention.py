"""Attention heads: what each looks at, and which of the known kinds it is.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; induction heads after
Olsson et al. 2022, arXiv 2209.11895. The first position can only look at itself, so averages over
positions leave it out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from gpt2kit.errors import InputError
from gpt2kit.logits import largest
from gpt2kit.progress import OnProgress, Progress
from gpt2kit.prompts import Prompt, Selection, counted, prompt_ids, select, token_texts
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import Result
from gpt2kit.runner import Runner
from probes.draw.tables import table
from probes.draw.words import title, visible
from probes.heads.attention_view import PatternGrid, leaders, leading
from probes.tasks.datasets import repeated_tokens

KINDS = ("previous_token", "duplicate_token", "induction", "first_token", "current_token")
_MOST = 1 << 26  # attention weights held at a time: 256 MB in float32


@dataclass(frozen=True, eq=False)
class HeadPattern(Result):
    """Selection one head looks: each query's row is a distribution over the keys up to it."""

    source: str
    dtype: str
    layer: int
    head: int
    tokens: tuple[str, ...]  # (N,)
    pattern: Floats  # (query, key), both N

    def __repr__(self) -> str:
        return (
            f"HeadPattern({self.source}, head {self.layer}.{self.head}, "
            f"{counted(len(self.tokens), 'token')})"
        )

    def render(self) -> RenderableType:
        """A grid as wide as the terminal: queries downwards, keys to the right."""
        return PatternGrid(self)


@dataclass(frozen=True, eq=False)
class AttentionPatterns(Result):
    """Selection every head of some layers looks."""

    source: str
    dtype: str
    prompt_ids: Ints  # (N,)
    tokens: tuple[str, ...]  # (N,)
    layers: tuple[int, ...]  # (L,)
    patterns: Floats  # (L, head, query, key)

    def show(self, layer: int, head: int) -> HeadPattern:
        """One head, to be printed. Raises InputError if it is not among those read."""
        heads = self.patterns.shape[1]
        if layer not in self.layers or not 0 <= head < heads:
            have = ", ".join(map(str, self.layers))
            raise InputError(
                f"head {layer}.{head}: the layers here are {have}, heads 0 to {heads - 1}"
            )
        pattern = self.patterns[self.layers.index(layer), head]
        return HeadPattern(self.source, self.dtype, layer, head, self.tokens, pattern)

    def __repr__(self) -> str:
        count = len(self.layers) * self.patterns.shape[1]
        return (
            f"AttentionPatterns({self.source}, {count} heads x {len(self.tokens)} tokens; "
            "show(layer, head) draws one)"
        )

    def render(self) -> RenderableType:
        """The strongest looks of one token at another, the first token left aside."""
        rows = table("head", "from", "to", "attention", numbers=["attention"])
        for weight, layer, head, query, key in self._strongest(10):
            ends = (Text(f"{i} {visible(self.tokens[i])}") for i in (query, key))
            rows.add_row(f"{layer}.{head}", *ends, f"{weight:.3f}")
        read = counted(len(self.tokens), "token")
        first = title("attention patterns", self.source, self.dtype, read)
        what = Text("the strongest looks at an earlier token; show(layer, head) draws a head")
        return Group(first, what, "", rows)

    def _strongest(self, n: int) -> list[tuple[float, int, int, int, int]]:
        """(attention, layer, head, query, key), key neither the query nor the first token."""
        positions = np.arange(len(self.tokens))
        away = (positions < positions[:, None]) & (positions > 0)
        found = list[tuple[float, int, int, int, int]]()
        for layer, pattern in zip(self.layers, self.patterns, strict=True):
            values, flat = largest((pattern * away).reshape(1, -1), min(n, pattern.size))
            places = np.transpose(np.unravel_index(flat[0], pattern.shape)).tolist()
            found += [(float(v), layer, *at) for v, at in zip(values[0], places, strict=True)]
        return sorted((x for x in found if x[0] > 0), key=lambda x: -x[0])[:n]


@dataclass(frozen=True, eq=False)
class HeadScores(Result):
    """How much of each head's attention goes where heads of the known kinds look.

    A score is the mean attention, from 0 to 1, paid to the kind's target, over the positions that
    have one; NaN where none has.
    """

    source: str
    dtype: str
    text: str  # what was run
    previous_token: Floats  # (layer, head) to the position before
    duplicate_token: Floats  # (layer, head) to earlier copies of the same token
    induction: Floats  # (layer, head) to what came after those copies
    first_token: Floats  # (layer, head) to position 0
    current_token: Floats  # (layer, head) to itself

    def leading(self, kind: str, n: int = 5) -> list[tuple[int, int, float]]:
        """(layer, head, score) of the n heads that do most of a kind of KINDS, best first."""
        if kind not in KINDS:
            raise InputError(f"kind = {kind!r} is not one of {', '.join(KINDS)}")
        return leading(getattr(self, kind), n)

    def __repr__(self) -> str:
        layers, heads = self.induction.shape
        return f"HeadScores({self.source}, {layers} layers x {heads} heads, {self.text})"

    def render(self) -> RenderableType:
        """Which heads do what: the leading heads of each kind, best first."""
        columns = {kind.replace("_", " "): (getattr(self, kind), True) for kind in KINDS}
        what = "layer.head of the five that lead, and their mean attention to it, from 0 to 1"
        first = title("what heads look at", self.source, self.dtype, self.text)
        return leaders(first, what, columns)


@dataclass(frozen=True, eq=False)
class AttentionStatistics(Result):
    """How widely and how far back each head looks, on average over the positions of a prompt."""

    source: str
    dtype: str
    tokens: tuple[str, ...]  # (N,)
    entropy: Floats  # (layer, head) nats; 0 is one key, log(keys) all alike
    distance: Floats  # (layer, head) tokens between query and key, weighted by attention

    def __repr__(self) -> str:
        layers, heads = self.entropy.shape
        return f"AttentionStatistics({self.source}, {layers} layers x {heads} heads)"

    def render(self) -> RenderableType:
        """The heads at either end."""
        columns = {
            "least entropy": (self.entropy, False),
            "most entropy": (self.entropy, True),
            "nearest": (self.distance, False),
            "farthest": (self.distance, True),
        }
        read = counted(len(self.tokens), "token")
        first = title("attention statistics", self.source, self.dtype, read)
        return leaders(first, "layer.head, and entropy in nats or distance in tokens", columns)


def attention_patterns(
    runner: Runner,
    prompt: Prompt,
    *,
    layers: Selection = None,
    prepend_bos: bool = False,
) -> AttentionPatterns:
    """Every head's attention from each token of a prompt to those before it.

    prompt: text, or token ids. layers: all by default; negative ones count from the end.
    prepend_bos: put `<|endoftext|>` first.
    Raises InputError for a bad prompt or layer, TapError where the engine keeps its patterns.
    """
    chosen = select(layers, runner.config.n_layer, "layers").tolist()
    ids = prompt_ids(runner, prompt, prepend_bos=prepend_bos)
    patterns = np.stack([pattern[0] for _, pattern in _each(runner, ids[None], chosen)])
    return AttentionPatterns(
        str(runner.source), runner.precision, ids, token_texts(runner, ids), tuple(chosen),
        patterns,
    )  # fmt: skip


def head_scores(
    runner: Runner,
    *,
    prompt: Prompt | None = None,
    length: int = 50,
    batch: int = 4,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> HeadScores:
    """Which heads look at the token before, at a copy, after a copy, at the start, at themselves.

    Without a prompt: on `batch` rows of `length` different random tokens said twice, from the
    positions of the second half, where every target is known (Olsson et al. 2022, arXiv
    2209.11895). With a prompt (text, or token ids): from each of its positions that has such a
    target; copies are all earlier occurrences, and what came after them must be before the query.
    on_progress: called after each layer with the number of layers that are done, and of all.
    Raises InputError for a bad prompt, or where 2 * length does not fit the context.
    """
    config, start = runner.config, 1
    if prompt is not None:
        ids = prompt_ids(runner, prompt)[None]
        what = f"a text of {counted(ids.shape[1], 'token')}"
    elif 2 * length <= config.n_positions:
        ids, start = repeated_tokens(config.vocab_size, batch, length, seed=seed), length
        what = f"{batch} x {length} random tokens, said twice"
    else:
        raise InputError(
            f"length = {length}: twice that does not fit the context of {config.n_positions}"
        )
    scores = {kind: np.full((config.n_layer, config.n_head), np.nan) for kind in KINDS}
    targets, progress = _targets(ids, start), Progress(on_progress, config.n_layer)
    for layer, pattern in _each(runner, ids, range(config.n_layer)):
        for kind, target in targets.items():
            if count := target.any(-1).sum():
                scores[kind][layer] = np.einsum("bhqk,bqk->h", pattern, target) / count
        progress.add(1)
    return HeadScores(str(runner.source), runner.precision, what, **scores)


def attention_statistics(runner: Runner, prompt: Prompt) -> AttentionStatistics:
    """Entropy and mean distance of each head's attention, averaged over the positions of a prompt.

    Raises InputError for a bad prompt, and for one of a single token.
    """
    ids = prompt_ids(runner, prompt)
    if len(ids) == 1:
        raise InputError("the prompt is one token, which can only look at itself; give more")
    apart = np.subtract.outer(np.arange(len(ids)), np.arange(len(ids)))  # (query, key)
    entropy, distance = [], []
    for _, pattern in _each(runner, ids[None], range(runner.config.n_layer)):
        p = pattern[0, :, 1:].astype(np.float64)  # (head, query, key)
        entropy.append(-(p * np.log(np.where(p > 0, p, 1))).sum(-1).mean(-1))
        distance.append((p * apart[1:]).sum(-1).mean(-1))
    return AttentionStatistics(
        str(runner.source),
        runner.precision,
        token_texts(runner, ids),
        np.stack(entropy),
        np.stack(distance),
    )


def _targets(ids: Ints, start: int) -> dict[str, Floats]:
    """Kind -> (batch, query, key), 1 where a head of that kind looks, from `start` on."""
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
    asked = (np.arange(n) >= start)[:, None]
    return {
        k: (np.broadcast_to(m, copies.shape) & asked).astype(np.float64) for k, m in masks.items()
    }


def _each(runner: Runner, ids: Ints, layers: Sequence[int]) -> Iterator[tuple[int, Floats]]:
    """(layer, pattern (batch, head, query, key)); few layers a run where the prompt is long."""
    size = len(ids) * runner.config.n_head * ids.shape[1] ** 2
    at_once = max(1, _MOST // size)
    for first in range(0, len(layers), at_once):
        part = layers[first : first + at_once]
        taps = runner.run(ids, taps=[f"blocks.{i}.pattern" for i in part], top_k=1).taps
        for i in part:
            yield i, taps[f"blocks.{i}.pattern"]
