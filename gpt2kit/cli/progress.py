"""What a command is doing, on standard error while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpt2kit.cli.terminal import open_console, write_error

if TYPE_CHECKING:
    from rich.progress import Progress


class Status:
    """The current stage in words, and a bar and a count where something is counted."""

    def __init__(self, progress: Progress, log_stages: bool) -> None:
        self.progress, self.log_stages = progress, log_stages
        self.task = progress.add_task("loading the model", total=None, count="")

    def update(self, stage: str) -> None:
        """Begin another stage."""
        self.progress.reset(self.task, total=None, description=stage, count="")
        self.progress.refresh()
        if self.log_stages and self.progress.disable:
            write_error(f"{stage} …")

    def count(self, done: int, total: int) -> None:
        """Show how much of the stage is done; an `on_progress` callback."""
        self.progress.update(
            self.task,
            completed=done,
            total=total,
            count=f"{done}/{total}",
            refresh=done == total,
        )


@contextmanager
def show_status(*, log_stages: bool = False) -> Iterator[Status]:
    """Show stages if standard error is a terminal, and erase them at the end.

    log_stages: where it is no terminal, print each stage as a line (for work of minutes).
    """
    from rich.progress import BarColumn, Progress, TextColumn

    console = open_console(stderr=True)
    stage = TextColumn("{task.description}", markup=False)
    count = TextColumn("{task.fields[count]}", markup=False)
    with Progress(
        stage, BarColumn(), count, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        yield Status(progress, log_stages)
