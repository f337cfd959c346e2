"""What a run is cut into, and how its results are put together: tokens, and the keys they see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit.batch import Batch
from gpt2kit.readout import Floats
from gpt2kit.taps import SCORES, axes_of


def cut(batch: Batch, start: int, size: int) -> Batch:
    """Columns of a batch as a run of their own. A row that has ended runs its last token once more,
    at the same place, which changes nothing."""
    rows, columns = batch.ids.shape
    if size == 1:
        place = np.minimum(start, batch.lengths - 1)
        ids = batch.ids[np.arange(rows), place][:, None]
        return Batch(ids, np.ones_like(batch.lengths), batch.starts + place)
    if size == columns:
        return batch
    ids = batch.ids[:, start : start + size]
    return Batch(ids, np.array([ids.shape[1]]), batch.starts + start)


def joined(parts: Sequence[NDArray[Any]], name: str, end: int) -> NDArray[Any]:
    """Columns that were run one by one, side by side; keys that were yet to come are 0."""
    if name == "logits" or axes_of(name) != SCORES:
        return np.concatenate(parts, axis=1)
    wide = [np.pad(x, [(0, 0)] * 3 + [(0, end - x.shape[-1])]) for x in parts]
    return np.concatenate(wide, axis=2)


def by_slot(x: Floats, slots: NDArray[np.bool_], default: float) -> Floats:
    """The key axis, absolute positions, as the cache has it: with gaps where padding ran."""
    if x.shape[-1] == 1 or slots.all():
        return x
    places = np.maximum(slots.cumsum(1) - 1, 0)  # (batch, slots)
    rows = np.broadcast_to(x, (len(slots), *x.shape[1:]))
    spread = np.stack([row[..., place] for row, place in zip(rows, places, strict=True)])
    out: Floats = np.where(slots[:, None, None, :], spread, default)
    return out


def absolute_keys(x: Floats, tap: str, slots: NDArray[np.bool_], end: int) -> Floats:
    """Close the gaps that padding left along the key axis, so that keys are absolute positions."""
    if axes_of(tap)[-1] != "key" or slots[:, :end].all():
        return x[..., :end] if axes_of(tap)[-1] == "key" else x
    out = np.zeros((*x.shape[:-1], end), x.dtype)
    for row, held in enumerate(slots):
        out[row, ..., : held.sum()] = x[row][..., held]
    return out
