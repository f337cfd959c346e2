"""How many prompts, or copies of one prompt, run together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
COPIES_POSITIONS = 4096  # rows x positions of one batch of copies
PROMPTS_POSITIONS = 1024  # rows x positions of one batch of prompts, padding included


def row_batches(items: Sequence[T], pos: int) -> Iterator[Sequence[T]]:
    """Successive items, as many as one batch holds if each is a row of `pos` tokens; at least 1."""
    size = max(1, COPIES_POSITIONS // pos)
    for start in range(0, len(items), size):
        yield items[start : start + size]


def batches_by_tokens(rows: Iterable[T], size: Callable[[Any], int] = len) -> Iterator[list[T]]:
    """Successive rows of unequal length, as many as one batch holds when padded; at least 1.

    size: the number of tokens of a row.
    """
    batch: list[T] = []
    widest = 0
    for row in rows:
        widest = max(widest, size(row))
        if batch and widest * (len(batch) + 1) > PROMPTS_POSITIONS:
            yield batch
            batch, widest = [], size(row)
        batch.append(row)
    if batch:
        yield batch
