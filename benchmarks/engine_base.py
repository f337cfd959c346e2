"""The interface that every engine of the comparison meets."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


def clock(run: Callable[[], Any]) -> float:
    """Milliseconds that one call takes."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


class Engine:
    """One engine, with its model loaded. Prompts are ids (batch, pos); decoding is greedy."""

    modules: tuple[str, ...]  # imported before loading is timed

    def __init__(self, path: str, threads: int) -> None:
        raise NotImplementedError

    def start(self, ids: Array) -> Any:
        """Run prompts into a new cache; returns the next tokens and the cache, for `step`."""
        raise NotImplementedError

    def step(self, state: Any) -> Any:
        """Run one more token per row; returns the state of the next step."""
        raise NotImplementedError

    def logits(self, ids: Array) -> Array:
        """Logits (pos, vocab) of one row."""
        raise NotImplementedError

    def prefill(self, ids: Array) -> float:
        """Milliseconds from a prompt to its last logits, with a cache to continue from."""
        return clock(lambda: self.start(ids))

    def decode(self, ids: Array, steps: int) -> float:
        """Median milliseconds of a step after this context."""
        state, times = self.start(ids), []
        for _ in range(steps):
            start = time.perf_counter()
            state = self.step(state)
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)
