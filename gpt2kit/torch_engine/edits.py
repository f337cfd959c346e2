"""Edits as functions of tensors, which the model's hooks call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from gpt2kit.config import GPT2Config
from gpt2kit.edit_arrays import Affine, Chunk, affine, listed
from gpt2kit.edits import Edit
from gpt2kit.errors import EditError
from gpt2kit.taps import resolve_one

Function = Callable[[Tensor], Tensor]
TorchEdit = Edit | tuple[str, Function]  # an edit as data, or a tap and what to do to its tensor


def edit_functions(
    edits: Sequence[TorchEdit], config: GPT2Config, chunk: Chunk, dtype: str
) -> dict[str, Function]:
    """Canonical tap -> one function that applies all edits of this tap in the order given.

    Edits between two functions are composed, as they are for an exported graph.
    Raises EditError for an edit that does not fit its tap or `dtype`, TapError for an unknown tap.
    """
    functions: dict[str, list[Function]] = {}
    for is_data, group in groupby(listed(edits), lambda edit: isinstance(edit, Edit)):
        if is_data:
            for tap, arrays in affine(group, config, chunk, dtype).items():
                functions.setdefault(tap, []).append(partial(_apply, arrays))
            continue
        for edit in group:
            tap, function = _pair(edit, config)
            functions.setdefault(tap, []).append(partial(_call, tap, function))
    return {tap: partial(_in_order, steps) for tap, steps in functions.items()}


def _pair(edit: object, config: GPT2Config) -> tuple[str, Function]:
    """A canonical tap and the user's function. Raises EditError for anything else."""
    if not (isinstance(edit, tuple) and len(edit) == 2 and callable(edit[1])):
        raise EditError(f"{edit!r} is neither an Edit nor a (tap, function) pair")
    return resolve_one(edit[0], config.n_layer), edit[1]


def _in_order(steps: Sequence[Function], x: Tensor) -> Tensor:
    """Apply the steps one after another. A loop, because thousands of nested calls overflow."""
    for step in steps:
        x = step(x)
    return x


def _apply(arrays: Affine, x: Tensor) -> Tensor:
    """`keep * x + add`."""
    keep, add = (torch.from_numpy(part).to(x.device, x.dtype) for part in arrays)
    return torch.addcmul(add, keep, x)


def _call(tap: str, function: Function, x: Tensor) -> Tensor:
    """The user's function of x. Raises EditError unless the result has the shape of x."""
    out = function(x)
    if not isinstance(out, Tensor) or out.shape != x.shape:
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise EditError(f"the edit of {tap} must return shape {tuple(x.shape)}, got {found}")
    return out
