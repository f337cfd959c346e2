"""The seam between engines and probes: Runner, what it returns, and generation over any Runner.

numpy on both sides; nothing here imports torch or onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2kit.config import GPT2Config
from gpt2kit.edits import Chunk, Edit, affine, listed
from gpt2kit.errors import InputError
from gpt2kit.readout import Floats, Ints, Readout
from gpt2kit.sampling import Sampler, largest
from gpt2kit.taps import TapDict
from gpt2kit.tokenizer import Tokenizer

Ids = Sequence[int] | Sequence[Sequence[int]] | NDArray[np.integer]
Prompt = TypeVar("Prompt", str, list[str])


@dataclass(frozen=True)
class Source:
    """Where a model came from: what it is called, and the commit of a hub id."""

    model: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.model}@{self.revision[:12]}" if self.revision else self.model


class KVCache:
    """Keys and values of the positions run so far; opaque but for its sizes.

    lengths: (batch,) number of positions held in each row.
    A run takes a cache and returns the advanced one, in the same memory: the one given is spent.
    `copy()` first, to go two ways from one point.
    """

    def __init__(self, lengths: Ints, max_length: int) -> None:
        self.lengths, self.max_length, self.spent = lengths, max_length, False

    def copy(self) -> KVCache:
        """An independent cache with the same content."""
        raise NotImplementedError


@dataclass(frozen=True)
class Run:
    """What one run gives.

    logits: (batch, pos, vocab), or (batch, 1, vocab) with last_only; float32 (float64 if the model
            is). Rows shorter than the longest hold undefined values past their length. With top_k,
            the last axis is the k largest, largest first.
    taps:   any spelling of a tap -> its value after edits, axes as in `gpt2kit.taps`.
    cache:  the advanced cache, if one was given.
    top_ids: with top_k, the tokens of these logits, of the same shape; else None.
    """

    logits: Floats
    taps: TapDict[Floats]
    cache: KVCache | None
    top_ids: Ints | None = None


class Runner(Protocol):
    """An engine that runs one GPT-2. Probes know nothing else of engines."""

    config: GPT2Config
    tokenizer: Tokenizer | None
    source: Source

    @property
    def dtype(self) -> str:
        """What the weights are: "float32", "float16", …."""
        ...

    def run(
        self,
        ids: Ids,
        *,
        taps: str | Iterable[str] = (),
        edits: Sequence[Any] = (),
        cache: KVCache | None = None,
        lengths: ArrayLike | None = None,
        last_only: bool = False,
        top_k: int | None = None,
    ) -> Run:
        """Run token ids (batch, pos), or one row, or rows of unequal length.

        taps:    names, aliases or globs of what to return.
        edits:   `Edit`s, applied in order (the torch engine also takes (tap, function) pairs).
        cache:   from `new_cache` or an earlier run; positions go on where it ended.
        lengths: (batch,) how many of the columns of `ids` are tokens; the rest is right padding.
        last_only: logits of the last token of each row alone.
        top_k:   only the k largest logits of each position, and which tokens they belong to; 0 is
                 for a run that is made for its taps or its cache, and leaves out the unembedding
                 (a portable graph computes all logits nevertheless, as with last_only).
        """
        ...

    def readout(
        self,
        resid: Floats,
        *,
        top_k: int = 5,
        targets: ArrayLike | None = None,
        reference: Floats | None = None,
    ) -> Readout:
        """Statistics of residual vectors (…, d_model) read through ln_f and the unembedding.

        targets:   token ids, broadcastable to (…, number of targets).
        reference: residual vectors (R…, d_model), R… the last axes of …, for `kl`.
        """
        ...

    def unembed(self, resid: Floats) -> Floats:
        """Logits (…, vocab) of a few residual vectors (…, d_model), read through ln_f and the
        unembedding. Statistics of many are for `readout`, which never holds all logits."""
        ...

    def weight(self, name: str) -> Floats:
        """A weight by its name in the checkpoint, as it is laid out there: "wte.weight",
        "h.3.attn.c_attn.weight" (in, out), …; "lm_head.weight" is the unembedding, tied or not.

        float32 (float64 if the model is), read-only: it may be the engine's own memory. Of a
        quantised file, what its whole numbers stand for. Raises InputError, with the nearest name,
        if there is no such weight.
        """
        ...

    def new_cache(self, batch_size: int = 1, max_length: int | None = None) -> KVCache:
        """An empty cache, by default for the whole context."""
        ...


@dataclass(frozen=True)
class Batch:
    """Checked input of one run, right-padded.

    ids: (batch, pos). lengths: (batch,) tokens in each row. starts: (batch,) absolute position of
    each row's first token.
    """

    ids: Ints
    lengths: Ints
    starts: Ints

    @property
    def uniform(self) -> bool:
        """Whether all rows start at the same position."""
        return bool((self.starts == self.starts[0]).all())

    @property
    def end(self) -> int:
        """Number of positions that the longest row has after this run."""
        return int((self.starts + self.lengths).max())

    def positions(self, n_positions: int) -> Ints:
        """(1 or batch, pos) absolute positions; padding stays inside the table of positions."""
        starts = self.starts[:1] if self.uniform else self.starts
        positions: Ints = starts[:, None] + np.arange(self.ids.shape[1])
        return positions.clip(max=n_positions - 1)

    def chunk(self, cached: bool) -> Chunk:
        """The same, as edits see it."""
        pos = self.ids.shape[1]
        keys = int((self.starts + pos).max()) if self.uniform else self.end
        return Chunk(self.starts, pos, keys, cached)


def prepare(
    ids: Ids,
    lengths: ArrayLike | None,
    cache: KVCache | None,
    config: GPT2Config,
    top_k: int | None = None,
) -> Batch:
    """Check what a run was given. Raises InputError before any work is done."""
    if top_k is not None and not 0 <= top_k <= config.vocab_size:
        raise InputError(f"top_k = {top_k} must be from 0 to {config.vocab_size}, the vocabulary")
    rows, lengths = _rectangle(ids, lengths)
    if rows.min() < 0 or rows.max() >= config.vocab_size:
        bad = rows.min() if rows.min() < 0 else rows.max()
        raise InputError(f"token id {bad} is outside the vocabulary of {config.vocab_size}")
    starts, limit = np.zeros(len(rows), np.int64), config.n_positions
    if cache is not None:
        if len(cache.lengths) != len(rows):
            raise InputError(f"{len(rows)} rows, but the cache was made for {len(cache.lengths)}")
        if cache.spent:
            raise InputError(
                "this cache was advanced by a later run; use the one that run returned, "
                "or copy() it before the run"
            )
        starts, limit = cache.lengths, cache.max_length
    batch = Batch(rows[:, : lengths.max()], lengths, starts)
    if batch.end > limit:
        where = "context" if limit == config.n_positions else "cache"
        raise InputError(f"{batch.end} positions do not fit the {where} of {limit}")
    return batch


def cache_length(batch_size: int, max_length: int | None, config: GPT2Config) -> int:
    """The positions that a new cache is to hold; by default the whole context."""
    at_least_one("batch_size", batch_size)
    length = config.n_positions if max_length is None else max_length
    at_least_one("max_length", length)
    if length > config.n_positions:
        raise InputError(f"max_length = {length} must be from 1 to {config.n_positions}")
    return length


def at_least_one(name: str, value: Any) -> None:
    """Raise InputError for what is no whole number above 0."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} = {value} must be a whole number, at least 1")


def _rectangle(ids: Ids, lengths: ArrayLike | None) -> tuple[Ints, Ints]:
    """Rows of ids (batch, pos), padded with 0, and their lengths."""
    if len(ids) and not isinstance(ids, np.ndarray) and isinstance(ids[0], Sequence | np.ndarray):
        given = [_integers(row) for row in ids]
        if any(row.ndim != 1 for row in given):
            raise InputError("ids must be (batch, pos), or one row, or a list of rows")
        sizes = [len(row) for row in given]
        rows = np.zeros((len(sizes), max(sizes)), np.int64)
        for row, tokens in zip(rows, given, strict=True):
            row[: len(tokens)] = tokens
    else:
        rows = np.atleast_2d(_integers(ids))
        sizes = [rows.shape[-1]] * len(rows)
    if rows.ndim != 2:
        raise InputError(f"ids of shape {rows.shape}; they must be (batch, pos) or one row")
    checked = np.asarray(sizes if lengths is None else lengths, np.int64).reshape(-1)
    if rows.size == 0 or (checked < 1).any():
        raise InputError(
            "a row has no tokens; give at least one (for an empty prompt, <|endoftext|>)"
        )
    if checked.shape != (len(rows),) or checked.max() > rows.shape[1]:
        raise InputError(f"lengths {checked.tolist()} do not fit ids of shape {rows.shape}")
    if checked.min() < rows.shape[1]:  # padding may be any number
        rows = np.where(np.arange(rows.shape[1]) < checked[:, None], rows, 0)
    return rows, checked


def _integers(ids: Any) -> Ints:
    try:
        array = np.asarray(ids)
    except ValueError as error:
        raise InputError("ids must be (batch, pos), or one row, or a list of rows") from error
    if array.size and array.dtype.kind not in "iu":
        raise InputError(f"token ids must be whole numbers, got {array.dtype}; encode text first")
    return array.astype(np.int64)


def encode(runner: Runner, prompt: str) -> list[int]:
    """Token ids of a prompt, checked to be non-empty and to fit the context."""
    if not isinstance(prompt, str):
        raise InputError(f"a prompt must be text, got {type(prompt).__name__}; one at a time")
    if runner.tokenizer is None:
        raise InputError(
            f"{runner.source} has no tokenizer: tokenizer.json is missing beside the model"
        )
    ids = runner.tokenizer.encode(prompt)
    if not ids:
        raise InputError("the prompt is empty; give some text (or <|endoftext|> to start from)")
    if len(ids) > runner.config.n_positions:
        raise InputError(
            f"the prompt has {len(ids)} tokens, the context holds {runner.config.n_positions}; "
            "shorten it"
        )
    return ids


def steps(
    runner: Runner,
    ids: Ids,
    *,
    max_new_tokens: int,
    sampler: Sampler,
    lengths: ArrayLike | None = None,
    edits: Sequence[Edit] = (),
    taps: str | Iterable[str] = (),
    head: Callable[[Run], Floats] | None = None,
    watch: Callable[[Run, Ints], None] | None = None,
) -> Iterator[Ints]:
    """Yield the next token of every row, (batch,), step by step.

    head:  gives the logits (batch, vocab) to choose from, of a run that holds `taps`, in place of
           the engine's own, which are then not computed.
    watch: called with each step's run, which holds `taps`, and the tokens chosen from it.
    Raises InputError before the first step if the rows and what they will grow by do not fit, and
    EditError if an edit does not reach as far as they will.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens = {max_new_tokens} must be at least 1")
    sampler.check(runner.config.vocab_size)
    batch = prepare(ids, lengths, None, runner.config)
    total = batch.end + max_new_tokens
    if total - 1 > runner.config.n_positions:  # the last new token is never fed back
        raise InputError(
            f"{batch.end} prompt tokens and {max_new_tokens} new ones need {total - 1} positions, "
            f"the context holds {runner.config.n_positions}; shorten the prompt or ask for fewer"
        )

    end = Chunk(np.full(len(batch.ids), total - 2), 1, total - 1, cached=True)
    affine([edit for edit in listed(edits) if isinstance(edit, Edit)], runner.config, end)

    def generator() -> Iterator[Ints]:
        cache: KVCache | None = runner.new_cache(len(batch.ids), total - 1)
        rows, sizes = batch.ids, batch.lengths
        candidates = sampler.candidates or runner.config.vocab_size
        for _ in range(max_new_tokens):
            run = runner.run(
                rows, lengths=sizes, cache=cache, edits=edits, taps=taps, last_only=True,
                top_k=candidates if head is None else 0,
            )  # fmt: skip
            if head is not None:
                logits, top_ids = largest(head(run), candidates)
            else:
                assert run.top_ids is not None
                logits, top_ids = run.logits[:, -1], run.top_ids[:, -1]
            chosen = sampler.pick(logits, top_ids)
            if watch is not None:
                watch(run, chosen)
            yield chosen
            rows, sizes, cache = chosen[:, None], np.ones_like(sizes), run.cache

    return generator()


class _Text:
    """The growing text of one row: decodes, finds stop strings, and tells what is final."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], end: int | None) -> None:
        self.tokenizer, self.stop, self.end = tokenizer, stop, end
        self.ids: list[int] = []
        self.text, self.shown, self.done = "", 0, False

    def push(self, token: int, last: bool) -> str:
        """Add a token; return the text that is certain now and was not before."""
        if token == self.end:
            self.done = True
        else:
            self.ids.append(token)
            self.text = self.tokenizer.decode(self.ids)
        cut = min((at for s in self.stop if (at := self.text.find(s)) >= 0), default=None)
        if cut is not None:
            self.text, self.done = self.text[:cut], True
        certain = len(self.text)
        if not (self.done or last):
            certain -= self._pending()
        piece, self.shown = self.text[self.shown : certain], max(self.shown, certain)
        return piece

    def _pending(self) -> int:
        """Length of the tail that may still change: half a character, or half a stop string."""
        whole = self.text.rstrip("\ufffd")
        halves = (n for s in self.stop for n in range(1, len(s)) if whole.endswith(s[:n]))
        return len(self.text) - len(whole) + max(halves, default=0)


def generate(
    runner: Runner,
    prompt: Prompt,
    *,
    max_new_tokens: int = 40,
    greedy: bool = False,
    temperature: float = 1.0,
    top_k: int | None = 50,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    edits: Sequence[Edit] = (),
    on_text: Callable[[int, str], None] | None = None,
    taps: str | Iterable[str] = (),
    head: Callable[[Run], Floats] | None = None,
    watch: Callable[[Run, Ints], None] | None = None,
) -> Prompt:
    """Continue a prompt, or a batch of prompts of unequal length; returns the new text alone.

    greedy, temperature, top_k, top_p, seed: see `gpt2kit.sampling.Sampler`.
    stop:    a row ends before the first of these strings, or at `<|endoftext|>`.
    edits:   applied at every step, at absolute positions.
    on_text: called with (row, piece of text) as soon as the piece is certain.
    taps, head, watch: for looking at each step's run; see `steps`.
    Raises InputError before any work if a prompt is empty or does not fit the context.
    """
    sampler = Sampler(temperature, top_k, top_p, greedy, seed)
    stops = [stop] if isinstance(stop, str) else list(stop)
    if not all(stops):
        raise InputError("a stop string is empty; leave it out or give some text")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise InputError("no prompts were given")
    ids = [encode(runner, p) for p in prompts]
    assert runner.tokenizer is not None
    texts = [_Text(runner.tokenizer, stops, runner.config.eos_token_id) for _ in prompts]
    tokens = steps(
        runner, ids, max_new_tokens=max_new_tokens, sampler=sampler, edits=edits, taps=taps,
        head=head, watch=watch,
    )  # fmt: skip
    for step, chosen in enumerate(tokens, start=1):
        for row, text in enumerate(texts):
            piece = "" if text.done else text.push(int(chosen[row]), step == max_new_tokens)
            if piece and on_text is not None:
                on_text(row, piece)
        if all(text.done for text in texts):
            break
    if isinstance(prompt, str):
        return texts[0].text
    return [text.text for text in texts]
