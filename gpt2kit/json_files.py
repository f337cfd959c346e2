"""Read JSON: the small files of a checkpoint, metadata, saved results."""

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
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not a readable {file.name} ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds {type(content).__name__}, not a JSON object")
    return content


def parse_json(text: str) -> Any:
    """The content of a JSON text.

    Raises ValueError for any other text, for nesting that is too deep for Python's parser, and for
    an object that has a key twice with different values.
    """
    try:
        return json.loads(text, object_pairs_hook=_unambiguous)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError if a key stands there twice with different values."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content and content[key] != value:
            raise ValueError(f"the key {key!r} stands there twice, with different values")
        content[key] = value
    return content
