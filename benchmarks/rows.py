"""Lines of the tables in RESULTS.md."""

from __future__ import annotations

import statistics

HEADER = (
    "| | ours | ms | theirs | ms | times as fast (range) | wanted |\n|---|---|---|---|---|---|---|"
)


def row(
    name: str, ours: str, a: list[float], theirs: str, b: list[float], goal: float | None
) -> str:
    """A line of the first table: medians, and the median and range of the ratio b / a.

    a, b: milliseconds of ours and of theirs in each round. Each ratio compares times of one round.
    """
    ratios = sorted(y / x for x, y in zip(a, b, strict=True))
    middle, low, high = statistics.median(ratios), ratios[0], ratios[-1]
    last = "" if goal is None else f"{goal:g}{'' if middle >= goal else ' **not reached**'}"
    return (
        f"| {name} | {ours} | {statistics.median(a):.2f} | {theirs} | {statistics.median(b):.2f} "
        f"| {middle:.2f} ({low:.2f} to {high:.2f}) | {last} |"
    )


def figure(name: str, values: list[float], most: float) -> str:
    """A line of the second table: a ratio that should be at most `most`."""
    middle = statistics.median(values)
    verdict = "" if middle <= most else " **not reached**"
    return (
        f"| {name} | {middle:.2f} ({min(values):.2f} to {max(values):.2f}) "
        f"| at most {most:g}{verdict} |"
    )
