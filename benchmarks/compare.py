"""gpt2kit beside its peers, on one random gpt2 (124M): how many times as fast, and the spread.

    .venv/bin/python benchmarks/compare.py                       # all of it, into RESULTS.md
    .venv/bin/python benchmarks/compare.py --only "fp32 decode"  # some lines, on the screen

Sets up each peer in an environment of its own under --work, converts one checkpoint to each
engine's format, and keeps one process per engine. They run in turn, one at a time, A B C A B C.
Each line shows the median, over the rounds, of the ratio within a round, and its range.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from contenders import COMPARISONS, Comparison
from ratios import RATIOS, accuracy, head_sweep, loads
from rows import HEADER, row
from workers import Workers, prompt

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Measure, print, and write RESULTS.md if everything was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=HERE.parent / "build/benchmarks")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", action="append", help="names of lines, or parts of them")
    options = parser.parse_args()
    parts = options.only or [""]
    with ExitStack() as stack:
        workers = Workers(options.work.resolve(), options.threads, options.rounds, stack)
        report = measure(workers, lambda name: any(part in name for part in parts))
    if not options.only:
        write(report, options.threads, options.rounds)


def measure(workers: Workers, chosen: Callable[[str], bool]) -> list[str]:
    """Print the lines of all tables as they are measured; returns them.

    chosen: whether to measure the line, or the group of lines, of this name.
    """
    report: list[str] = []

    def add(*lines: str) -> None:
        report.extend(lines)
        print("\n".join(lines), flush=True)

    add(HEADER)
    for comparison in COMPARISONS:
        if chosen(comparison.name):
            add(*compare(workers, comparison))
    if chosen("load"):
        add(*loads(workers))
    if chosen("head_sweep"):
        add(*head_sweep(workers))
    add("", "| | ratio (range) | wanted |\n|---|---|---|")
    for ratio in RATIOS:
        if chosen(ratio.__name__):
            add(*ratio(workers))
    if chosen("accuracy"):
        add("", "| | KL from float32, nats | same top token | file, MB |\n|---|---|---|---|")
        add(*accuracy(workers))
    return report


def compare(workers: Workers, line: Comparison) -> list[str]:
    """One row of the first table for each peer."""
    names = [line.ours, *line.peers]
    ids = prompt(line.tokens, line.batch)
    for name in names:
        workers.run(name, dict(line.request), ids)  # warm up
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(workers.rounds):
        for name in names:
            times[name].append(workers.run(name, dict(line.request), ids))
    return [
        row(line.name, line.ours, times[line.ours], peer, times[peer], goal)
        for peer, goal in line.peers.items()
    ]


def write(report: list[str], threads: int, rounds: int) -> None:
    """Replace the part of RESULTS.md about this processor, or put a new part first."""
    path = HERE / "RESULTS.md"
    text = path.read_text(encoding="utf-8")
    start, end = f"### {processor()}\n", "<!-- end -->\n"
    part = f"\n{threads} threads, {rounds} rounds.\n\n" + "\n".join(report)
    if start in text:
        before, after = text.split(start)
        text = before + start + part + "\n" + end + after.split(end, 1)[1]
    else:
        heading = "## CPU\n\n"
        text = text.replace(heading, f"{heading}{start}{part}\n{end}\n", 1)
    path.write_text(text, encoding="utf-8")


def processor() -> str:
    """What Linux, or else Python, calls the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
