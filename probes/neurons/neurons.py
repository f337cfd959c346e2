"""Single neurons: what they write, what they read, and what text drives them.

A neuron is one hidden unit of an MLP; its activation is its entry of `mlp_post`. It reads the
normalised stream through a column of W_in and writes its activation times a row of W_out. Geva et
al. 2022, "Transformer Feed-Forward Layers Build Predictions by Promoting Concepts in the
Vocabulary Space", arXiv 2203.14680.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from gpt2kit.errors import InputError
from gpt2kit.logits import largest
from gpt2kit.prompts import counted, tokenizer_of
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import Result
from gpt2kit.runner import Runner
from gpt2kit.tokenizer import Tokenizer, printable
from probes.core.batching import batches_by_tokens
from probes.draw.tables import table
from probes.draw.words import title, visible
from probes.lens.head_lens import check_number, tap_of


@dataclass(frozen=True, eq=False)
class NeuronLens(Result):
    """Which tokens one neuron's write raises and lowers, as far as it reaches the logits itself."""

    source: str
    dtype: str
    layer: int
    neuron: int
    raised_ids: Ints  # (top_k,) most raised first
    raised_tokens: tuple[str, ...]
    raised: Floats  # (top_k,) logits for an activation of 1 and a final layer norm scale of 1
    lowered_ids: Ints  # (top_k,) most lowered first
    lowered_tokens: tuple[str, ...]
    lowered: Floats  # (top_k,)

    def render(self) -> RenderableType:
        """Both lists side by side."""
        lines = table("raises", "by", "lowers", "by", numbers=["by"])
        rows = zip(self.raised_tokens, self.raised, self.lowered_tokens, self.lowered, strict=True)
        for up, more, down, less in rows:
            lines.add_row(_shown(up), f"{more:+.3f}", _shown(down), f"{less:+.3f}")
        what = f"effect of neuron {self.layer}.{self.neuron} on the logits"
        return Group(title(what, self.source, self.dtype), "", lines)

    def __repr__(self) -> str:
        return f"NeuronLens({self.source}, neuron {self.layer}.{self.neuron})"


def neuron_lens(runner: Runner, layer: int, neuron: int, *, top_k: int = 10) -> NeuronLens:
    """The direct effect of a neuron on the logits: W_U ((w - mean(w)) * g).

    w is its row of W_out, g the gain of ln_f, * entry by entry. Where the final stream's scale
    (`ln_f_scale`) is s, an activation a moves the logits by a / s times this, s held fixed.
    """
    layer = tap_of(runner, layer, "mlp_post")[1]
    _, written = _weights(runner, layer, neuron)
    effect = runner.weight("lm_head.weight") @ written
    top_k = _count(top_k, len(effect))
    (raised, up), (lowered, down) = largest(effect, top_k), largest(-effect, top_k)
    tokenizer = tokenizer_of(runner)
    return NeuronLens(
        source=str(runner.source),
        dtype=runner.precision,
        layer=layer,
        neuron=neuron,
        raised_ids=up,
        raised_tokens=tuple(tokenizer.tokens(up.tolist())),
        raised=raised,
        lowered_ids=down,
        lowered_tokens=tuple(tokenizer.tokens(down.tolist())),
        lowered=-lowered,
    )


@dataclass(frozen=True, eq=False)
class NearestTokens(Result):
    """The tokens whose vectors lie nearest to what a neuron reads and to what it writes."""

    source: str
    dtype: str
    layer: int
    neuron: int
    read_ids: Ints  # (top_k,) nearest first
    read_tokens: tuple[str, ...]
    read_similarity: Floats  # (top_k,) cosine, -1 to 1, with the embedding
    written_ids: Ints  # (top_k,)
    written_tokens: tuple[str, ...]
    written_similarity: Floats  # (top_k,) cosine with the unembedding

    def render(self) -> RenderableType:
        """Both lists side by side."""
        lines = table("reads", "cosine", "writes", "cosine", numbers=["cosine"])
        rows = zip(
            self.read_tokens, self.read_similarity, self.written_tokens, self.written_similarity,
            strict=True,
        )  # fmt: skip
        for read, near, written, close in rows:
            lines.add_row(_shown(read), f"{near:.3f}", _shown(written), f"{close:.3f}")
        what = f"tokens nearest to neuron {self.layer}.{self.neuron}"
        return Group(title(what, self.source, self.dtype), "", lines)

    def __repr__(self) -> str:
        return f"NearestTokens({self.source}, neuron {self.layer}.{self.neuron})"


def nearest_tokens(runner: Runner, layer: int, neuron: int, *, top_k: int = 10) -> NearestTokens:
    """Cosine similarity of a neuron's weights with the vectors of the tokens.

    What it reads from the stream is its column of W_in times the gain of ln_2, less the mean that
    the layer norm takes away; against the embedding. What it writes: as in `neuron_lens`; against
    the unembedding.
    """
    layer = tap_of(runner, layer, "mlp_post")[1]
    read, written = _weights(runner, layer, neuron)
    top_k = _count(top_k, runner.config.vocab_size)
    near, read_ids = largest(_cosine(runner.weight("wte.weight"), read), top_k)
    close, written_ids = largest(_cosine(runner.weight("lm_head.weight"), written), top_k)
    tokenizer = tokenizer_of(runner)
    return NearestTokens(
        source=str(runner.source),
        dtype=runner.precision,
        layer=layer,
        neuron=neuron,
        read_ids=read_ids,
        read_tokens=tuple(tokenizer.tokens(read_ids.tolist())),
        read_similarity=near,
        written_ids=written_ids,
        written_tokens=tuple(tokenizer.tokens(written_ids.tolist())),
        written_similarity=close,
    )


@dataclass(frozen=True, eq=False)
class TopActivating(Result):
    """Where in a corpus a neuron was most active; its K likeliest places, most active first."""

    source: str
    dtype: str
    layer: int
    neuron: int
    activations: Floats  # (K,)
    texts: Ints  # (K,) which text, counted from 0
    positions: Ints  # (K,) which token of that text
    token_ids: Ints  # (K,)
    tokens: tuple[str, ...]  # (K,)
    before: tuple[str, ...]  # (K,) the text before the token
    after: tuple[str, ...]  # (K,) and after it
    n_tokens: int  # in the whole corpus
    mean: float  # of the activation, over the corpus
    active: float  # share of the tokens with an activation above 0

    def render(self) -> RenderableType:
        """One line for each place, the token in «»."""
        numbers = ("activation", "text", "pos")
        lines = table(*numbers, "where", numbers=numbers)
        for k, value in enumerate(self.activations):
            where = Text(printable(self.before[k]))
            where.append(f"«{printable(self.tokens[k])}»", "bold")
            where.append(printable(self.after[k]))
            lines.add_row(f"{value:z.3f}", str(self.texts[k]), str(self.positions[k]), where)
        what = f"where neuron {self.layer}.{self.neuron} is most active"
        read = counted(self.n_tokens, "token")
        return Group(title(what, self.source, self.dtype, read), "", lines)

    def __repr__(self) -> str:
        return (
            f"TopActivating({self.source}, neuron {self.layer}.{self.neuron}, top "
            f"{len(self.tokens)} of {self.n_tokens} tokens, mean {self.mean:.3g})"
        )


def top_activating(
    runner: Runner,
    layer: int,
    neuron: int,
    texts: Iterable[str],
    *,
    top_k: int = 10,
    context: int = 8,
) -> TopActivating:
    """The tokens of a corpus at which a neuron is most active (its entry of `mlp_post`).

    texts: run one after another and forgotten; one that is longer than the model's context is cut
           into pieces of that size. context: how many tokens to show on either side.
    Equal activations are listed in the order of the corpus. Raises InputError without any token.
    """
    tap, layer = tap_of(runner, layer, "mlp_post")
    check_number("neuron", neuron, runner.config.d_mlp)
    if top_k < 1 or context < 0:
        raise InputError(f"top_k = {top_k} must be at least 1, context = {context} at least 0")
    if isinstance(texts, str):
        texts = [texts]
    tokenizer = tokenizer_of(runner)
    best: list[tuple[float, int, int, list[int], int]] = []  # (-activation, text, pos, ids, at)
    count, total, active = 0, 0.0, 0
    pieces = _pieces(tokenizer, texts, runner.config.n_positions)
    for batch in batches_by_tokens(pieces, lambda piece: len(piece.ids)):
        run = runner.run([piece.ids for piece in batch], taps=[tap], last_only=True, top_k=1)
        for (text, start, ids), row in zip(batch, run.taps[tap][:, :, neuron], strict=True):
            own = row[: len(ids)].astype(np.float64)
            count, total, active = count + len(own), total + own.sum(), active + (own > 0).sum()
            values, at = (x[0].tolist() for x in largest(own[None], min(top_k, len(own))))
            found = [(-v, text, start + i, ids, i) for v, i in zip(values, at, strict=True)]
            best = heapq.nsmallest(top_k, [*best, *found], key=lambda place: place[:3])
    if not count:
        raise InputError("the texts hold no tokens")
    return TopActivating(
        source=str(runner.source),
        dtype=runner.precision,
        layer=layer,
        neuron=neuron,
        activations=np.array([-place[0] for place in best]),
        texts=np.array([place[1] for place in best]),
        positions=np.array([place[2] for place in best]),
        token_ids=np.array([ids[i] for *_, ids, i in best]),
        tokens=tuple(tokenizer.decode([ids[i]]) for *_, ids, i in best),
        before=tuple(tokenizer.decode(ids[max(0, i - context) : i]) for *_, ids, i in best),
        after=tuple(tokenizer.decode(ids[i + 1 : i + 1 + context]) for *_, ids, i in best),
        n_tokens=count,
        mean=float(total / count),
        active=float(active / count),
    )


class _Piece(NamedTuple):
    """What of a text fits the context, and where it starts."""

    text: int
    start: int
    ids: list[int]


def _pieces(tokenizer: Tokenizer, texts: Iterable[str], length: int) -> Iterator[_Piece]:
    for number, text in enumerate(texts):
        ids = tokenizer.encode(text)
        for start in range(0, len(ids), length):
            yield _Piece(number, start, ids[start : start + length])


def _weights(runner: Runner, layer: int, neuron: int) -> tuple[Floats, Floats]:
    """(d_model,) what a neuron reads from the stream and what it writes to the logits' vectors: the
    layer norms' gains and centring included, their scales left out."""
    check_number("neuron", neuron, runner.config.d_mlp)
    block = f"h.{layer}"
    read = runner.weight(f"{block}.mlp.c_fc.weight")[:, neuron]
    read = read * runner.weight(f"{block}.ln_2.weight")
    written = runner.weight(f"{block}.mlp.c_proj.weight")[neuron]
    return read - read.mean(), (written - written.mean()) * runner.weight("ln_f.weight")


def _cosine(vectors: Floats, x: Floats) -> Floats:
    """(vocab, d_model), (d_model,) -> (vocab,)."""
    lengths = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(x)
    cosine: Floats = vectors @ x / np.maximum(lengths, np.finfo(lengths.dtype).tiny)
    return cosine


def _shown(token: str) -> Text:
    return Text(visible(token))


def _count(top_k: int, most: int) -> int:
    if not 1 <= top_k <= most:
        raise InputError(f"top_k = {top_k} must be from 1 to the vocabulary's {most}")
    return top_k
