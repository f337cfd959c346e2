"""Interpolated modified Kneser-Ney n-gram model: the baseline of the bundled model.

Follows Chen & Goodman (1998). Each order has three discounts, for counts of 1, 2 and 3 or more,
estimated from its own counts of counts. Lower orders count distinct left contexts instead of
occurrences. The unigram is interpolated with the uniform distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class _Level:
    """The lookup tables of one order, sorted by key.

    `grams` and `discounted` have one entry per distinct n-gram, `contexts` and `back_off` one per
    distinct context (the n-gram without its last token). `discounted` is max(count - D, 0) divided
    by the context's total, so p = discounted + back_off * p_lower.
    """

    grams: IntArray
    discounted: FloatArray
    contexts: IntArray
    back_off: FloatArray


def _discounts(counts: IntArray) -> FloatArray:
    """Discount for a count of 0, 1, 2 and 3 or more, shape (4,)."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in range(1, 5))
    if min(n1, n2, n3) == 0:
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = n1 / (n1 + 2 * n2)
    raw = [0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    clipped: FloatArray = np.clip(np.array(raw), 0.0, [0.0, 1.0, 2.0, 3.0])
    return clipped


def _level(grams: IntArray, counts: IntArray, bits: int) -> _Level:
    """Turn the distinct n-grams of one order and their counts into lookup tables."""
    discount = _discounts(counts)[np.minimum(counts, 3)]
    # The grams are sorted, so grams that share a context are adjacent.
    contexts, first, of_gram = np.unique(grams >> bits, return_index=True, return_inverse=True)
    totals = np.add.reduceat(counts, first).astype(np.float64)
    back_off = np.add.reduceat(discount, first) / totals
    return _Level(grams, (counts - discount) / totals[of_gram], contexts, back_off)


def _look_up(keys: IntArray, values: FloatArray, queries: IntArray, missing: float) -> FloatArray:
    """values[i] where keys[i] == query, or `missing` where no key equals the query."""
    at = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    return np.where(keys[at] == queries, values[at], missing)


class KneserNey:
    """An n-gram model of a fixed order over token ids 0 .. vocab_size - 1."""

    def __init__(self, tokens: IntArray, order: int, vocab_size: int) -> None:
        """Count `tokens`, one stream of shape (n,), in n-grams of length 1 .. order."""
        self.order = order
        self.vocab_size = vocab_size
        self._bits = max(1, (vocab_size - 1).bit_length())
        if order < 1 or order * self._bits > 63:
            raise ValueError(f"order {order} does not fit {self._bits}-bit tokens in 63 bits")
        grams, counts = np.unique(self._pack(tokens, order), return_counts=True)
        levels = [_level(grams, counts, self._bits)]
        for shorter in range(order - 1, 0, -1):
            suffixes = grams & ((1 << (shorter * self._bits)) - 1)
            grams, counts = np.unique(suffixes, return_counts=True)
            levels.append(_level(grams, counts, self._bits))
        self._levels = levels[::-1]

    def _pack(self, tokens: IntArray, length: int) -> IntArray:
        """Every run of `length` tokens as one integer, shape (n - length + 1,)."""
        n = len(tokens) - length + 1
        packed = np.zeros(n, dtype=np.int64)
        for i in range(length):
            packed = (packed << self._bits) | tokens[i : i + n]
        return packed

    def probabilities(self, tokens: IntArray) -> FloatArray:
        """p(tokens[i] | tokens before i) for i = 1 .. n - 1, shape (n - 1,)."""
        p = np.full(len(tokens) - 1, 1.0 / self.vocab_size)
        for length, level in enumerate(self._levels, start=1):
            # Near the start of the stream the context is shorter, and the lower order is kept.
            skip = max(0, length - 2)
            grams = self._pack(tokens, length)[1 if length == 1 else 0 :]
            discounted = _look_up(level.grams, level.discounted, grams, 0.0)
            back_off = _look_up(level.contexts, level.back_off, grams >> self._bits, 1.0)
            p[skip:] = discounted + back_off * p[skip:]
        return p
