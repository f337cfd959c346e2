"""The checked input of one run: rows of token ids, their lengths, and the cache they continue.

Both engines begin a run with `check_run`, so that they refuse the same things in the same words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2kit.checks import (
    as_int64,
    check_finite,
    check_flag,
    check_integer,
    check_integers,
    check_numbers,
    check_top_k,
    short,
)
from gpt2kit.config import GPT2Config
from gpt2kit.edit_arrays import Chunk, listed
from gpt2kit.errors import InputError
from gpt2kit.readout import Floats, Ints
from gpt2kit.taps import resolve

Ids = Sequence[int] | Sequence[Sequence[int]] | NDArray[np.integer]


class KVCache:
    """Keys and values of the positions run so far. Only its sizes are public.

    lengths: (batch,) number of positions held in each row.
    A run takes a cache and returns the advanced one, which uses the same memory: the cache that
    was passed in is spent. Call `copy()` first to continue in two ways from one point.
    """

    def __init__(self, lengths: Ints, max_length: int) -> None:
        self.lengths, self.max_length, self.spent = lengths, max_length, False

    def copy(self) -> KVCache:
        """An independent cache with the same content."""
        raise NotImplementedError


CacheT = TypeVar("CacheT", bound=KVCache)


@dataclass(frozen=True)
class Batch:
    """Checked rows of one run, right-padded.

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
        """(1 or batch, pos) absolute positions, those of padding clipped to the context."""
        starts = self.starts[:1] if self.uniform else self.starts
        positions: Ints = starts[:, None] + np.arange(self.ids.shape[1])
        return positions.clip(max=n_positions - 1)

    def chunk(self, *, cached: bool) -> Chunk:
        """The sizes and positions of this run, which edits need."""
        pos = self.ids.shape[1]
        keys = int((self.starts + pos).max()) if self.uniform else self.end
        return Chunk(self.starts, pos, keys, cached)


@dataclass(frozen=True)
class RunInput(Generic[CacheT]):
    """The checked arguments of `Runner.run`.

    taps: canonical names in the order in which they fire. edits: as a list, not yet expanded.
    """

    batch: Batch
    taps: tuple[str, ...]
    edits: list[Any]
    cache: CacheT | None

    @property
    def chunk(self) -> Chunk:
        """The sizes and positions of this run, which edits need."""
        return self.batch.chunk(cached=self.cache is not None)


def check_run(
    config: GPT2Config,
    cache_type: type[CacheT],
    ids: Ids,
    *,
    taps: str | Iterable[str],
    edits: Sequence[Any],
    cache: KVCache | None,
    lengths: ArrayLike | None,
    last_only: bool,
    top_k: int | None,
) -> RunInput[CacheT]:
    """Check what every engine's `run` was given, before any work is done.

    cache_type: the class of the caches that this engine makes. For the rest, see `Runner.run`.
    Raises InputError, or TapError or EditError, which are InputErrors.
    """
    if cache is not None and not isinstance(cache, cache_type):
        made = type(cache).__name__
        raise InputError(f"cache: this engine needs a cache of its own, got {made}")
    check_flag("last_only", last_only)
    wanted = resolve(taps, config.n_layer)
    changes = listed(edits)
    return RunInput(prepare(ids, lengths, cache, config, top_k), wanted, changes, cache)


def prepare(
    ids: Ids,
    lengths: ArrayLike | None,
    cache: KVCache | None,
    config: GPT2Config,
    top_k: int | None = None,
) -> Batch:
    """Check ids, lengths, cache and top_k of one run. Raises InputError."""
    if top_k is not None:
        check_top_k(top_k, config.vocab_size, low=0)
    rows, lengths = _padded(ids, lengths)
    if rows.min() < 0 or rows.max() >= config.vocab_size:
        bad = rows.min() if rows.min() < 0 else rows.max()
        raise InputError(f"ids: token id {bad} is outside the vocabulary of {config.vocab_size}")
    starts, limit = np.zeros(len(rows), np.int64), config.n_positions
    if cache is not None:
        _check_cache(cache, len(rows))
        starts, limit = cache.lengths, cache.max_length
    batch = Batch(rows[:, : lengths.max()], lengths, starts)
    if batch.end > limit:
        where = "context" if limit == config.n_positions else "cache"
        raise InputError(f"{batch.end} positions do not fit the {where} of {limit}")
    return batch


def token_rows(ids: Ids, lengths: ArrayLike | None) -> list[list[int]]:
    """The tokens of each row, without padding. Raises InputError as `prepare` does."""
    rows, sizes = _padded(ids, lengths)
    return [row[:size].tolist() for row, size in zip(rows, sizes, strict=True)]


def check_stream(resid: Any, config: GPT2Config, dtype: str) -> Floats:
    """Return a residual stream (batch, pos, d_model) that fits the context and `dtype`.

    Raises InputError.
    """
    stream = check_numbers("resid", resid)
    if stream.ndim != 3 or not stream.size or stream.shape[2] != config.n_embd:
        raise InputError(
            f"resid: a residual stream is (batch, pos, {config.n_embd}), got {stream.shape}"
        )
    if stream.shape[1] > config.n_positions:
        raise InputError(
            f"{stream.shape[1]} positions do not fit the context of {config.n_positions}"
        )
    check_finite("resid", stream, dtype)
    return stream


def cache_length(batch_size: int, max_length: int | None, config: GPT2Config) -> int:
    """Number of positions that a new cache holds; by default the whole context.

    Raises InputError for an impossible batch size or length.
    """
    check_integer("batch_size", batch_size)
    length = config.n_positions if max_length is None else max_length
    return check_integer("max_length", length, 1, config.n_positions)


def _check_cache(cache: KVCache, rows: int) -> None:
    """Raise InputError unless the cache is for this number of rows, and not spent."""
    if len(cache.lengths) != rows:
        raise InputError(f"{rows} rows, but the cache was made for {len(cache.lengths)}")
    if cache.spent:
        raise InputError(
            "this cache was advanced by a later run; use the one that run returned, "
            "or copy() it before the run"
        )


def _padded(ids: Ids, lengths: ArrayLike | None) -> tuple[Ints, Ints]:
    """Rows of ids (batch, pos), padded with 0, and their lengths (batch,)."""
    rows, sizes = _rows(ids)
    checked = sizes if lengths is None else np.atleast_1d(check_integers("lengths", lengths))
    if checked.ndim != 1:
        raise InputError(f"lengths of shape {checked.shape} must be (batch,)")
    if rows.size == 0 or (checked < 1).any():
        what = "ids" if lengths is None else "lengths"
        raise InputError(
            f"{what}: a row has no tokens; give at least one (for an empty prompt, <|endoftext|>)"
        )
    if checked.shape != (len(rows),) or checked.max() > rows.shape[1]:
        raise InputError(f"lengths {checked.tolist()} do not fit ids of shape {rows.shape}")
    if checked.min() < rows.shape[1]:  # callers may pad with any number
        rows = np.where(np.arange(rows.shape[1]) < checked[:, None], rows, 0)
    return rows, checked


def _rows(ids: Ids) -> tuple[Ints, Ints]:
    """Rows (batch, pos), padded with 0 where they are of unequal length, and their sizes."""
    if isinstance(ids, list | tuple) and ids and isinstance(ids[0], Sequence | np.ndarray):
        given = [_integers(row) for row in ids]
        if any(row.ndim != 1 for row in given):
            raise InputError("ids must be (batch, pos), or one row, or a list of rows")
        sizes = np.array([len(row) for row in given])
        rows = np.zeros((len(sizes), sizes.max()), np.int64)
        for row, tokens in zip(rows, given, strict=True):
            row[: len(tokens)] = tokens
        return rows, sizes
    rows = np.atleast_2d(_integers(ids))
    if rows.ndim != 2:
        raise InputError(f"ids of shape {rows.shape}; they must be (batch, pos) or one row")
    return rows, np.full(len(rows), rows.shape[1])


def _integers(ids: Any) -> Ints:
    """An array of token ids, of any shape."""
    try:
        array = np.asarray(ids)
    except (ValueError, RuntimeError) as error:  # uneven lists; a tensor on a GPU
        raise InputError("ids must be (batch, pos), or one row, or a list of rows") from error
    if array.size and array.dtype.kind not in "iu":
        kind = short(ids) if array.dtype.kind == "O" else str(array.dtype)
        raise InputError(f"ids must hold integers, got {kind}; encode text first")
    return as_int64(array)
