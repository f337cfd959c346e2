"""Work that may take long: a deadline, and lines that say what is waited for."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TypeVar

from gpt2kit.notes import note

T = TypeVar("T")
PAUSES = (1.0, 4.0, 10.0, 20.0, 30.0)  # seconds between lines; the last one is repeated


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`; raises TimeoutError if it is not there in time.

    A thread does the work, and is left behind: nothing else can end a look-up of a host's address.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(timeout=seconds)


@contextmanager
def say_what_takes_long(describe: Callable[[], str]) -> Iterator[None]:
    """Print `describe()` on standard error from time to time, until the block ends."""
    ended = threading.Event()

    def talk() -> None:
        pauses = iter(PAUSES)
        while not ended.wait(next(pauses, PAUSES[-1])):
            with suppress(OSError):  # a file that is moved while it is measured
                note(f"{describe()} …")

    talker = threading.Thread(target=talk, daemon=True)
    talker.start()
    try:
        yield
    finally:
        ended.set()
        talker.join()


@contextmanager
def quiet_library(host: str) -> Iterator[None]:
    """Let warnings of huggingface_hub be notes, and its progress bars be off, in the block."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    logger = logging.getLogger("huggingface_hub")
    handlers, logger.handlers = logger.handlers, [_Notes(host)]
    bars = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.handlers = handlers
        if bars:
            enable_progress_bars()


class _Notes(logging.Handler):
    """Prints each record as a note of one line, with addresses shortened to their host."""

    def __init__(self, host: str) -> None:
        super().__init__()
        self.host = host

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        text = re.sub(r"\w+://([^/\s]*)\S*", r"\1", record.getMessage())
        note(f"{self.host}: {' '.join(text.split())}")
