"""The places of a corpus where a neuron is most active."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpt2kit.checks import check_integer
from gpt2kit.errors import InputError
from gpt2kit.finite import finite_run
from gpt2kit.logits import largest
from gpt2kit.printable import printable
from gpt2kit.prompts import Prompt, counted, tokenizer_of
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import ModelResult, Row, model_header
from gpt2kit.runner import Runner
from gpt2kit.tokenizer import Tokenizer
from probes.core.batching import batches_by_tokens
from probes.core.parts import check_neuron, tap_at

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TopActivating(ModelResult):
    """The K places of a corpus where a neuron is most active, most active first."""

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

    def table(self) -> list[Row]:
        """One row for each place."""
        return [
            {
                "activation": float(self.activations[k]),
                "text": int(self.texts[k]),
                "position": int(self.positions[k]),
                "id": int(self.token_ids[k]),
                "token": self.tokens[k],
                "before": self.before[k],
                "after": self.after[k],
            }
            for k in range(len(self.tokens))
        ]

    def render(self) -> RenderableType:
        """One line for each place, the token in «»."""
        from rich.console import Group
        from rich.text import Text

        from probes.draw.tables import table
        from probes.draw.words import title

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
    texts: str | Iterable[Prompt],
    *,
    top_k: int = 10,
    context: int = 8,
) -> TopActivating:
    """The tokens of a corpus at which a neuron is most active (its entry of `mlp_post`).

    texts: texts, or rows of token ids; one text may be given by itself. They are run one after
           another and not kept; a text longer than the model's context is split into pieces.
    context: how many tokens to show on either side. A negative layer counts from the end.
    Equal activations are listed in the order of the corpus. Raises InputError for a corpus without
    tokens.
    """
    tap, layer = tap_at(runner.config, layer, "mlp_post")
    check_neuron(runner.config, neuron)
    check_integer("top_k", top_k)
    check_integer("context", context, low=0)
    best, corpus = list[_Place](), _Corpus()
    pieces = _pieces(tokenizer_of(runner), texts, runner.config.n_positions)
    for batch in batches_by_tokens(pieces, lambda piece: len(piece.ids)):
        ids = [piece.ids for piece in batch]
        run = finite_run(runner, ids, taps=[tap], last_only=True, top_k=1)
        for piece, row in zip(batch, run.taps[tap][:, :, neuron], strict=True):
            values = row[: len(piece.ids)].astype(np.float64)
            corpus = corpus.add(values)
            found = _top_places(piece, values, top_k)
            # heapq.nsmallest keeps the order of equal keys, and earlier places come first
            best = heapq.nsmallest(top_k, [*best, *found], key=lambda place: -place.activation)
    if not corpus.n_tokens:
        raise InputError("the texts hold no tokens")
    return _result(runner, layer, neuron, best, corpus, context)


class _Piece(NamedTuple):
    """A part of a text that fits the context, and where it starts."""

    text: int
    start: int
    ids: list[int]


class _Place(NamedTuple):
    """One token of a piece."""

    activation: float
    piece: _Piece
    offset: int  # in the piece


class _Corpus(NamedTuple):
    """Sums over all tokens read so far."""

    n_tokens: int = 0
    total: float = 0.0
    active: int = 0

    def add(self, values: Floats) -> _Corpus:
        """With the activations (N,) of more tokens."""
        active = int((values > 0).sum())
        return _Corpus(
            self.n_tokens + len(values), self.total + float(values.sum()), self.active + active
        )


def _pieces(tokenizer: Tokenizer, texts: str | Iterable[Prompt], length: int) -> Iterator[_Piece]:
    """Pieces of at most `length` tokens. Raises InputError for texts that are not texts or ids."""
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, Iterable):
        raise InputError(f"texts must be a list of texts, got {type(texts).__name__}")
    for number, text in enumerate(texts):
        ids = tokenizer.encode(text) if isinstance(text, str) else _row(text, number)
        for start in range(0, len(ids), length):
            yield _Piece(number, start, ids[start : start + length])


def _row(ids: Any, number: int) -> list[int]:
    """One text given as token ids, which may be none. number: which of the texts."""
    try:
        row = np.asarray(ids)
    except ValueError:  # rows of unequal length
        row = np.empty((0, 0))
    if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
        raise InputError(f"texts[{number}] is neither a text nor a row of token ids")
    return [int(i) for i in row]


def _top_places(piece: _Piece, values: Floats, top_k: int) -> list[_Place]:
    """The places of one piece with the largest activations (N,), in descending order."""
    top, index = largest(values[None], min(top_k, len(values)))
    return [
        _Place(value, piece, i) for value, i in zip(top[0].tolist(), index[0].tolist(), strict=True)
    ]


def _result(
    runner: Runner, layer: int, neuron: int, best: list[_Place], corpus: _Corpus, context: int
) -> TopActivating:
    decode = tokenizer_of(runner).decode
    return TopActivating(
        **model_header(runner),
        layer=layer,
        neuron=neuron,
        activations=np.array([place.activation for place in best]),
        texts=np.array([place.piece.text for place in best]),
        positions=np.array([place.piece.start + place.offset for place in best]),
        token_ids=np.array([place.piece.ids[place.offset] for place in best]),
        tokens=tuple(decode([place.piece.ids[place.offset]]) for place in best),
        before=tuple(decode(p.piece.ids[max(0, p.offset - context) : p.offset]) for p in best),
        after=tuple(decode(p.piece.ids[p.offset + 1 : p.offset + 1 + context]) for p in best),
        n_tokens=corpus.n_tokens,
        mean=corpus.total / corpus.n_tokens,
        active=corpus.active / corpus.n_tokens,
    )
