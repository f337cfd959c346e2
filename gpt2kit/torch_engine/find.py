"""Find a checkpoint: a folder, the hub's cache, the hub, or the bundled model."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from gpt2kit.errors import CheckpointError, InputError
from gpt2kit.notes import note
from gpt2kit.runner import Source

BUNDLED = Path(__file__).parents[1] / "bundled"
WEIGHT_FILES = (  # in order of preference; an index names the shards it is split into
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
]
_SAFETENSORS, _PICKLES = ["model*.safetensors*"], ["pytorch_model*.bin*"]


@dataclass(frozen=True)
class Checkpoint:
    """A folder in Hugging Face layout, and the name that its user gave."""

    folder: Path
    source: Source


def find(model: str | os.PathLike[str], revision: str | None = None) -> Checkpoint:
    """Locate a model: a folder, a hub id, "bundled", or "auto".

    "auto" is gpt2 from the cache or the hub, else the bundled model with a warning on standard
    error. A model that is named explicitly never falls back. Raises CheckpointError.
    """
    if not isinstance(model, str | os.PathLike):
        raise InputError(f"model = {model!r} must be a folder, a hub id, 'bundled' or 'auto'")
    if revision is not None and not isinstance(revision, str):
        raise InputError(f"revision = {revision!r} must be a text: a branch, a tag or a commit")
    name = os.fspath(model)
    if not name:
        raise CheckpointError("the model's name is empty; give a folder, a hub id or 'bundled'")
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - Path's raises for an unknown ~user
    if name == "auto":
        return _find_auto(revision)
    if name == "bundled" or folder.is_dir() or folder.is_absolute() or name.startswith((".", "~")):
        if revision is not None:
            raise CheckpointError(f"{name}: revision {revision!r} given, but only hub ids have one")
        if name == "bundled":
            return Checkpoint(BUNDLED, Source("bundled"))
        if not folder.is_dir():
            raise CheckpointError(f"{name}: no such folder")
        return Checkpoint(folder, Source(folder.resolve().name))
    snapshot = from_hub(name, revision)
    return Checkpoint(snapshot, Source(name, snapshot.name))  # the folder is named by its commit


def _find_auto(revision: str | None) -> Checkpoint:
    try:
        snapshot = from_hub("gpt2", revision)
        return Checkpoint(snapshot, Source("gpt2", snapshot.name))
    except CheckpointError:
        if revision is not None:
            raise
    note(
        "gpt2 is neither cached nor reachable; using the small bundled model. For the "
        "real one, go online once with --model gpt2, or give --model FOLDER."
    )
    return find("bundled")


def from_hub(name: str, revision: str | None) -> Path:
    """The folder of a hub model: from the cache if it is complete there, else downloaded."""
    for local in (True, False):
        for patterns in (_SAFETENSORS, _PICKLES):
            folder = _download(name, revision, _SMALL_FILES + patterns, local=local)
            if folder is None:
                break
            try:
                if (folder / "config.json").is_file() and weight_files(folder):
                    return folder
            except CheckpointError:  # a shard is missing: the download was interrupted
                if not local:
                    raise
    raise CheckpointError(
        f"{name}: the hub (without a network, its cache) has no GPT-2 weights under that name"
    )


def _download(name: str, revision: str | None, patterns: list[str], *, local: bool) -> Path | None:
    """The snapshot's folder, or None if `local` is set and the cache does not have it."""
    import huggingface_hub  # takes a tenth of a second, which a local folder does not need
    from huggingface_hub import errors as hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=patterns, local_files_only=local
            )
        )
    except hub.LocalEntryNotFoundError as error:
        if local:
            return None
        raise CheckpointError(
            f"{name}: not a local folder, not in the cache, and the hub cannot be reached; "
            "check the network, or give a folder or 'bundled'"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise CheckpointError(f"{name}: the hub has no revision {revision!r}") from error
    except hub.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: no such model on the hub (or it needs a login), and no such folder"
        ) from error
    except Exception as error:  # an impossible id, a full disk, a lost connection
        raise CheckpointError(f"{name}: cannot be downloaded: {first_line(error)}") from error


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
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: not a readable index of shards ({error!r})") from error
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointError(f"{index}: its shards must be names of files beside it")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise CheckpointError(f"{index}: shard {missing[0] if missing else '?'} is missing")
    return [index.parent / name for name in names]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a message of one line."""
    return (str(error).splitlines() or [repr(error)])[0]
