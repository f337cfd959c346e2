"""An `Edit` as arrays for one run: the pair (keep, add) that both engines apply."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2kit.config import GPT2Config
from gpt2kit.edits import Edit, shown
from gpt2kit.errors import EditError
from gpt2kit.taps import axes_of, resolve

_CHUNKED = ("pos", "query")  # axes that one run sees only a chunk of
_POSITIONS = (*_CHUNKED, "key")


@dataclass(frozen=True)
class Chunk:
    """What part of its sequences one run sees: the sizes of the axes that vary from run to run.

    starts: (batch,) absolute position of the first token of each row. keys: keys attended to.
    cached: whether an edit may speak of positions beyond this chunk.
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
    """Edits as a list. Raises EditError for what is none, such as text or one edit by itself."""
    if isinstance(edits, Edit | str) or not isinstance(edits, Iterable):
        raise EditError(f"edits must be a list of edits, got {edits!r}; put [ ] around it")
    given = list(edits)
    for edit in given:
        if isinstance(edit, str):
            raise EditError(f"{edit!r} is text; Edit.parse makes an Edit of it")
    return given


Affine = tuple[NDArray[np.floating], NDArray[np.floating]]


def affine(edits: Iterable[Edit], config: GPT2Config, chunk: Chunk) -> dict[str, Affine]:
    """Canonical tap -> (keep, add), each with all axes of the tap, sizes 1 or the chunk's own.

    Several edits of one tap are composed in order: `k2 (k1 x + a1) + a2`. Raises EditError when an
    edit does not broadcast and TapError for an unknown tap.
    """
    out: dict[str, Affine] = {}
    for edit in listed(edits):
        for tap in resolve(edit.tap, config.n_layer):
            keep, add = _expand(edit, tap, config, chunk)
            if tap in out:
                before_keep, before_add = out[tap]
                keep, add = keep * before_keep, keep * before_add + add
            out[tap] = keep, add
    return out


def _expand(edit: Edit, tap: str, config: GPT2Config, chunk: Chunk) -> Affine:
    """One edit of one tap as full-rank arrays over the chunk."""
    axes = axes_of(tap)
    unknown = set(edit.at) - set(axes)
    if unknown:
        raise EditError(f"{shown(edit)}: {tap} has no axis {min(unknown)!r}; its axes are {axes}")
    sizes = {axis: chunk.size(axis, config) for axis in axes}
    chosen = {
        axis: _indices(edit, axis, sizes[axis], config, chunk) for axis in axes if axis in edit.at
    }
    keep, add = (_block(edit, x, axes, sizes, chosen, chunk) for x in (edit.keep, edit.add))
    hit = np.ones((1,) * len(axes), bool)
    for dim, axis in enumerate(axes):
        spans = [x.shape[dim] for x in (keep, add) if x.shape[dim] > 1]
        if axis in chosen:
            index = chosen[axis]
        elif axis in _POSITIONS and spans:
            index = np.arange(min(spans))  # an array over positions starts at position 0
        else:
            continue
        where = _lookup(index, axis, sizes[axis], chunk)  # (1 or batch, size), -1 = not selected
        keep, add = (_gather(x, where, dim) for x in (keep, add))
        shape = [1] * len(axes)
        shape[0], shape[dim] = (where.shape[0], shape[dim]) if dim else (1, 1)
        shape[dim] = where.shape[1]
        hit = hit & (where >= 0).reshape(shape)
    if tap.endswith("_scale") and (hit & (keep == 0) & (add == 0)).any():
        raise EditError(
            f"{shown(edit)}: a layer norm divides by {tap}, which cannot be 0; put another "
            "number there"
        )
    return np.where(hit, keep, 1.0), np.where(hit, add, 0.0)


def _indices(
    edit: Edit, axis: str, size: int, config: GPT2Config, chunk: Chunk
) -> NDArray[np.int64]:
    """The indices that `at[axis]` selects, absolute where the axis is of positions."""
    where = edit.at[axis]
    absolute = chunk.cached and axis in _POSITIONS
    end = config.n_positions if absolute else size
    if isinstance(where, slice):
        if where.step == 0:
            raise EditError(f"{shown(edit)}: a range of {axis} with steps of 0 goes nowhere")
        given = np.array([x for x in (where.start, where.stop) if x is not None], np.int64)
        index = np.arange(*where.indices(end))
    else:
        given = index = np.atleast_1d(np.asarray(where))
        if index.ndim > 1 or (index.size and index.dtype.kind not in "iu"):
            raise EditError(
                f"{shown(edit)}: {axis} must be a whole number, a list of them, or a slice "
                "(np.flatnonzero makes a list of a mask)"
            )
        if ((index < -end) | (index >= end)).any():
            raise EditError(f"{shown(edit)}: {axis} = {where} is out of range; the size is {end}")
    if absolute and (given < 0).any():
        raise EditError(
            f"{shown(edit)}: a negative {axis} is ambiguous under a cache, as in generation; "
            "count from 0"
        )
    return index.astype(np.int64) % end


def _block(
    edit: Edit,
    value: ArrayLike,
    axes: tuple[str, ...],
    sizes: Mapping[str, int],
    chosen: Mapping[str, NDArray[np.int64]],
    chunk: Chunk,
) -> NDArray[np.floating]:
    """`value` with all axes of the tap, checked against the selected part of it."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise EditError(f"{shown(edit)}: keep and add must be numbers, got {array.dtype}")
    if not (np.abs(array) <= np.finfo(np.float32).max).all():
        raise EditError(f"{shown(edit)}: keep and add must be finite numbers that float32 can hold")
    array = array.astype(np.result_type(array.dtype, np.float32))
    dropped = [i for i, axis in enumerate(axes) if isinstance(edit.at.get(axis), int | np.integer)]
    rank = len(axes) - len(dropped)
    if array.ndim <= rank:
        full = np.expand_dims(array.reshape((1,) * (rank - array.ndim) + array.shape), dropped)
        want = [len(chosen[axis]) if axis in chosen else sizes[axis] for axis in axes]
        # Under a cache an array over positions is of the whole sequence, whatever this chunk is.
        free = [chunk.cached and axis in _POSITIONS and axis not in chosen for axis in axes]
        fits = (
            have == 1 or (have >= chunk.keys if whole else have == size)
            for have, size, whole in zip(full.shape, want, free, strict=True)
        )
        if all(fits):
            return full
    block = ", ".join(
        f"{axis} {len(chosen[axis]) if axis in chosen else sizes[axis]}"
        for i, axis in enumerate(axes)
        if i not in dropped
    )
    raise EditError(f"{shown(edit)}: shape {array.shape} does not broadcast against ({block})")


def _lookup(index: NDArray[np.int64], axis: str, size: int, chunk: Chunk) -> NDArray[np.int64]:
    """(1 or batch, size): for each place of the axis in this chunk, its place in `index`, or -1."""
    here = np.arange(size)[None]
    if axis in _CHUNKED:
        starts = chunk.starts[:1] if (chunk.starts == chunk.starts[0]).all() else chunk.starts
        here = starts[:, None] + here
    where = np.full(int(max(here.max(), index.max(initial=0))) + 1, -1)
    where[index] = np.arange(len(index))
    return where[here]


def _gather(x: NDArray[np.floating], where: NDArray[np.int64], dim: int) -> NDArray[np.floating]:
    """Take `where` along `dim` of x, row by row; a size of 1 stays, as it serves every place."""
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
