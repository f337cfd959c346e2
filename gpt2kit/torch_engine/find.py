"""Find a checkpoint: a folder, the hub's cache, the hub, or the bundled model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gpt2kit import shipped
from gpt2kit.errors import CheckpointError, InputError
from gpt2kit.notes import note
from gpt2kit.runner import Source
from gpt2kit.torch_engine.hub import HubError, from_hub

AUTO_SECONDS = 5.0  # in which the hub must answer about "auto"
NAMED_SECONDS = 60.0  # in which it must answer about a model that the user named


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
            return Checkpoint(shipped.BUNDLED, Source("bundled"))
        if not folder.is_dir():
            raise CheckpointError(f"{name}: no such folder")
        return Checkpoint(folder, Source(folder.resolve().name))
    snapshot = from_hub(name, revision, NAMED_SECONDS)
    return Checkpoint(snapshot, Source(name, snapshot.name))  # the folder is named by its commit


def _find_auto(revision: str | None) -> Checkpoint:
    try:
        snapshot = from_hub("gpt2", revision, AUTO_SECONDS)
        return Checkpoint(snapshot, Source("gpt2", snapshot.name))
    except CheckpointError as error:
        if revision is not None:
            raise
        why = error.why if isinstance(error, HubError) else str(error)
    note(
        f"gpt2 is neither cached nor reachable ({why}); using the small bundled model. For the "
        "real one, go online once with --model gpt2, or give --model FOLDER."
    )
    return find("bundled")
