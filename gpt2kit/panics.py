"""Panics of the tokenizers library, which is written in Rust.

A panic arrives as a PanicException, which is no Exception, after Rust has written a report to file
descriptor 2 by itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from gpt2kit.errors import CheckpointError


@contextlib.contextmanager
def explained_panics(*, quiet: bool) -> Iterator[None]:
    """Raise CheckpointError in place of a panic. quiet: keep Rust's report off standard error."""
    try:
        with _closed_descriptor() if quiet else contextlib.nullcontext():
            yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the tokenizer fails at this text ({reason}); correct the regular expressions in its "
            "tokenizer.json"
        ) from None


@contextlib.contextmanager
def _closed_descriptor() -> Iterator[None]:
    """Let nothing reach file descriptor 2, where libraries write past Python's sys.stderr."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed already
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - a device
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
