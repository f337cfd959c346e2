"""Draft folders: an export writes its files in a hidden folder beside their place.

The folder goes when the export ends. A process that is killed leaves it; the next export removes
it. The folder of a process that lives is locked by it, and a lock ends with its process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from exporters.file.placing import PARTS, roll_back
from gpt2kit.errors import ExportError


@contextlib.contextmanager
def draft_folder(target: Path) -> Iterator[Path]:
    """A new draft folder, with its parts, for as long as the block runs.

    What the block has placed is rolled back if it did not come to the end.
    Errors of the file system become one ExportError.
    """
    try:
        folder, lock = _make(target)
        try:
            for part in PARTS:
                (folder / part).mkdir()
            yield folder
        finally:
            _end(folder)
            _release(lock)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise ExportError(f"{target}: not written: {reason}") from error


def sweep(folder: Path) -> None:
    """Roll back and remove the drafts in a folder whose processes have ended."""
    for draft in folder.glob(".*.onnx.*.draft"):
        with contextlib.suppress(OSError):  # it is locked, or not a folder
            if (lock := _lock(draft)) is not None:
                try:
                    if os.fstat(lock).st_uid == os.geteuid():
                        _end(draft)
                finally:
                    _release(lock)


def _end(draft: Path) -> None:
    """Roll back what was not completed, and remove the draft. Raises ExportError."""
    try:
        roll_back(draft)
    except OSError as error:
        raise ExportError(
            f"{draft}: the files in its folder `older` could not be put back ({error}); move them "
            "by hand"
        ) from error
    shutil.rmtree(draft, ignore_errors=True)


def _make(target: Path) -> tuple[Path, int | None]:
    """A folder, and its lock; no lock where the file system has none."""
    while True:
        prefix = f".{target.name}."
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".draft", dir=target.parent))
        try:
            lock = _lock(folder)
        except (BlockingIOError, FileNotFoundError):  # another process sweeps it just now
            continue
        except OSError:
            return folder, None
        if folder.exists():
            return folder, lock
        _release(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder: a descriptor, to be closed; None on Windows.

    Raises BlockingIOError if another process has locked it, OSError where that is not possible.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _release(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
