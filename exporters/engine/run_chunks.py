"""Split a run into chunks of columns, and join their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit.batch import Batch
from gpt2kit.taps import SCORES, axes_of


def split_run(batch: Batch, size: int) -> list[Batch]:
    """Chunks of `size` columns each, to be run one after the other.

    Size 1 is for rows of any length; other sizes are for one row, or for all columns at once.
    """
    columns = batch.ids.shape[1]
    if size == columns:
        return [batch]
    if size == 1:
        return [_one_column(batch, column) for column in range(columns)]
    return [_columns_of_one_row(batch, start, size) for start in range(0, columns, size)]


def _one_column(batch: Batch, column: int) -> Batch:
    """One token of every row.

    A row that has ended runs its last token again at the same place, which changes nothing.
    """
    columns = np.minimum(column, batch.lengths - 1)  # (batch,)
    ids = batch.ids[np.arange(len(batch.ids)), columns][:, None]
    return Batch(ids, np.ones_like(batch.lengths), batch.starts + columns)


def _columns_of_one_row(batch: Batch, start: int, size: int) -> Batch:
    ids = batch.ids[:, start : start + size]
    return Batch(ids, np.array([ids.shape[1]]), batch.starts + start)


def join_outputs(chunks: Sequence[NDArray[Any]], name: str, end: int) -> NDArray[Any]:
    """Join one output of all chunks along its columns.

    Scores and patterns of an early chunk have fewer keys; the later keys, up to `end`, become 0.
    """
    if name == "logits" or axes_of(name) != SCORES:
        return np.concatenate(chunks, axis=1)
    wide = [np.pad(x, [(0, 0)] * 3 + [(0, end - x.shape[-1])]) for x in chunks]
    return np.concatenate(wide, axis=2)


def last_logits(logits: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[Any]:
    """(batch, pos, vocab) -> (batch, 1, vocab): the logits of the last token of each row."""
    last: NDArray[Any] = logits[np.arange(len(logits)), lengths - 1][:, None]
    return last
