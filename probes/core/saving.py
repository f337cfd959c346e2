"""How much a sweep saved by running copies together and sharing layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt2kit.prompts import counted
from gpt2kit.result import Result, Row


@dataclass(frozen=True, eq=False)
class Saving(Result):
    """What a sweep ran, beside a naive sweep that runs the whole model for each place.

    An engine that cannot start at a later layer shares none: `layers_run` equals `layers_naive`,
    and only the batches save time. `seconds_naive` is an estimate: one plain run is timed after the
    sweep, and multiplied by the number of runs.
    """

    layers_run: int  # layers x rows
    layers_naive: int
    batches: tuple[int, ...]  # rows run together, batch by batch
    seconds: float  # for all batches
    seconds_naive: float  # estimated

    def lines(self) -> tuple[str, str]:
        """What was run, and how long it took."""
        fewer = self.layers_run < self.layers_naive
        layers = f"instead of {self.layers_naive}" if fewer else "with none shared"
        return (
            f"{counted(sum(self.batches), 'run')} in {len(self.batches)} "
            f"{'batch' if len(self.batches) == 1 else 'batches'} of up to "
            f"{max(self.batches, default=0)}, {counted(self.layers_run, 'layer')} {layers}",
            f"{self.seconds:.3g} s; one by one about {self.seconds_naive:.3g} s, as one was timed",
        )

    def table(self) -> list[Row]:
        """One row."""
        return [
            {
                "runs": sum(self.batches),
                "batches": len(self.batches),
                "layers_run": self.layers_run,
                "layers_naive": self.layers_naive,
                "seconds": self.seconds,
                "seconds_naive": self.seconds_naive,
            }
        ]

    def __repr__(self) -> str:
        return "; ".join(self.lines())


def sum_savings(savings: Sequence[Saving]) -> Saving:
    """The saving of several sweeps together."""
    return Saving(
        sum(x.layers_run for x in savings),
        sum(x.layers_naive for x in savings),
        tuple(rows for x in savings for rows in x.batches),
        sum(x.seconds for x in savings),
        sum(x.seconds_naive for x in savings),
    )
