"""Runs whose values must be finite: how probes and generation read a model.

`Runner.run` returns what the model computed, infinities and NaN included. Half precision overflows
early, and a statistic of NaN looks like a result. What reads a run for somebody therefore calls
`finite_run` or `require_finite_run`, which refuse such a run and say where it went wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gpt2kit.batch import Ids, prepare
from gpt2kit.checks import LARGEST
from gpt2kit.errors import NonFiniteError
from gpt2kit.readout import Floats, Ints, Readout
from gpt2kit.runner import Run, Runner
from gpt2kit.taps import SCORES, axes_of, residual_stream


def finite_run(
    runner: Runner,
    ids: Ids,
    *,
    taps: str | Iterable[str] = (),
    edits: Sequence[Any] = (),
    cached: bool = False,
    last_only: bool = False,
    top_k: int | None = None,
) -> Run:
    """`Runner.run`, for finite values alone.

    cached: run with a new cache, as generation does; edits then read positions as they do there.
    Raises NonFiniteError if a returned logit, or a returned tap at a token, is NaN or infinite.
    The model is then run again to name the first tap where this happens.
    """
    again = _Again(runner, ids, edits, cached)
    run = again.run(taps, last_only=last_only, top_k=top_k)
    if not has_finite_values(run):
        again.refuse(run)
    return run


def require_finite_run(runner: Runner, run: Run, ids: Ids, edits: Sequence[Any] = ()) -> Run:
    """A run of `ids` with `edits`, from the first position on, that was made in another way.

    Raises NonFiniteError as `finite_run` does.
    """
    if not has_finite_values(run):
        _Again(runner, ids, edits, cached=False).refuse(run)
    return run


def finite_readout(runner: Runner, resid: Floats, **options: Any) -> Readout:
    """`Runner.readout`. Raises NonFiniteError if the logits of a vector overflow."""
    read = runner.readout(resid, **options)
    if not (is_finite(read.log_z) and is_finite(read.entropy)):
        raise _overflow(runner, "the logits of a residual vector are not finite")
    return read


def finite_unembed(runner: Runner, resid: Floats) -> Floats:
    """`Runner.unembed`. Raises NonFiniteError if a logit overflows."""
    logits = runner.unembed(resid)
    require_finite(runner, logits, "a logit of a residual vector")
    return logits


def require_finite(runner: Runner, values: Floats, what: str) -> None:
    """Raise NonFiniteError, which names the values, unless all that a model computed are finite."""
    if not is_finite(values):
        raise _overflow(runner, f"{what} is {_first_value(values)}")


def has_finite_values(run: Run) -> bool:
    """Whether all logits and taps of a run are finite, those of padding included."""
    return is_finite(run.logits) and all(map(is_finite, run.taps.values()))


def is_finite(values: Floats) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(np.isfinite(values).all())


class _Place(NamedTuple):
    """Where a value is not finite: in which tap, or "logits", at which token."""

    name: str
    value: float
    row: int
    position: int


@dataclass(frozen=True)
class _Again:
    """A run that can be made again with other taps. See `finite_run`."""

    runner: Runner
    ids: Ids
    edits: Sequence[Any]
    cached: bool

    def run(
        self, taps: str | Iterable[str], *, last_only: bool = True, top_k: int | None = 0
    ) -> Run:
        options: dict[str, Any] = {"edits": self.edits} if self.edits else {}
        if self.cached:
            batch = prepare(self.ids, None, None, self.runner.config)
            options["cache"] = self.runner.new_cache(len(batch.ids), batch.end)
        return self.runner.run(self.ids, taps=taps, last_only=last_only, top_k=top_k, **options)

    def refuse(self, run: Run) -> None:
        """Raise NonFiniteError, unless only padding holds NaN or infinite values."""
        batch = prepare(self.ids, None, None, self.runner.config)
        found = _first_place(run, batch.lengths)
        if found is None:
            return
        name, value, row, position = self._first_tap(found, batch.lengths)
        layer = f"layer {name.split('.')[1]}, " if name.startswith("blocks.") else ""
        row_too = f", row {row}" if len(batch.ids) > 1 else ""
        what = f"values become {value}, first seen in {name} ({layer}position {position}{row_too})"
        raise _overflow(self.runner, what, edited=bool(self.edits))

    def _first_tap(self, found: _Place, lengths: Ints) -> _Place:
        """The first tap of the forward pass, of those that the engine gives, with such a value.

        The residual stream says in which layer that is; only this layer's taps are then read, as
        the taps of all layers may not fit in memory.
        """
        before = list(self.runner.taps)
        if found.name in before:
            before = before[: before.index(found.name)]
        stream = [tap for tap in before if tap in residual_stream(self.runner.config.n_layer)]
        broken = _first_place(self.run(stream), lengths) if stream else None
        if broken is not None:
            found, before = broken, before[: before.index(broken.name)]
            stream = stream[: stream.index(broken.name)]
        if stream:
            before = before[before.index(stream[-1]) + 1 :]
        return (before and _first_place(self.run(before), lengths)) or found


def _first_place(run: Run, lengths: Ints) -> _Place | None:
    """The first value of a whole run, taps in their order and then logits, that is not finite.

    lengths: (batch,) tokens in each row; what lies after them is undefined.
    """
    for name, values in (*run.taps.items(), ("logits", run.logits)):
        if not is_finite(values) and (found := _place(name, values, lengths)):
            return found
    return None


def _place(name: str, values: Floats, lengths: Ints) -> _Place | None:
    """The first token at which a tap or the logits are not finite, or None if there is none."""
    axes = ("batch", "pos", "vocab") if name == "logits" else axes_of(name)
    wrong = ~np.isfinite(values)
    if axes == SCORES:  # the mask discards scores of keys later than their query
        wrong &= np.tri(*values.shape[2:], dtype=np.bool_)
    at = axes.index("query" if axes == SCORES else "pos")
    others = tuple(dim for dim in range(1, len(axes)) if dim != at)
    is_token = np.arange(values.shape[at]) < lengths[:, None]  # (batch, pos)
    places = np.argwhere((wrong.any(others) & is_token).T)
    if not len(places):
        return None
    column, row = map(int, places[0])
    value = np.take(values[row], column, axis=at - 1)
    of_last = name == "logits" and values.shape[1] == 1  # the logits of the last token alone
    return _Place(name, _first_value(value), row, int(lengths[row]) - 1 if of_last else column)


def _first_value(values: Floats) -> float:
    """The first value that is NaN or infinite."""
    return float(values[~np.isfinite(values)].flat[0])


def _overflow(runner: Runner, what: str, *, edited: bool = False) -> NonFiniteError:
    """The error for a value that is not finite, and what to do."""
    dtype = runner.dtype
    if dtype in ("float16", "bfloat16"):
        advice = "try --dtype float32 (for an ONNX file, in its export)"
        advice += " or smaller edits" if edited else ""
    elif edited:
        advice = "make the edits smaller"
    elif dtype == "float32":
        advice = "its weights are too large; try --dtype float64, on torch"
    else:
        advice = "its weights are too large"
    return NonFiniteError(
        f"{what}: {runner.source} in {dtype} holds numbers up to {LARGEST[dtype]:.6g}; {advice}"
    )
