"""Names of the graph's inputs and outputs, and of the files beside it.

Inputs and outputs have the names that other exporters of GPT-2 give them; `logits_positions` and
the inputs of edits are ours.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gpt2kit.errors import EngineError, InputError

LOGITS_POSITIONS = "logits_positions"  # input of the fused profile: the columns that get logits


def past_names(n_layer: int) -> list[str]:
    """Inputs that hold the cached keys and values, each (batch, head, past, d_head)."""
    return [f"past_key_values.{i}.{part}" for i in range(n_layer) for part in ("key", "value")]


def present_names(n_layer: int) -> list[str]:
    """Outputs that hold the advanced cache, in the order of `past_names`."""
    return [f"present.{i}.{part}" for i in range(n_layer) for part in ("key", "value")]


def edit_names(tap: str) -> tuple[str, str]:
    """The two inputs that edit a tap: factor and summand."""
    return f"{tap}.keep", f"{tap}.add"


def is_edit_input(name: str) -> bool:
    """Whether an input of the graph is one of those of `edit_names`."""
    return name.endswith((".keep", ".add"))


def parity_file(path: Path) -> Path:
    """Where the parity report of a file is. Each file of a folder has its own."""
    return path.with_name(f"{path.name}.parity.json")


def data_file(path: Path) -> Path:
    """Where the external weights of a new file go: the name that transformers.js looks for."""
    return path.with_name(f"{path.name}_data")


def sidecar_folder(path: Path) -> Path:
    """Where config.json, tokenizer.json and the other files for other clients are.

    They lie beside the file, or above its folder if that folder is called `onnx`.
    """
    folder = path.absolute().parent
    return folder.parent if folder.name == "onnx" else path.parent


def as_path(path: Any) -> Path:
    """A path from text or a path object. Raises InputError for another type."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path = {path!r} must be text or a path, got {type(path).__name__}")
    if "\0" in str(path):
        raise InputError(f"path = {path!r} holds a NUL, which no file's name can")
    return Path(path)


def existing(path: str | os.PathLike[str]) -> Path:
    """The path of a file that exists. Raises EngineError if it does not."""
    file = as_path(path)
    if not file.is_file():
        found = "is a folder" if file.is_dir() else "is not a file"
        raise EngineError(f"{file}: {found if file.exists() else 'no such file'}")
    return file
