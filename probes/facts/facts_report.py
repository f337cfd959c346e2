"""Stated facts beside the numbers measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from gpt2kit.result import ModelResult, Result, Row
from gpt2kit.result_data import from_plain, to_plain
from probes.facts.fact import Fact

if TYPE_CHECKING:
    from rich.console import RenderableType

_SAVED = tuple(field.name for field in fields(Fact) if field.compare)


@dataclass(frozen=True, repr=False)
class Checked:
    """A fact and the numbers measured for it."""

    fact: Fact
    measured: tuple[float, ...]  # (n,); empty if skipped
    skipped: str = ""  # why it was skipped

    @property
    def verdict(self) -> str:
        """ "holds", "differs" or "skipped"."""
        if self.skipped:
            return "skipped"
        return "holds" if self.fact.holds(self.measured) else "differs"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the fact's own fields but for `measure`, and the outcome."""
        data = {name: getattr(self.fact, name) for name in _SAVED}
        data |= {"measured": self.measured, "verdict": self.verdict, "skipped": self.skipped}
        return {name: to_plain(value) for name, value in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild what `to_dict` described; the fact can no longer be measured."""
        return from_plain(cls, {**data, "fact": data})

    def table(self) -> list[Row]:
        """One row for each claimed number."""
        fact, count = self.fact, len(self.fact.claimed)
        return [
            {
                "fact": fact.name,
                "source": fact.source,
                "label": fact.labels[i],
                "claimed": fact.claimed[i],
                "tolerance": fact.tolerance,
                "at_most": fact.at_most,
                "at_least": fact.at_least,
                "measured": to_plain((self.measured or (None,) * count)[i]),
                "verdict": self.verdict,
                "skipped": self.skipped,
            }
            for i in range(count)
        ]

    def __repr__(self) -> str:
        return f"Checked({self.fact.name}: {self.verdict})"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FactsReport(ModelResult):
    """Every fact with its verdict."""

    rows: tuple[Checked, ...]

    @property
    def passed(self) -> bool:
        """Whether every fact that was measured holds, and at least one was measured."""
        verdicts = [row.verdict for row in self.rows]
        return "holds" in verdicts and "differs" not in verdicts

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the rows, and whether the report passed."""
        return super().to_dict() | {"passed": self.passed}

    def table(self) -> list[Row]:
        """One row for each claimed number."""
        return [row for checked in self.rows for row in checked.table()]

    def render(self) -> RenderableType:
        """Claimed beside measured, one fact below the other."""
        from probes.draw.facts_table import FactLine, facts_table
        from probes.draw.words import title

        lines = (
            FactLine(
                row.fact.name,
                row.skipped or row.fact.source,
                row.fact.reason,
                row.fact.claims,
                [f"{number:.{row.fact.digits}f}" for number in row.measured],
                row.verdict,
            )
            for row in self.rows
        )
        first = title("facts", self.source, self.dtype, self._counts())
        return facts_table(first, lines)

    def __eq__(self, other: object) -> bool:
        """Compare the saved data, which leaves out the functions that measure facts."""
        if not isinstance(other, FactsReport):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = Result.__hash__

    def __repr__(self) -> str:
        return f"FactsReport({self.source}, {self.dtype}: {self._counts()})"

    def _counts(self) -> str:
        verdicts = [row.verdict for row in self.rows]
        return ", ".join(f"{verdicts.count(v)} {v}" for v in ("holds", "differs", "skipped"))
