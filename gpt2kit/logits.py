"""Functions of logits: log-probabilities, and the k largest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """Logits (…, vocab) -> log-probabilities (…, vocab), natural, in the dtype given."""
    shifted = logits - logits.max(-1, keepdims=True)
    out: NDArray[np.floating] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return out


def largest(logits: NDArray[np.floating], k: int) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """The k largest of logits (…, vocab), largest first, ties by id; and their ids: both (…, k).

    NaN counts as larger than any number, so that it shows up in the result.
    """
    if k == 0:
        return logits[..., :0], np.zeros((*logits.shape[:-1], 0), np.int64)
    rows = logits.reshape(-1, logits.shape[-1])
    if k == 1:
        ids = rows.argmax(-1)[:, None]
    elif k < rows.shape[1]:
        ids = np.sort(np.argpartition(rows, -k)[:, -k:])
    else:
        ids = np.broadcast_to(np.arange(k), rows.shape)
    values = rows[np.arange(len(rows))[:, None], ids]
    if k > 1:
        order = np.argsort(-values, kind="stable")
        values, ids = (np.take_along_axis(x, order, -1) for x in (values, ids))
    shape = (*logits.shape[:-1], k)
    return values.reshape(shape), ids.reshape(shape)
