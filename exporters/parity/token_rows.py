"""Outputs reduced to what belongs to tokens, so that both engines can be compared value by value.

Padding, cache slots without a token and keys later than their query are undefined or differ
between engines by design; none of them is compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from exporters.engine.caches import InPlaceCache, OnnxCache
from exporters.engine.runner import OnnxRunner
from exporters.file.names import present_names
from gpt2kit.batch import KVCache
from gpt2kit.readout import Floats, Ints
from gpt2kit.runner import Run
from gpt2kit.taps import SCORES, axes_of
from gpt2kit.torch_engine.cache import TorchCache

TokenRows = dict[str, list[Floats]]  # "logits", "present.3.key" or a tap -> one array per row


def token_rows(run: Run, starts: Ints, onnx: OnnxRunner) -> TokenRows:
    """The outputs of one run of either engine. starts: (batch,) positions cached before it."""
    assert run.cache is not None
    ends = run.cache.lengths
    spans = [(int(end - start), int(end)) for start, end in zip(starts, ends, strict=True)]
    out = {"logits": [x[:pos] for x, (pos, _) in zip(run.logits, spans, strict=True)]}
    for name, x in run.taps.items():
        axes = row_axes(name)
        out[name] = [_first(row, axes, *span) for row, span in zip(x, spans, strict=True)]
    return out | dict(_cached_rows(run.cache, onnx))


def row_axes(name: str) -> tuple[str, ...]:
    """Axes of one row of an output of the graph."""
    if name == "logits":
        return ("pos", "vocab")
    return ("head", "key", "d_head") if name.startswith("present.") else axes_of(name)[1:]


def select_tokens(
    row: Floats, axes: tuple[str, ...], valid: NDArray[np.bool_], held: NDArray[np.bool_]
) -> Floats:
    """The entries of one row that belong to tokens.

    valid: (pos,) which columns of this run are tokens. held: (slots,) which cache slots are.
    """
    for dim, axis in enumerate(axes):
        if axis in ("pos", "query"):
            row = np.compress(valid, row, axis=dim)
        elif axis == "key":
            row = np.compress(held, row, axis=dim)
    return _mask_later_keys(row, axes)


def _first(row: Floats, axes: tuple[str, ...], pos: int, keys: int) -> Floats:
    """The first `pos` positions and `keys` keys of one row: the rest is padding on the right."""
    limits = {"pos": pos, "query": pos, "key": keys}
    return _mask_later_keys(row[tuple(slice(limits.get(axis)) for axis in axes)], axes)


def _mask_later_keys(row: Floats, axes: tuple[str, ...]) -> Floats:
    """Set scores of keys later than their query to 0.

    The causal mask discards them, and where one token is run at a time they do not exist.
    """
    if axes != SCORES[1:]:
        return row
    pos, keys = row.shape[-2:]
    return np.where(np.tri(pos, keys, keys - pos, dtype=bool), row, 0)


def _cached_rows(cache: KVCache, onnx: OnnxRunner) -> Iterator[tuple[str, list[Floats]]]:
    """The name of each cached tensor and, per row, its value (head, pos, d_head)."""
    if isinstance(cache, TorchCache):
        for layer, pair in enumerate(zip(cache.keys, cache.values, strict=True)):
            for part, x in zip(("key", "value"), pair, strict=True):
                rows = zip(x, cache.lengths, strict=True)
                yield f"present.{layer}.{part}", [row[:, : int(n)].numpy() for row, n in rows]
    elif isinstance(cache, OnnxCache | InPlaceCache):
        names = present_names(len(cache.past) // 2)
        for name, value in zip(names, cache.past, strict=True):
            rows = zip(onnx.read(value), _held_slots(cache), strict=True)
            yield name, [row[:, held] for row, held in rows]


def _held_slots(cache: OnnxCache | InPlaceCache) -> NDArray[np.bool_]:
    """(batch, slots) which slots of the cache hold a token."""
    if isinstance(cache, OnnxCache):
        return cache.slots
    held: NDArray[np.bool_] = np.arange(cache.max_length) < cache.lengths[:, None]
    return held
