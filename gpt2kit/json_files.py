"""Read the small JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt2kit.errors import CheckpointError


def read_object(file: Path) -> dict[str, Any]:
    """The content of a file that holds a JSON object; {} if there is no such file.

    Raises CheckpointError, which names the file, for anything else.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_unambiguous)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not a readable {file.name} ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds {type(content).__name__}, not a JSON object")
    return content


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError if a key stands there twice with different values."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if content.setdefault(key, value) != value:
            raise ValueError(f"the key {key!r} stands there twice, with different values")
    return content
