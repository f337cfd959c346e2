"""How an inspection looks in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporters.file.inspection import Inspection
from exporters.file.names import parity_file


def show(file: Inspection, console: Console) -> None:
    """Print what the file is, what it takes and gives, and how well it agrees with torch."""
    c, p = file.config, file.parity
    quantity, error, case = p["worst"]
    what = {
        "file": f"{file.path}, {file.size / 1e6:.1f} MB",
        "model": file.model + (f" at {file.revision}" if file.revision else ""),
        "shape": f"{c['n_layer']} layers, {c['n_head']} heads, d_model {c['n_embd']}, "
        f"{c['vocab_size']} tokens, {c['n_positions']} positions",
        "weights": f"sha256 {file.weights_sha256[:16]}…",
        "made as": f"{file.profile}, {file.quantize or file.dtype}, opset {file.opset}, "
        f"gpt2kit {file.version}",
        "parity": f"{'passed' if p['passed'] else 'FAILED'}: {p['cases']} cases, worst error "
        f"{error:.1e} at {quantity} in '{case}', tolerance {p['tolerance']:.0e}",
        "proof": f"{parity_file(Path(file.path)).name}: {file.proof}",
    }
    if cost := p.get("cost"):
        what["cost"] = f"KL divergence {cost['kl']:.4f} nats, same top token {cost['top1']:.1%}"
    grid = Table.grid(padding=(0, 2))
    for name, text in what.items():
        grid.add_row(Text(name, "bold"), Text(text))
    console.print(grid)
    _section(console, "inputs", _by_layer(file.inputs))
    _section(console, "outputs", _by_layer(file.outputs))
    _section(console, "taps", _by_layer({tap: _axes(axes) for tap, axes in file.taps.items()}))
    edits = _by_layer({tap: _axes(axes) for tap, axes in file.edits.items()})
    _section(console, "edits: {tap}.keep and {tap}.add, float32, each axis whole or 1", edits)


def _axes(axes: Iterable[str | int]) -> str:
    return f"({', '.join(map(str, axes))})"


def _section(console: Console, title: str, rows: Mapping[str, str]) -> None:
    console.print()
    console.print(Text(title if rows else f"{title.split(':')[0]}: none", "bold"))
    grid = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        grid.add_row(Text(f"  {name}"), Text(text, "dim"))
    if rows:
        console.print(grid)


def _by_layer(values: Mapping[str, str]) -> dict[str, str]:
    """One row for what is alike in several layers: 'blocks.{0-11}.z'."""
    layers: dict[tuple[str, str, str], list[int]] = {}
    for name, text in values.items():
        found = re.fullmatch(r"(.*?\.)(\d+)(\..*)", name)
        key = (found[1], found[3], text) if found else (name, "", text)
        layers.setdefault(key, []).append(int(found[2]) if found else -1)
    return {
        f"{before}{_span(numbers)}{after}" if numbers[0] >= 0 else before: text
        for (before, after, text), numbers in layers.items()
    }


def _span(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}-{numbers[-1]}}}"
    return "{" + ",".join(map(str, numbers)) + "}"
