"""Checks of single arguments: each returns the value, or raises an InputError that names it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit.defaults import Default
from gpt2kit.errors import InputError

# The largest number of each dtype; numpy has no bfloat16.
LARGEST = {
    "float16": 65504.0,
    "bfloat16": float(2.0**128 - 2.0**120),
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
}


def check_integer(name: str, value: Any, low: int | None = 1, high: int | None = None) -> int:
    """Return an integer from `low` to `high`, both included; None is no bound.

    A `Default` above `high` becomes `high`. Raises InputError unless `value` is an int or a numpy
    integer in that range. Booleans and floats are refused, even 3.0.
    """
    if isinstance(value, Default) and high is not None and value > high:
        value = high
    if not _is_integer(value):
        raise InputError(f"{name} = {short(value)} must be an integer, got {type(value).__name__}")
    if (low is not None and value < low) or (high is not None and value > high):
        span = f"be from {low} to {high}" if high is not None else f"be at least {low}"
        must = "not be negative" if (low, high) == (0, None) else span
        raise InputError(f"{name} = {short(value)} must {must}")
    return int(value)


def check_top_k(top_k: Any, vocab_size: int, low: int = 1, name: str = "top_k") -> int:
    """Return how many of the largest logits to keep: `low` to the vocabulary size."""
    given = _is_integer(top_k) and not isinstance(top_k, Default)
    if given and not low <= top_k <= vocab_size:
        span = f"{low} to {vocab_size}, the size of the vocabulary"
        raise InputError(f"{name} = {short(top_k)} must be from {span}")
    return check_integer(name, top_k, low, vocab_size)


def check_number(name: str, value: Any) -> float:
    """Return an int or a float. Raises InputError for booleans, text and everything else."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        raise InputError(f"{name} = {short(value)} must be a number, got {type(value).__name__}")
    if isinstance(value, np.complexfloating):
        raise InputError(f"{name} = {value} must be a real number")
    return float(value)


def check_flag(name: str, value: Any) -> bool:
    """Return True or False. Raises InputError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} = {short(value)} must be True or False")
    return bool(value)


def check_text(name: str, value: Any) -> str:
    """Return a text. Raises InputError for anything else."""
    if not isinstance(value, str):
        raise InputError(f"{name} = {short(value)} must be text, got {type(value).__name__}")
    return value


def check_function(name: str, value: Any) -> None:
    """Raise InputError unless `value` is None or can be called."""
    if value is not None and not callable(value):
        raise InputError(f"{name} = {short(value)} must be a function, or None")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return one of a few words. Raises InputError, which lists them, for anything else."""
    words = tuple(choices)
    if not isinstance(value, str) or value not in words:
        raise InputError(f"{name} = {short(value)} is not one of {', '.join(words)}")
    return value


def check_integers(name: str, value: Any) -> NDArray[np.int64]:
    """Return an integer, or any array or nested list of integers, as an int64 array.

    Raises InputError for floats (even whole ones), booleans, text, None, and uneven lists.
    """
    array = _plain_array(name, value, "integers")
    if array.size and array.dtype.kind not in "iu":
        raise InputError(f"{name} must hold integers, got {_kind(array, value)}")
    return as_int64(array)


def as_int64(array: NDArray[Any]) -> NDArray[np.int64]:
    """An array of integers as int64.

    Unsigned integers beyond int64 become its largest, which is outside of every axis and
    vocabulary; plain conversion would make them small negative numbers.
    """
    if array.dtype == np.uint64:
        array = np.minimum(array, np.uint64(np.iinfo(np.int64).max))
    return array.astype(np.int64)


def check_numbers(name: str, value: Any) -> NDArray[np.floating]:
    """Return any array or nested list of real numbers as a float array.

    An array of floats is returned as it is, not copied. Raises InputError for anything else that
    does not hold numbers.
    """
    array = _plain_array(name, value, "numbers")
    if array.dtype.kind == "f":
        return array
    if array.dtype.kind not in "iu":
        raise InputError(f"{name} must hold numbers, got {_kind(array, value)}")
    return array.astype(np.float32)


def check_finite(name: str, values: NDArray[np.floating], dtype: str) -> None:
    """Raise InputError, which names the first wrong value, unless `dtype` can hold all values."""
    limit = LARGEST[dtype]
    if not values.size or (-limit <= float(values.min()) and float(values.max()) <= limit):
        return  # a NaN would come through `min`, and compares as False
    place = np.argwhere(~(np.abs(values.astype(np.float64)) <= limit))[0].tolist()
    wrong = float(values[tuple(place)])
    if not np.isfinite(wrong):
        raise InputError(f"{name}{place} is {wrong}; give finite numbers")
    raise InputError(
        f"{name}{place} is {wrong:g}, but {dtype} holds numbers up to {limit:.6g}; make it smaller"
    )


def short(value: Any) -> str:
    """The repr of a value on one line, at most 60 characters."""
    try:
        text = " ".join(repr(value).split())
    except (RecursionError, ValueError):  # deeply nested lists; an integer of 4301 digits
        text = f"<a {type(value).__name__} too large to show>"
    return text if len(text) <= 60 else f"{text[:59]}…"


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _plain_array(name: str, value: Any, what: str) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # uneven lists; a tensor on a GPU
        raise InputError(f"{name} = {short(value)} is not an array of {what}") from error


def _kind(array: NDArray[Any], value: Any) -> str:
    """What an array holds: its dtype, or the type of a value that numpy has no dtype for."""
    return type(value).__name__ if array.dtype.kind == "O" and not array.ndim else str(array.dtype)
