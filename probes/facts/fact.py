"""A published fact, and how to measure it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gpt2kit.runner import Runner

Measurement = Callable[[Runner], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Some published numbers, and how to measure them.

    It holds if every measured number is within `tolerance` of the claimed one; with `at_most`, if
    none is above the claimed one (a rank, 1 being the first, or a sign).
    """

    name: str
    source: str  # of the claim
    # None: it is not measured, for `reason`. It is not saved, so equality leaves it out.
    measure: Measurement | None = field(default=None, compare=False)
    labels: tuple[str, ...] = ("",)  # (n,)
    claimed: tuple[float, ...]  # (n,)
    tolerance: float = 0.0
    at_most: bool = False
    reason: str  # for the tolerance, or for how early a rank must be
    digits: int = 0  # decimals shown

    def holds(self, measured: Sequence[float]) -> bool:
        """Whether numbers (n,) agree with the claim; NaN never does."""
        off = np.asarray(measured, np.float64) - np.asarray(self.claimed)
        return bool(((off if self.at_most else np.abs(off)) <= self.tolerance).all())

    @property
    def claims(self) -> tuple[str, ...]:
        """(n,) the claims as text: label, number and tolerance."""
        sign = "≤ " if self.at_most else ""
        margin = f" ± {self.tolerance:g}" if self.tolerance else ""
        return tuple(
            f"{label} {sign}{number:.{self.digits}f}{margin}".strip()
            for label, number in zip(self.labels, self.claimed, strict=True)
        )
