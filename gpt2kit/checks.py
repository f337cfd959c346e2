"""Checks of single arguments: each returns the value, or raises an InputError that names it."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt2kit.errors import InputError


def check_integer(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """An integer from `low` to `high` (both included; no upper bound by default).

    Raises InputError unless `value` is an int or a numpy integer in that range; booleans and
    floats are refused, even 3.0.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise InputError(f"{name} = {value!r} must be an integer, got {type(value).__name__}")
    if value < low or (high is not None and value > high):
        span = f"from {low} to {high}" if high is not None else f"at least {low}"
        raise InputError(f"{name} = {value} must be {span}")
    return int(value)


def check_top_k(top_k: Any, vocab_size: int, low: int = 1, name: str = "top_k") -> int:
    """How many of the largest logits to keep: an integer from `low` to the vocabulary size."""
    if isinstance(top_k, int | np.integer) and not low <= top_k <= vocab_size:
        raise InputError(
            f"{name} = {top_k} must be from {low} to {vocab_size}, the size of the vocabulary"
        )
    return check_integer(name, top_k, low, vocab_size)


def check_choice(name: str, value: Any, choices: Any) -> str:
    """One of a few words. Raises InputError, which lists them, for anything else."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} = {value!r} is not one of {', '.join(choices)}")
    return value
