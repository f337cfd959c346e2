"""Names of the inputs and outputs that a graph has beside `input_ids`, `attention_mask`,
`position_ids` and `logits`; but for the last, those of the ecosystem's own exports."""

from __future__ import annotations

import os
from pathlib import Path

from gpt2kit.errors import EngineError


def past_names(n_layer: int) -> list[str]:
    """Inputs with the cached keys and values, (batch, head, past, d_head) each."""
    return [f"past_key_values.{i}.{part}" for i in range(n_layer) for part in ("key", "value")]


def present_names(n_layer: int) -> list[str]:
    """Outputs with the keys and values to go on from, in the order of `past_names`."""
    return [f"present.{i}.{part}" for i in range(n_layer) for part in ("key", "value")]


def edit_names(tap: str) -> tuple[str, str]:
    """Inputs by which a tap is edited."""
    return f"{tap}.keep", f"{tap}.add"


def parity_file(path: Path) -> Path:
    """Where it is told how well a file agrees with torch: each file of a folder has its own."""
    return path.with_name(f"{path.name}.parity.json")


def existing(path: str | os.PathLike[str]) -> Path:
    """The path of a file that is there. Raises EngineError if it is not."""
    file = Path(path)
    if not file.is_file():
        raise EngineError(f"{file}: {'is a folder' if file.is_dir() else 'no such file'}")
    return file


def data_file(path: Path) -> Path:
    """Where the weights of a file lie that are not in it."""
    return path.with_name(f"{path.name}.data")


LOGITS_POSITIONS = "logits_positions"  # fused profile only: which columns get logits
