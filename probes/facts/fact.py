"""A stated fact about a model, and how to measure it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gpt2kit.runner import Runner

Measurement = Callable[[Runner], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Some claimed numbers, and how to measure them.

    It holds if every measured number is within `tolerance` of the claimed one; with `at_most`, if
    none is above the claimed one (a rank, 1 being the first, or a sign); with `at_least`, if none
    is below it. A bar on one side takes the tolerance into account as well.
    """

    name: str
    source: str  # of the claim
    # None: it is not measured, for `reason`. It is not saved, so equality leaves it out.
    measure: Measurement | None = field(default=None, compare=False)
    labels: tuple[str, ...] = ("",)  # (n,)
    claimed: tuple[float, ...]  # (n,)
    tolerance: float = 0.0
    at_most: bool = False
    at_least: bool = False
    reason: str  # for the tolerance, or for the bar
    digits: int = 0  # decimals shown

    def holds(self, measured: Sequence[float]) -> bool:
        """Whether numbers (n,) agree with the claim; NaN never does."""
        off = np.asarray(measured, np.float64) - np.asarray(self.claimed)
        wrong = off if self.at_most else -off if self.at_least else np.abs(off)
        return bool((wrong <= self.tolerance).all())

    @property
    def claims(self) -> tuple[str, ...]:
        """(n,) the claims as text: label, number and tolerance."""
        sign = "≤ " if self.at_most else "≥ " if self.at_least else ""
        margin = f" ± {self.tolerance:g}" if self.tolerance else ""
        return tuple(
            f"{label} {sign}{number:.{self.digits}f}{margin}".strip()
            for label, number in zip(self.labels, self.claimed, strict=True)
        )
