"""A published fact, what was measured of it, and the report that puts them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from gpt2kit.result import Result
from gpt2kit.result_data import to_plain as plain
from gpt2kit.runner import Runner
from probes.draw.tables import table
from probes.draw.words import title

WIDEST = 66  # columns of a fact and its source
_COLOURS = {"holds": "green", "differs": "bold red", "skipped": "yellow"}


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Some published numbers, and how to measure them.

    It holds if every measured number is within `tolerance` of the claimed one; with `at_most`, if
    it is not above the claimed one (a rank, 1 the first, or a sign).
    """

    name: str
    source: str
    measure: Callable[[Runner], Sequence[float]] | None  # None: not measured, for the reason given
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


@dataclass(frozen=True, eq=False)
class Checked(Result):
    """A fact, and what was measured."""

    fact: Fact
    measured: tuple[float, ...]  # (n,); () if skipped
    skipped: str = ""  # why, if it was

    @property
    def verdict(self) -> str:
        """ "holds", "differs" or "skipped"."""
        if self.skipped:
            return "skipped"
        return "holds" if self.fact.holds(self.measured) else "differs"

    def __repr__(self) -> str:
        return f"Checked({self.fact.name}: {self.verdict})"

    def to_dict(self) -> dict[str, Any]:
        """The fact's own fields, without the function, and the outcome."""
        shown = ("name", "source", "labels", "claimed", "tolerance", "at_most", "reason")
        data = {name: getattr(self.fact, name) for name in shown}
        data |= {"measured": self.measured, "verdict": self.verdict, "skipped": self.skipped}
        return {name: plain(value) for name, value in data.items()}

    def cells(self) -> tuple[Text, str, str, Text]:
        """A row of the table: the fact, what is claimed, what was measured, the verdict."""
        fact, verdict = self.fact, self.verdict
        about = Text.assemble(fact.name, (f"\n{self.skipped or fact.source}", "dim"))
        if verdict == "differs":
            about.append(f"\n{fact.reason}", "dim italic")
        sign = "≤ " if fact.at_most else ""
        margin = f" ± {fact.tolerance:g}" if fact.tolerance else ""
        claims = (f"{sign}{c:.{fact.digits}f}{margin}" for c in fact.claimed)
        lines = (f"{x} {c}".strip() for x, c in zip(fact.labels, claims, strict=True))
        found = "\n".join(f"{m:.{fact.digits}f}" for m in self.measured)
        return about, "\n".join(lines), found, Text(verdict, _COLOURS[verdict])


@dataclass(frozen=True, eq=False)
class FactsReport(Result):
    """Every fact with its verdict."""

    source: str
    dtype: str
    rows: tuple[Checked, ...]

    @property
    def passed(self) -> bool:
        """Whether every fact that was measured holds, and at least one was."""
        verdicts = [row.verdict for row in self.rows]
        return "holds" in verdicts and "differs" not in verdicts

    def __repr__(self) -> str:
        return f"FactsReport({self.source}, {self.dtype}: {self._counts()})"

    def _counts(self) -> str:
        verdicts = [row.verdict for row in self.rows]
        return ", ".join(f"{verdicts.count(v)} {v}" for v in ("holds", "differs", "skipped"))

    def to_dict(self) -> dict[str, Any]:
        """The rows, and whether the report passed."""
        return super().to_dict() | {"passed": self.passed}

    def render(self) -> RenderableType:
        """Claimed beside measured, one fact below the other."""
        rows = table("fact", "claimed", "measured", "verdict", numbers=("claimed", "measured"))
        rows.padding = (0, 2, 1, 0)
        for column in rows.columns:
            column.no_wrap = column is not rows.columns[0]
        rows.columns[0].max_width = WIDEST
        for row in self.rows:
            rows.add_row(*row.cells())
        return Group(title("published facts", self.source, self.dtype, self._counts()), "", rows)
