"""Random tokens, repeated once: the first occurrence of a token predicts the next token."""

from __future__ import annotations

import numpy as np

from gpt2kit.checks import check_integer
from gpt2kit.errors import InputError
from gpt2kit.readout import Ints
from probes.tasks.sampling_words import seeded


def repeated_tokens(
    vocab_size: int, batch: int, length: int, *, seed: int = 0, bos: int | None = None
) -> Ints:
    """(batch, 2 * length) random tokens, each row twice; with a BOS, (batch, 1 + 2 * length).

    The tokens of a row are all different, and none is the BOS, so that each has exactly one earlier
    occurrence when it comes again. Raises InputError if the vocabulary has too few tokens.
    """
    random = seeded(batch, seed, "batch")
    excluded = [] if bos is None else [check_integer("bos", bos, 0)]
    allowed = np.setdiff1d(np.arange(check_integer("vocab_size", vocab_size)), excluded)
    if not 1 <= check_integer("length", length, low=None) <= len(allowed):
        raise InputError(
            f"length = {length} must be from 1 to {len(allowed)}, the different tokens"
        )
    blocks = np.stack([random.choice(allowed, length, replace=False) for _ in range(batch)])
    rows = np.tile(blocks, 2).astype(np.int64)
    return rows if bos is None else np.insert(rows, 0, bos, axis=1)
