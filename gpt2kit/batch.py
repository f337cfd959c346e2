"""The checked input of one run: rows of token ids, their lengths, and the cache they continue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2kit.checks import check_integer, check_top_k
from gpt2kit.config import GPT2Config
from gpt2kit.edit_arrays import Chunk
from gpt2kit.errors import InputError
from gpt2kit.readout import Ints

Ids = Sequence[int] | Sequence[Sequence[int]] | NDArray[np.integer]


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
    if top_k is not None:
        check_top_k(top_k, config.vocab_size, low=0)
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
    check_integer("batch_size", batch_size)
    length = config.n_positions if max_length is None else max_length
    return check_integer("max_length", length, 1, config.n_positions)


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
