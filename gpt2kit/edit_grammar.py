"""Edits as text, for the command line and for files of experiments.

EDIT   TAP [ '[' AXIS=WHERE {, AXIS=WHERE} ']' ]  OP  VALUE
TAP    a tap's name, alias or glob             blocks.6.resid_post    blocks.*.mlp_out
       [ ] in it can only choose layers        blocks.[01].z
AXIS   an axis of that tap                     head  pos  query  key  d_model  batch  …
WHERE  an index, a range, or a list            9    2:5    3:    [1,4,7]
OP     = replaces, += and -= add, *= scales
VALUE  a number, an array in a .npy file, or a number times one
                                               0    mean.npy    8 * direction.npy

blocks.6.resid_post += 8 * direction.npy       steering
blocks.9.z[head=9] = 0                         zero ablation of a head
blocks.5.pattern[head=5] *= 0                  knocking out what it attends to
blocks.3.resid_post[pos=4] = clean.npy         patching
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2kit.errors import EditError
from gpt2kit.taps import LAYER_CHOICE

# Digits are [0-9] throughout: \d would also match the digits of other scripts.
# Repetitions are possessive (*+) where another repetition follows, so that no text takes long.
_EDIT = re.compile(
    r"(?P<tap>[^\s=/]+?)\s*+"
    r"(?:\[(?P<at>(?:[^\[\]=]|\[[^\[\]]*+\])*+=(?:[^\[\]]|\[[^\[\]]*+\])*+)\])?"
    r"\s*+(?P<op>[-+*]?=)\s*+(?P<value>[^\s=].*)"
)
_NUMBER = r"[-+]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]++)?"
_VALUE = re.compile(
    rf"(?P<number>{_NUMBER})|(?:(?P<times>{_NUMBER})\s*+\*\s*+|(?P<sign>[-+])\s*+)?(?P<file>\S.*)"
)
_PART = re.compile(r"(?P<axis>\w++)\s*+=\s*+(?P<where>\[[^\]]*+\]\s*+|[^,\[\]]++)(?:,\s*+|$)")


Index = int | list[int] | slice


class Parsed(NamedTuple):
    """The parts of an edit: `x -> keep * x + add` at `tap`, on the part that `at` selects."""

    tap: str
    keep: ArrayLike
    add: ArrayLike
    at: dict[str, Index]


def parse(text: str) -> Parsed:
    """Read one edit, and the .npy file that it names, if any.

    Raises EditError, which says what is wrong and how an edit is written.
    """
    if not isinstance(text, str):
        raise EditError(f"an edit as text is needed, got {type(text).__name__}")
    found = _EDIT.fullmatch(text.strip())
    tap = found["tap"] if found else ""
    if found is None or tap.count("[") != tap.count("]"):
        raise EditError(
            f"{text!r} is not an edit; write TAP = VALUE, TAP += VALUE or TAP *= VALUE, such as "
            "'blocks.9.z[head=9] = 0' or 'blocks.6.resid_post += 8 * direction.npy'"
        )
    _check_tap(text, tap)
    at, value = _where(text, found["at"]), _parse_value(text, found["value"])
    match found["op"]:
        case "=":
            return Parsed(tap, 0.0, value, at)
        case "*=":
            return Parsed(tap, value, 0.0, at)
        case "-=":
            return Parsed(tap, 1.0, -np.asarray(value), at)
    return Parsed(tap, 1.0, value, at)


def _check_tap(text: str, tap: str) -> None:
    """Raise EditError if a tap has brackets that do not choose layers: `z[pos:2]`, `z[head]`.

    Read as a glob, such a tap would select other taps than the user meant.
    """
    rest = LAYER_CHOICE.sub("", tap)
    if "[" in rest or "]" in rest:
        raise EditError(
            f"{text!r} is not an edit: {tap!r} has brackets without an axis; write [head=9], "
            "[pos=:2] or [key=[1,4]] after the tap"
        )


def _where(text: str, at: str | None) -> dict[str, Index]:
    """Read 'head=9, pos=2:5' as {"head": 9, "pos": slice(2, 5)}."""
    out: dict[str, Index] = {}
    rest = (at or "").strip()
    while rest:
        part = _PART.match(rest)
        if part is None or part["axis"] in out:
            raise EditError(
                f"{text!r}: [{at}] does not say where; write [head=9], [pos=2:5], [key=[1,4]], or "
                "several axes with a comma between, each once"
            )
        out[part["axis"]] = _index(text, part["where"].strip())
        rest = rest[part.end() :]
    return out


def _index(text: str, where: str) -> Index:
    """Read '9', '2:5' or '[1,4]'."""
    try:
        if where.startswith("["):
            return [_integer(part) for part in where[1:-1].split(",")]
        if ":" not in where:
            return _integer(where)
        found = slice(*(_integer(part) if part.strip() else None for part in where.split(":")))
    except (ValueError, TypeError):
        raise EditError(
            f"{text!r}: {where!r} is not an index (9), a range (2:5) or a list ([1,4])"
        ) from None
    return _check_range(text, where, found)


def _integer(number: str) -> int:
    if not re.fullmatch(r"[-+]?[0-9]+", number.strip()):
        raise ValueError(number)
    return int(number)


def _check_range(text: str, where: str, found: slice) -> slice:
    """Return a range. Raise EditError if it selects nothing, whatever the size of the axis."""
    start, stop = found.start or 0, found.stop
    if found.step == 0 or (stop is not None and (start < 0) == (stop < 0) and start >= stop):
        raise EditError(f"{text!r}: {where!r} selects nothing")
    return found


def _parse_value(text: str, value: str) -> ArrayLike:
    """Read a number, or a number times the array in a file."""
    found = _VALUE.fullmatch(value)
    assert found is not None  # because any text can be a file's name
    if found["number"]:
        return _parse_number(text, found["number"])
    factor = _parse_number(text, found["times"] or f"{found['sign'] or ''}1")
    return factor * _load_array(text, found["file"])


def _parse_number(text: str, number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise EditError(f"{text!r}: {number} is too large")
    return value


def _load_array(text: str, file: str) -> NDArray[Any]:
    """Read a .npy file of finite numbers."""
    if not file.endswith(".npy"):
        raise EditError(
            f"{text!r}: {file!r} is neither a number nor a .npy file (NUMBER * FILE.npy scales one)"
        )
    try:
        if not Path(file).is_file():  # a pipe would hang
            raise EditError(f"{text!r}: there is no file {file}")
        # Mapped, because a header can claim any size; an archive under this name is refused.
        array: NDArray[Any] = np.lib.format.open_memmap(file, mode="r")
        numbers = array.dtype.kind in "fiub"
        if not numbers or not np.isfinite(array).all():
            found = "NaN or infinity" if numbers else array.dtype
            raise EditError(f"{text!r}: {file} must hold finite numbers, it holds {found}")
        return np.array(array, np.float64 if array.dtype.itemsize > 8 else None)
    except EditError:
        raise
    except Exception as error:  # a damaged header can raise anything
        raise EditError(f"{text!r}: {file} is not an array that numpy can load: {error}") from error
