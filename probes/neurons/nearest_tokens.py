"""The tokens whose vectors are nearest to a neuron's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.defaults import Default
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import ModelResult, Row, model_header
from gpt2kit.runner import Runner
from probes.neurons.neuron_weights import find_neuron, top_tokens

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class NearestTokens(ModelResult):
    """The tokens with vectors nearest to a neuron's input weights and to its output weights."""

    layer: int
    neuron: int
    read_ids: Ints  # (top_k,) nearest first
    read_tokens: tuple[str, ...]
    read_similarity: Floats  # (top_k,) cosine, -1 to 1, with the embedding
    written_ids: Ints  # (top_k,)
    written_tokens: tuple[str, ...]
    written_similarity: Floats  # (top_k,) cosine with the unembedding

    def table(self) -> list[Row]:
        """One row for each token, first the tokens it reads."""
        read = zip(self.read_ids, self.read_tokens, self.read_similarity, strict=True)
        written = zip(self.written_ids, self.written_tokens, self.written_similarity, strict=True)
        return [
            {"side": side, "rank": rank, "id": int(id_), "token": token, "cosine": float(cosine)}
            for side, tokens in (("read", read), ("written", written))
            for rank, (id_, token, cosine) in enumerate(tokens)
        ]

    def render(self) -> RenderableType:
        """Both lists side by side."""
        from probes.draw.token_lists import TokenList, side_by_side
        from probes.draw.words import title

        what = f"tokens nearest to neuron {self.layer}.{self.neuron}"
        return side_by_side(
            title(what, self.source, self.dtype),
            TokenList("reads", self.read_tokens, self.read_similarity),
            TokenList("writes", self.written_tokens, self.written_similarity),
            unit="cosine",
            number=".3f",
        )

    def __repr__(self) -> str:
        return f"NearestTokens({self.source}, neuron {self.layer}.{self.neuron})"


def nearest_tokens(
    runner: Runner, layer: int, neuron: int, *, top_k: int = Default(10)
) -> NearestTokens:
    """Cosine similarity of a neuron's weights with the vectors of the tokens.

    What it reads is compared with the embedding: its column of W_in times the gain of ln_2, less
    the mean, which the layer norm subtracts. What it writes is compared with the unembedding; see
    `neuron_lens`. A negative layer counts from the end. Raises InputError for an unknown layer or
    neuron.
    """
    found = find_neuron(runner, layer, neuron)
    read = _cosine(runner.weight("wte.weight"), found.read)
    written = _cosine(runner.weight("lm_head.weight"), found.written)
    read_ids, read_tokens, read_similarity = top_tokens(runner, read, top_k)
    written_ids, written_tokens, written_similarity = top_tokens(runner, written, top_k)
    return NearestTokens(
        **model_header(runner),
        layer=found.layer,
        neuron=found.neuron,
        read_ids=read_ids,
        read_tokens=read_tokens,
        read_similarity=read_similarity,
        written_ids=written_ids,
        written_tokens=written_tokens,
        written_similarity=written_similarity,
    )


def _cosine(vectors: Floats, x: Floats) -> Floats:
    """(vocab, d_model), (d_model,) -> (vocab,)."""
    lengths = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(x)
    cosine: Floats = vectors @ x / np.maximum(lengths, np.finfo(lengths.dtype).tiny)
    return cosine
