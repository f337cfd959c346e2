"""Progress of long work: pieces are counted and reported to one callback."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[int, int], None]  # called with (done, total)


class Progress:
    """Counts finished pieces of work and reports (done, total) after each."""

    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        self.on_progress, self.done, self.total = on_progress, 0, total

    def add(self, count: int) -> None:
        """Report that `count` more pieces are done."""
        self.done += count
        if self.on_progress is not None:
            self.on_progress(self.done, self.total)
