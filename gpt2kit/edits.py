"""Edit: one affine change at one tap, `x -> keep * x + add`, as data.

Every usual intervention is of this form: ablation (keep 0, add nothing, a mean, or another run's
value), patching (keep 0, add the value, at some positions), head knock-out (keep 0 on one head),
steering (keep 1, add a vector), scaling (keep c). Nothing here imports torch: the torch engine and
an ONNX graph both take the `(keep, add)` pair that `affine` works out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from gpt2kit.edit_grammar import parse

AxisIndex = int | Sequence[int] | slice


@dataclass(frozen=True, eq=False)
class Edit:
    """`x -> keep * x + add` on the part of a tap that `at` selects; the rest stays as it is.

    tap:  a tap name, alias or glob (every tap it selects is edited alike).
    keep, add: numbers or arrays, broadcast as numpy does against the selected part of the tap.
    at:   axis name -> index, list of indices, or slice. One index drops its axis, as in numpy:
          `run.taps["blocks.9.z"][:, :, 9]` is a value for `at={"head": 9}`.
    text: what it was parsed from, if it was; errors show that.

    Positions (`pos`, `query`, `key`) are absolute, also under a cache: `pos=3` is the fourth token
    of the sequence, in whichever chunk it comes. An array that spans positions without `at` starts
    at position 0.

    >>> Edit.zero("blocks.9.z", head=9)
    Edit('blocks.9.z', keep=0.0, add=0.0, head=9)
    """

    tap: str
    keep: ArrayLike = 1.0
    add: ArrayLike = 0.0
    at: Mapping[str, AxisIndex] = field(default_factory=dict)
    text: str = field(default="", init=False)  # not an argument: a changed copy is another edit

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
        """Add `strength * vector`."""
        return cls(tap, 1.0, strength * np.asarray(vector), at)

    @classmethod
    def scale(cls, tap: str, factor: ArrayLike, **at: AxisIndex) -> Edit:
        """Multiply by `factor`."""
        return cls(tap, factor, 0.0, at)

    @classmethod
    def parse(cls, text: str) -> Edit:
        """An edit as text, such as "blocks.6.resid_post += 8 * direction.npy"; the grammar is in
        `gpt2kit.edit_grammar`. Raises EditError if it is not one."""
        edit = cls(*parse(text))
        object.__setattr__(edit, "text", text)
        return edit

    def __repr__(self) -> str:
        def show(x: ArrayLike) -> str:
            array = np.asarray(x)
            return f"array{array.shape}" if array.ndim else str(array)

        at = "".join(f", {axis}={where}" for axis, where in self.at.items()).replace("\n", "")
        return f"Edit({self.tap!r}, keep={show(self.keep)}, add={show(self.add)}{at})"


def shown(edit: Edit) -> str:
    """An edit as it was written, in text or in Python."""
    return repr(edit.text or edit)
