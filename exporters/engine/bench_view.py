"""How a measurement looks in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from exporters.engine.bench import Bench


def show(result: Bench, console: Console) -> None:
    """Print one line a figure."""
    console.print(result.engine, style="bold")
    table = Table(box=None, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("load", f"{result.load_ms:,.0f} ms", "to the first logits")
    for tokens, ms in result.prefill_ms.items():
        table.add_row(
            f"prefill {tokens}", f"{ms:,.1f} ms", f"{1e3 * tokens / ms:,.0f} tokens a second"
        )
    more = f"{1e3 / result.decode_ms:,.0f} tokens a second, from {result.decode_from} tokens on"
    table.add_row("decode", f"{result.decode_ms:,.2f} ms", more)
    if result.floor_ms and result.over_floor and result.bandwidth:
        reading = f"{_mb(result.weights)} of weights a step at {result.bandwidth / 1e9:,.1f} GB/s"
        table.add_row("memory floor", f"{result.floor_ms:,.2f} ms", reading)
        table.add_row("decode / floor", f"{result.over_floor:,.2f}", "")
    if result.file:
        table.add_row("file", _mb(result.file), "")
    if result.peak:
        ratio = f"{result.peak / result.all_weights:.2f} times all weights"
        table.add_row("peak memory", _mb(result.peak), ratio)
    console.print(table)
    console.print(f"medians, {result.threads} threads", style="dim")


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
