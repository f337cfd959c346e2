"""The key axis of a growing cache: from absolute positions to slots of the cache, and back.

A portable graph appends to its cache all columns of a run, padding included. So the slots of a
short row have gaps where its padding ran, while edits and taps speak of absolute positions.
`slots` is (batch, slots) bool: which slots hold a token of that row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt2kit.readout import Floats
from gpt2kit.taps import axes_of


def spread_keys(x: Floats, slots: NDArray[np.bool_], *, fill: float) -> Floats:
    """Move the last axis from absolute positions to slots; gaps become `fill`."""
    if x.shape[-1] == 1 or slots.all():
        return x
    places = np.maximum(slots.cumsum(1) - 1, 0)  # (batch, slots) the position in each slot
    rows = np.broadcast_to(x, (len(slots), *x.shape[1:]))
    spread = np.stack([row[..., place] for row, place in zip(rows, places, strict=True)])
    out: Floats = np.where(slots[:, None, None, :], spread, fill)
    return out


def close_gaps(x: Floats, tap: str, slots: NDArray[np.bool_], end: int) -> Floats:
    """Move the key axis of a tap, if it has one, from slots to absolute positions 0 to end - 1."""
    if axes_of(tap)[-1] != "key":
        return x
    if slots[:, :end].all():
        return x[..., :end]
    out = np.zeros((*x.shape[:-1], end), x.dtype)
    for row, held in enumerate(slots):
        out[row, ..., : held.sum()] = x[row][..., held]
    return out
