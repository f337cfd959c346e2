"""Edit: one affine change at one tap, `x -> keep * x + add`, as data.

Every usual intervention has this form: ablation (keep 0; add nothing, a mean, or another run's
value), patching (keep 0, add the value, at some positions), head knock-out (keep 0 on one head),
steering (keep 1, add a vector), scaling (keep c). `gpt2kit.edit_arrays` turns edits into the arrays
that both engines apply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from gpt2kit.checks import short
from gpt2kit.edit_grammar import parse
from gpt2kit.errors import EditError

AxisIndex = int | Sequence[int] | slice


@dataclass(frozen=True, eq=False)
class Edit:
    """`x -> keep * x + add` on the part of a tap that `at` selects; the rest stays as it is.

    tap:  a tap name, alias or glob; all taps that it selects are edited in the same way.
    keep, add: numbers or arrays, broadcast as numpy does against the selected part of the tap.
    at:   axis name -> index, list of indices, or slice. An index drops its axis, as in numpy:
          `run.taps["blocks.9.z"][:, :, 9]` is a value for `at={"head": 9}`.
    text: the text that `parse` read, for error messages; "" for other edits.

    Positions (`pos`, `query`, `key`) are absolute, also under a cache: `pos=3` is the fourth token
    of the sequence, in whichever chunk it comes. An array that spans positions without `at` starts
    at position 0. Raises EditError for a tap that is not text or an `at` that is not a mapping;
    everything else is checked against the model when the edit is run.

    >>> Edit.zero("blocks.9.z", head=9)
    Edit('blocks.9.z', keep=0.0, add=0.0, head=9)
    """

    tap: str
    keep: ArrayLike = 1.0
    add: ArrayLike = 0.0
    at: Mapping[str, AxisIndex] = field(default_factory=dict)
    text: str = field(default="", init=False)  # not an argument: a changed copy has another text

    def __post_init__(self) -> None:
        if not isinstance(self.tap, str):
            raise EditError(f"tap = {short(self.tap)} of an Edit must be a tap's name")
        if not isinstance(self.at, Mapping):
            raise EditError(f"at = {short(self.at)} of an Edit must be a mapping: {{'head': 9}}")

    @classmethod
    def zero(cls, tap: str, **at: AxisIndex) -> Edit:
        """Zero ablation; `Edit.zero("blocks.9.z", head=9)` knocks one head out."""
        return cls(tap, 0.0, 0.0, at)

    @classmethod
    def replace(cls, tap: str, value: ArrayLike, **at: AxisIndex) -> Edit:
        """Put `value` there: activation patching, mean and resample ablation."""
        return cls(tap, 0.0, value, at)

    @classmethod
    def steer(cls, tap: str, vector: ArrayLike, strength: float = 1.0, **at: AxisIndex) -> Edit:
        """Add `strength * vector`. Raises EditError unless both are numbers."""
        for name, value in (("vector", vector), ("strength", strength)):
            if not _is_numeric(value):
                raise EditError(f"Edit.steer({tap!r}, …): {name} = {short(value)} must be numbers")
        return cls(tap, 1.0, strength * np.asarray(vector), at)

    @classmethod
    def scale(cls, tap: str, factor: ArrayLike, **at: AxisIndex) -> Edit:
        """Multiply by `factor`."""
        return cls(tap, factor, 0.0, at)

    @classmethod
    def parse(cls, text: str) -> Edit:
        """Read an edit from text, such as "blocks.6.resid_post += 8 * direction.npy".

        The grammar is in `gpt2kit.edit_grammar`. Raises EditError if the text is not an edit.
        """
        edit = cls(*parse(text))
        object.__setattr__(edit, "text", text)
        return edit

    def __repr__(self) -> str:
        at = "".join(f", {axis}={where}" for axis, where in self.at.items()).replace("\n", "")
        return f"Edit({self.tap!r}, keep={_shown(self.keep)}, add={_shown(self.add)}{at})"


def _is_numeric(value: ArrayLike) -> bool:
    try:
        return np.asarray(value).dtype.kind in "fiub"
    except ValueError:  # lists of unequal length
        return False


def _shown(x: ArrayLike) -> str:
    """A number, or the shape of an array."""
    try:
        array = np.asarray(x)
    except ValueError:  # lists of unequal length; they are refused when the edit is run
        return short(x)
    return f"array{array.shape}" if array.ndim else str(array)


def as_written(edit: Edit) -> str:
    """An edit as it was written, in text or in Python, for error messages."""
    return repr(edit.text or edit)
