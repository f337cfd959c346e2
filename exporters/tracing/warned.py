"""Collect what torch warns about while it traces, and let only the expected warnings pass."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator

from gpt2kit.errors import ExportError

# Warnings that do not concern the graph. Any other one may mean that the file would be wrong.
_EXPECTED = (
    r"torchvision is not installed",  # an optional package
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # torch's own code
    # Two axes that are always equal have one name, which is wanted if both were given that name.
    r"The axis name: (\w+) will not be used, since it shares .* with another axis: \1\.",
)
_LIBRARIES = ("torch", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def expected_warnings_only() -> Iterator[None]:
    """Hide expected warnings. Raise ExportError at the end if there was another one."""
    with _logged() as messages, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in (*messages, *(str(one.message) for one in caught)):
        if not any(re.match(pattern, message.lstrip("# ")) for pattern in _EXPECTED):
            raise ExportError(
                f"torch warned while it traced the model: {' '.join(message.split())}; the file "
                "may be wrong, so none was written; install the versions in constraints.txt"
            )


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """What these libraries log, warnings and worse, instead of printing it."""
    handler = _Collector(logging.WARNING)
    loggers = [log for name in _LIBRARIES for log in _printing_loggers(name)]
    before = [(log.handlers, log.propagate) for log in loggers]
    for log in loggers:
        log.handlers, log.propagate = [handler], False
    try:
        yield handler.messages
    finally:
        for log, (handlers, propagate) in zip(loggers, before, strict=True):
            log.handlers, log.propagate = handlers, propagate


def _printing_loggers(library: str) -> list[logging.Logger]:
    """The library's first logger, and those below it that print for themselves."""
    known = logging.getLogger().manager.loggerDict
    below = [log for name, log in known.items() if name.startswith(f"{library}.")]
    printing = [log for log in below if isinstance(log, logging.Logger) and log.handlers]
    return [logging.getLogger(library), *printing]


class _Collector(logging.Handler):
    """Keeps messages in a list."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.messages.append(record.getMessage())
