"""An `Edit` as arrays for one run: the pair (keep, add) that both engines apply.

An edit names places by axis: `pos=[1, 3], head=0`. An engine needs two arrays with all axes of the
tap that broadcast against its value, with keep 1 and add 0 wherever the edit changes nothing. An
example: write 9 into head 0 at positions 1 and 3, in a run of 4 tokens of a model with 2 heads.

>>> config = GPT2Config(n_embd=4, n_head=2, n_layer=1)
>>> edit = Edit.replace("blocks.0.z", [9.0, 9.0], pos=[1, 3], head=0)
>>> whole = Chunk(starts=np.array([0]), pos=4, keys=4)
>>> keep, add = affine([edit], config, whole)["blocks.0.z"]
>>> keep.shape, add.shape  # batch pos head d_head; 1 where all entries are alike
((1, 4, 2, 1), (1, 4, 2, 2))
>>> keep[0, :, :, 0]  # pos head
array([[1., 1.],
       [0., 1.],
       [1., 1.],
       [0., 1.]])
>>> add[0, :, :, 0]
array([[0., 0.],
       [9., 0.],
       [0., 0.],
       [9., 0.]])

Under a cache a run sees only some positions, and the edit's positions stay absolute. A run of the
last 2 of these tokens gets the last 2 rows:

>>> part = Chunk(starts=np.array([2]), pos=2, keys=4, cached=True)
>>> keep, add = affine([edit], config, part)["blocks.0.z"]
>>> add[0, :, :, 0]
array([[0., 0.],
       [9., 0.]])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2kit.checks import LARGEST, as_int64, short
from gpt2kit.config import GPT2Config
from gpt2kit.edits import Edit, as_written
from gpt2kit.errors import EditError
from gpt2kit.taps import axes_of, resolve

_CHUNKED = ("pos", "query")  # axes of which one run sees only a chunk
_POSITIONS = (*_CHUNKED, "key")

Affine = tuple[NDArray[np.floating], NDArray[np.floating]]


@dataclass(frozen=True)
class Chunk:
    """The part of its sequences that one run sees: the sizes of the axes that vary between runs.

    starts: (batch,) absolute position of the first token of each row. pos: tokens in this run.
    keys: keys attended to. cached: whether edits may name positions beyond this chunk.
    """

    starts: NDArray[np.int64]
    pos: int
    keys: int
    cached: bool = False

    def size(self, axis: str, config: GPT2Config) -> int:
        """Size of a tap's axis in this run."""
        return {
            "batch": len(self.starts),
            "pos": self.pos,
            "query": self.pos,
            "key": self.keys,
            "head": config.n_head,
            "d_model": config.n_embd,
            "d_head": config.d_head,
            "d_mlp": config.d_mlp,
            "one": 1,
        }[axis]


def listed(edits: Any) -> list[Any]:
    """Edits as a list. Raises EditError for a single edit, a text, or anything else."""
    if isinstance(edits, Edit | str) or not isinstance(edits, Iterable):
        raise EditError(f"edits must be a list of edits, got {edits!r}; put [ ] around it")
    given = list(edits)
    for edit in given:
        if isinstance(edit, str):
            raise EditError(f"{edit!r} is text; Edit.parse makes an Edit of it")
    return given


def affine(
    edits: Iterable[Edit], config: GPT2Config, chunk: Chunk, dtype: str = "float32"
) -> dict[str, Affine]:
    """Canonical tap -> (keep, add), each with all axes of the tap, sizes 1 or the chunk's own.

    Several edits of one tap are composed in order, in float64: `k2 (k1 x + a1) + a2`.
    dtype: of the computation. Raises EditError when an edit does not broadcast, or when `dtype`
    cannot hold the numbers that the edits come to; TapError for an unknown tap.
    """
    out: dict[str, Affine] = {}
    for edit in listed(edits):
        for tap in resolve(edit.tap, config.n_layer):
            new = _expand(edit, tap, config, chunk)
            out[tap] = _composed(out[tap], new) if tap in out else new
    for tap, arrays in out.items():
        _check_range(tap, arrays, dtype)
    return out


def _composed(first: Affine, second: Affine) -> Affine:
    """One edit after another: `k2 (k1 x + a1) + a2`, where a k2 of 0 forgets the first one."""
    (k1, a1), (k2, a2) = ([x.astype(np.float64) for x in pair] for pair in (first, second))
    with np.errstate(over="ignore", invalid="ignore"):  # infinite products are refused later
        keep, add = (np.where(k2 == 0, 0, k2 * x) for x in (k1, a1))
        return keep, add + a2


def _check_range(tap: str, arrays: Affine, dtype: str) -> None:
    """Raise EditError unless the dtype of a tap's value can hold these arrays."""
    if tap.endswith(".attn_scores"):
        dtype = dtype if dtype == "float64" else "float32"  # the model computes scores so
    most = max(float(np.abs(x).max(initial=0)) for x in arrays)
    if not most <= LARGEST[dtype]:
        advice = " or try --dtype float32" if dtype == "float16" else ""
        raise EditError(
            f"the edits of {tap} come to {most:g}, but {dtype} holds numbers up to "
            f"{LARGEST[dtype]:.6g}; make them smaller{advice}"
        )


@dataclass(frozen=True)
class _Target:
    """What one edit selects of one tap in one run.

    axes: the tap's. sizes: of each axis in this run. chosen: the indices that `Edit.at` selects of
    an axis, for the axes that it names; absolute under a cache where the axis is one of positions.
    """

    edit: Edit
    axes: tuple[str, ...]
    sizes: Mapping[str, int]
    chosen: Mapping[str, NDArray[np.int64]]
    chunk: Chunk

    def selected(self, axis: str) -> int:
        """Number of places of an axis that the edit selects."""
        return len(self.chosen[axis]) if axis in self.chosen else self.sizes[axis]

    def spans_sequence(self, axis: str) -> bool:
        """Whether an array along this axis covers the whole sequence, whatever the chunk is."""
        return self.chunk.cached and axis in _POSITIONS and axis not in self.chosen


def _expand(edit: Edit, tap: str, config: GPT2Config, chunk: Chunk) -> Affine:
    """One edit of one tap as arrays with all axes of the tap, for this chunk."""
    target = _target(edit, tap, config, chunk)
    keep, add = (_block(target, x) for x in (edit.keep, edit.add))
    selected = np.ones((1,) * len(target.axes), bool)
    for dim, axis in enumerate(target.axes):
        index = target.chosen.get(axis)
        if index is None:
            spans = [x.shape[dim] for x in (keep, add) if x.shape[dim] > 1]
            if not spans or axis not in _POSITIONS:
                continue
            index = np.arange(min(spans))  # an array over positions starts at position 0
        where = _lookup(index, axis, target.sizes[axis], chunk)  # (1 or batch, size)
        keep, add = (_gather(x, where, dim) for x in (keep, add))
        selected = selected & _along(where >= 0, dim, len(target.axes))
    if tap.endswith("_scale") and (selected & (keep == 0) & (add == 0)).any():
        raise EditError(
            f"{as_written(edit)}: a layer norm divides by {tap}, which cannot be 0; put another "
            "number there"
        )
    return np.where(selected, keep, 1.0), np.where(selected, add, 0.0)


def _target(edit: Edit, tap: str, config: GPT2Config, chunk: Chunk) -> _Target:
    axes = axes_of(tap)
    unknown = set(edit.at) - set(axes)
    if unknown:
        raise EditError(
            f"{as_written(edit)}: {tap} has no axis {min(unknown, key=str)!r}; its axes are {axes}"
        )
    sizes = {axis: chunk.size(axis, config) for axis in axes}
    chosen = {
        axis: _indices(edit, axis, sizes[axis], config, chunk) for axis in axes if axis in edit.at
    }
    return _Target(edit, axes, sizes, chosen, chunk)


def _indices(
    edit: Edit, axis: str, size: int, config: GPT2Config, chunk: Chunk
) -> NDArray[np.int64]:
    """The indices that `at[axis]` selects; absolute under a cache if the axis is of positions."""
    where = edit.at[axis]
    absolute = chunk.cached and axis in _POSITIONS
    end = config.n_positions if absolute else size
    given = _slice_bounds(edit, axis, where) if isinstance(where, slice) else _list(edit, axis)
    if absolute and any(place < 0 for place in given):
        raise EditError(
            f"{as_written(edit)}: a negative {axis} is ambiguous under a cache, as in generation; "
            "count from 0"
        )
    if isinstance(where, slice):
        return np.array(range(*where.indices(end)), np.int64)
    given = np.asarray(given)
    if ((given < -end) | (given >= end)).any():
        raise EditError(
            f"{as_written(edit)}: {axis} = {short(where)} is out of range; the size is {end}"
        )
    return given % end


def _slice_bounds(edit: Edit, axis: str, where: slice) -> list[int]:
    """Start and stop of a slice, if given. Raises EditError unless its parts are integers."""
    parts = [x for x in (where.start, where.stop, where.step) if x is not None]
    if not all(isinstance(x, int | np.integer) for x in parts):
        raise EditError(f"{as_written(edit)}: {axis} = {where} must be a slice of integers")
    if where.step == 0:
        raise EditError(f"{as_written(edit)}: a range of {axis} with steps of 0 goes nowhere")
    return [int(x) for x in (where.start, where.stop) if x is not None]


def _list(edit: Edit, axis: str) -> NDArray[np.int64]:
    """An index or a list of indices. Raises EditError for anything else."""
    try:
        index = np.atleast_1d(np.asarray(edit.at[axis]))
    except ValueError:  # lists of unequal length
        index = np.zeros((0, 0))
    if index.ndim > 1 or (index.size and index.dtype.kind not in "iu"):
        raise EditError(
            f"{as_written(edit)}: {axis} must be an integer, a list of integers, or a slice "
            "(np.flatnonzero makes a list of a mask)"
        )
    return as_int64(index)


def _block(target: _Target, value: ArrayLike) -> NDArray[np.floating]:
    """`value` with all axes of the tap, checked against the part that the edit selects."""
    array, edit = _numbers(target.edit, value), target.edit
    dropped = [
        i for i, axis in enumerate(target.axes) if isinstance(edit.at.get(axis), int | np.integer)
    ]
    rank = len(target.axes) - len(dropped)
    if array.ndim <= rank:
        full = np.expand_dims(array.reshape((1,) * (rank - array.ndim) + array.shape), dropped)
        sizes = zip(target.axes, full.shape, strict=True)
        if all(_fits(target, axis, size) for axis, size in sizes):
            return full
    part = ", ".join(
        f"{axis} {target.selected(axis)}" for i, axis in enumerate(target.axes) if i not in dropped
    )
    raise EditError(f"{as_written(edit)}: shape {array.shape} does not broadcast against ({part})")


def _fits(target: _Target, axis: str, size: int) -> bool:
    """Whether an array of this size along an axis broadcasts against the selected part."""
    if size == 1:
        return True
    if target.spans_sequence(axis):
        return size >= target.chunk.keys
    return size == target.selected(axis)


def _numbers(edit: Edit, value: ArrayLike) -> NDArray[np.floating]:
    """`value` as an array of floats. Raises EditError unless float32 can hold its numbers."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise EditError(f"{as_written(edit)}: keep and add must be numbers or arrays") from error
    if array.dtype.kind not in "fiub":
        raise EditError(f"{as_written(edit)}: keep and add must be numbers, got {array.dtype}")
    if not (np.abs(array) <= np.finfo(np.float32).max).all():
        raise EditError(
            f"{as_written(edit)}: keep and add must be finite numbers that float32 can hold"
        )
    return array.astype(np.result_type(array.dtype, np.float32))


def _lookup(index: NDArray[np.int64], axis: str, size: int, chunk: Chunk) -> NDArray[np.int64]:
    """(1 or batch, size): for each place of the axis in this chunk, its place in `index`, or -1."""
    here = np.arange(size)[None]
    if axis in _CHUNKED:
        starts = chunk.starts[:1] if (chunk.starts == chunk.starts[0]).all() else chunk.starts
        here = starts[:, None] + here
    where = np.full(int(max(here.max(), index.max(initial=0))) + 1, -1)
    where[index] = np.arange(len(index))
    return where[here]


def _along(mask: NDArray[np.bool_], dim: int, rank: int) -> NDArray[np.bool_]:
    """(1 or batch, size) with all axes of a tap: rows along axis 0, places along axis `dim`."""
    shape = [1] * rank
    shape[0] = len(mask)
    shape[dim] = mask.shape[1]
    return mask.reshape(shape)


def _gather(x: NDArray[np.floating], where: NDArray[np.int64], dim: int) -> NDArray[np.floating]:
    """Take `where` along `dim` of x, row by row; a size of 1 stays, since it serves every place."""
    if x.shape[dim] == 1:
        return x
    if x.shape[dim] == 0:  # nothing is selected, so any value will do
        return np.zeros((*x.shape[:dim], 1, *x.shape[dim + 1 :]))
    if dim == 0 or len(where) == 1:
        taken: NDArray[np.floating] = np.take(x, np.maximum(where[0], 0), axis=dim)
        return taken
    x = np.broadcast_to(x, (len(where), *x.shape[1:]))
    rows = zip(x, where, strict=True)
    return np.stack([np.take(row, np.maximum(w, 0), axis=dim - 1) for row, w in rows])
