"""The one place that prints: what comes from files cannot control the terminal.

Control characters in text become visible signs (`gpt2kit.printable`). JSON escapes them. CSV has no
escapes: a terminal shows signs, a pipe or a file gets the data as it is.
"""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING

import click

from gpt2kit.errors import GPT2KitError
from gpt2kit.printable import printable_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# Characters that JSON allows in a string, and that a terminal acts on or cannot show.
_UNESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def write(text: str, *, end: str = "\n", dim: bool = False) -> None:
    """Print text on standard output."""
    shown = printable_text(text)
    with writing():
        click.echo((click.style(shown, dim=True) if dim else shown) + end, nl=False)


def write_error(text: str) -> None:
    """Print text on standard error; where that is impossible, say nothing."""
    try:
        click.echo(printable_text(text), err=True)
    except OSError:
        _discard(2)


def write_json(text: str) -> None:
    """Print JSON text, always as UTF-8."""
    escaped = _UNESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    with writing():
        click.echo(escaped.encode())


def write_csv(text: str) -> None:
    """Print CSV text, always as UTF-8; it ends with a line break of its own."""
    shown = printable_text(text) if sys.stdout.isatty() else text
    with writing():
        click.echo(shown.encode(errors="replace"), nl=False)


def print_rich(what: RenderableType, *, wrap: bool = True) -> None:
    """Print what rich draws on standard output; lines wrap at words, or else are cut."""
    with writing():
        open_console().print(what, no_wrap=not wrap, overflow=None if wrap else "ellipsis")


def open_console(*, stderr: bool = False) -> Console:
    """A console of rich that reads no markup and makes control characters visible."""
    from gpt2kit.cli.console import VisibleConsole

    console = VisibleConsole(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.width:  # COLUMNS=0
        console.width = 80
    return console


@contextmanager
def writing() -> Iterator[None]:
    """Name standard output in the error if it cannot be written, and write no more to it."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard(1)
        raise GPT2KitError(f"standard output cannot be written: {error.strerror}") from error


def open_streams() -> None:
    """Make the standard streams usable; raises GPT2KitError if standard output is closed.

    A closed stream gets a place, so that no other file takes its number.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack characters of tokens
        sys.stdout.reconfigure(errors="replace")
    closed = sys.stdout is None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if closed:
        raise GPT2KitError("standard output is closed; to see no output, use >/dev/null")


def show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print a traceback; a `sys.excepthook`."""
    write_error("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"))


def _discard(number: int) -> None:
    """Send what is still buffered nowhere; at exit, Python would try again to write it."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
