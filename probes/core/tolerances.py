"""How far a recomputed logit may lie from the model's own, relative to the largest logit.

Both are the same product, summed in another order; the coarser the numbers, the larger the gap.
"""

from __future__ import annotations

_OF_DTYPE = {"float32": 1e-4, "float64": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
_QUANTISED = 1e-1  # a quantised file rounds what it multiplies to 8 bits

# How far a sum of parts in float64 may lie from the same sum's total in float64, if both start
# from float32 values: absolute, and relative to the largest logit (float32 resolves about a
# millionth of it), whichever is larger.
SUM_ABSOLUTE, SUM_RELATIVE = 1e-4, 1e-6


def logit_tolerance(precision: str) -> float:
    """The relative tolerance for `Runner.precision` (or a dtype)."""
    return _OF_DTYPE.get(precision, _QUANTISED)


def is_coarse(precision: str) -> bool:
    """Whether the numbers are coarser than float32: half precision, or quantised."""
    return precision not in ("float32", "float64")
