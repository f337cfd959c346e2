"""The files of a checkpoint folder that hold the weights."""

from __future__ import annotations

from pathlib import Path

from gpt2kit.errors import CheckpointError
from gpt2kit.json_files import parse_json

WEIGHT_FILES = (  # in order of preference; an index names the shards it is split into
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights; [] if there are none.

    Raises CheckpointError if an index is damaged or a shard that it names is missing.
    """
    for name in WEIGHT_FILES:
        file = folder / name
        if file.is_file():
            return _shards(file) if name.endswith(".index.json") else [file]
    return []


def _shards(index: Path) -> list[Path]:
    """The files that an index of shards names, all beside it."""
    try:
        names = list(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{index}: not a readable index of shards; its weight_map must give each tensor's file"
        ) from error
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointError(f"{index}: its shards must be names of files beside it")
    names = sorted(set(names))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise CheckpointError(f"{index}: shard {missing[0] if missing else '?'} is missing")
    return [index.parent / name for name in names]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a message of one line."""
    return (str(error).splitlines() or [repr(error)])[0]
