"""Attention patterns of a prompt: which earlier tokens each head attends to.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.errors import InputError
from gpt2kit.finite import finite_run
from gpt2kit.logits import largest
from gpt2kit.prompts import Prompt, Selection, counted, prompt_ids, select
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import PromptResult, Row, prompt_header
from gpt2kit.runner import Runner

if TYPE_CHECKING:
    from rich.console import RenderableType

_MAX_WEIGHTS = 1 << 26  # attention weights held at a time: 256 MB in float32


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class HeadPattern(PromptResult):
    """Where one head attends: each query's row is a distribution over the keys up to it."""

    layer: int
    head: int
    pattern: Floats  # (query, key), both N

    @property
    def tokens(self) -> tuple[str, ...]:
        """(N,) the prompt's tokens."""
        return self.prompt_tokens

    def table(self) -> list[Row]:
        """One row for each query and key up to it."""
        return _pattern_rows(self.pattern)

    def render(self) -> RenderableType:
        """A grid as wide as the terminal: queries downwards, keys to the right."""
        from probes.draw.pattern_grid import PatternGrid
        from probes.draw.words import title

        what = f"attention of head {self.layer}.{self.head}"
        read = counted(len(self.tokens), "token")
        return PatternGrid(title(what, self.source, self.dtype, read), self.tokens, self.pattern)

    def __repr__(self) -> str:
        return (
            f"HeadPattern({self.source}, head {self.layer}.{self.head}, "
            f"{counted(len(self.tokens), 'token')})"
        )


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class AttentionPatterns(PromptResult):
    """Where every head of some layers attends."""

    layers: tuple[int, ...]  # (L,)
    patterns: Floats  # (L, head, query, key)

    @property
    def tokens(self) -> tuple[str, ...]:
        """(N,) the prompt's tokens."""
        return self.prompt_tokens

    def show(self, layer: int, head: int) -> HeadPattern:
        """One head, to be printed. Raises InputError if the result does not hold it."""
        heads = self.patterns.shape[1]
        if layer not in self.layers or head not in range(heads):
            have = ", ".join(map(str, self.layers))
            raise InputError(
                f"head {layer}.{head}: the layers here are {have}, heads 0 to {heads - 1}"
            )
        return HeadPattern(
            source=self.source,
            dtype=self.dtype,
            prompt_ids=self.prompt_ids,
            prompt_tokens=self.prompt_tokens,
            has_bos=self.has_bos,
            layer=layer,
            head=head,
            pattern=self.patterns[self.layers.index(layer), head],
        )

    def table(self) -> list[Row]:
        """One row for each layer, head, query, and key up to the query."""
        return [
            {"layer": layer, "head": head} | row
            for layer, heads in zip(self.layers, self.patterns, strict=True)
            for head, pattern in enumerate(heads)
            for row in _pattern_rows(pattern)
        ]

    def render(self) -> RenderableType:
        """The strongest attention from one token to an earlier one, the first left out."""
        from rich.console import Group
        from rich.text import Text

        from probes.draw.tables import table
        from probes.draw.words import title, visible

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
        earlier = (positions < positions[:, None]) & (positions > 0)
        found = list[tuple[float, int, int, int, int]]()
        for layer, pattern in zip(self.layers, self.patterns, strict=True):
            values, flat = largest((pattern * earlier).reshape(1, -1), min(n, pattern.size))
            places = np.transpose(np.unravel_index(flat[0], pattern.shape)).tolist()
            found += [(float(v), layer, *at) for v, at in zip(values[0], places, strict=True)]
        return sorted((x for x in found if x[0] > 0), key=lambda x: -x[0])[:n]

    def __repr__(self) -> str:
        count = len(self.layers) * self.patterns.shape[1]
        return (
            f"AttentionPatterns({self.source}, {count} heads x {len(self.tokens)} tokens; "
            "show(layer, head) draws one)"
        )


def attention_patterns(
    runner: Runner,
    prompt: Prompt,
    *,
    layers: Selection = None,
    prepend_bos: bool = False,
) -> AttentionPatterns:
    """Every head's attention from each token of a prompt to the tokens before it, and to itself.

    prompt: text, or token ids. layers: all by default; negative ones count from the end.
    prepend_bos: put `<|endoftext|>` first.
    Raises InputError for a bad prompt or layer, TapError if the engine does not give patterns.
    """
    chosen = select(layers, runner.config.n_layer, "layers").tolist()
    ids = prompt_ids(runner, prompt, prepend_bos=prepend_bos)
    patterns = [pattern[0] for _, pattern in patterns_by_layer(runner, ids[None], chosen)]
    return AttentionPatterns(
        **prompt_header(runner, ids, has_bos=prepend_bos),
        layers=tuple(chosen),
        patterns=np.stack(patterns),
    )


def patterns_by_layer(
    runner: Runner, ids: Ints, layers: Sequence[int]
) -> Iterator[tuple[int, Floats]]:
    """(layer, its patterns (batch, head, query, key)); long prompts take a run for few layers."""
    size = len(ids) * runner.config.n_head * ids.shape[1] ** 2
    at_once = max(1, _MAX_WEIGHTS // size)
    for first in range(0, len(layers), at_once):
        part = layers[first : first + at_once]
        taps = finite_run(runner, ids, taps=[f"blocks.{i}.pattern" for i in part], top_k=1).taps
        for i in part:
            yield i, taps[f"blocks.{i}.pattern"]


def _pattern_rows(pattern: Floats) -> list[Row]:
    """One row for each query and key up to it. pattern: (query, key)."""
    queries, keys = np.tril_indices(len(pattern))
    weights = pattern[queries, keys]
    return [
        {"query": query, "key": key, "attention": weight}
        for query, key, weight in zip(
            queries.tolist(), keys.tolist(), weights.tolist(), strict=True
        )
    ]
