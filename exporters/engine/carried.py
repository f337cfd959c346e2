"""Whether a file carries the taps and edits that a run asks for, and how to export those that it
does not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt2kit.edits import Edit
from gpt2kit.errors import EditError, TapError
from gpt2kit.taps import resolve


def check_taps(taps: Sequence[str], carried: Sequence[str], path: Path) -> None:
    """Raise TapError if the file does not carry one of these taps (canonical names)."""
    if missing := [tap for tap in taps if tap not in carried]:
        raise TapError(f"{path.name} does not carry the tap {_how_to_export(missing, 'taps')}")


def edited_taps(
    edits: Sequence[Any], carried: Sequence[str], n_layer: int, path: Path
) -> tuple[str, ...]:
    """The taps that are edited.

    Raises EditError for a function, and for an edit that the file has no inputs for.
    """
    edited: list[str] = []
    for edit in edits:
        if not isinstance(edit, Edit):
            raise EditError(
                f"{path.name}: {edit!r} is not an Edit; functions run on the torch engine"
            )
        edited += resolve(edit.tap, n_layer)
    if missing := [tap for tap in dict.fromkeys(edited) if tap not in carried]:
        raise EditError(f"{path.name} takes no edit of {_how_to_export(missing, 'edits')}")
    return tuple(edited)


def _how_to_export(missing: Sequence[str], option: str) -> str:
    """'blocks.3.z' (and 2 more); export it with …."""
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    globs = " ".join(f"--{option} '{glob}'" for glob in _globs(missing))
    return f"{missing[0]!r}{more}; export it with `gpt2kit export --onnx … {globs}`"


def _globs(taps: Sequence[str]) -> list[str]:
    """Taps as few patterns: the same tap in several layers becomes `blocks.*.tap`."""
    kinds = [re.sub(r"^blocks\.\d+\.", "blocks.*.", tap) for tap in taps]
    pairs = zip(taps, kinds, strict=True)
    return list(dict.fromkeys(tap if kinds.count(kind) == 1 else kind for tap, kind in pairs))
