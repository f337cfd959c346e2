"""Notes for the user, on standard error: what is waited for, and what was chosen instead."""

from __future__ import annotations

import sys
from contextlib import suppress

from gpt2kit.printable import printable


def note(text: str) -> None:
    """Print one line on standard error; where that is impossible, say nothing."""
    if sys.stderr is None:  # which `print` would take for standard output
        return
    with suppress(OSError, ValueError):  # a full disk, a closed stream
        print(f"gpt2kit: {printable(text)}", file=sys.stderr, flush=True)
