"""How a parity report looks in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from exporters.parity.compare import Report


def show(report: Report, console: Console) -> None:
    """Print the worst error of each kind of quantity, and the verdict."""
    table = Table("quantity", "worst error", "where", "in", box=None, header_style="bold")
    for kind, (error, case, name) in report.kinds().items():
        colour = "green" if error <= report.tolerance else "red"
        table.add_row(kind, f"[{colour}]{error:.1e}[/]", name, case)
    console.print(table)
    console.print(f"same top token at {report.top1} of {report.positions} positions")
    verdict = "[green]torch and ONNX agree[/]" if report.passed else "[red]they do not agree[/]"
    console.print(f"{verdict} (tolerance {report.tolerance:.0e} for {report.dtype})")
    if report.cost:
        c = report.cost
        console.print(
            f"quantised to {c.kind}: KL divergence {c.kl:.4f} nats (bound {c.bound:g}), same top "
            f"token {c.top1:.1%}, perplexity {c.perplexity[0]:.2f} -> {c.perplexity[1]:.2f}\n"
            f"(against float32, on {c.tokens} tokens: {c.text})"
        )
    if report.diverged:
        console.print(f"they part first at {report.diverged}")
