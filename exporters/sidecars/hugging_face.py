"""The files beside an exported model that Hugging Face's libraries read: config and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

from gpt2kit.config import GPT2Config
from gpt2kit.errors import ExportError, GPT2KitError
from gpt2kit.tokenizer import Tokenizer
from gpt2kit.torch_engine.runner import TorchRunner


def _sidecars(runner: TorchRunner) -> dict[str, str]:
    """File name -> content."""
    config = runner.config
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    generation = {"_from_model_config": True, **ids}
    out = {
        "config.json": json.dumps(config.to_hf(), indent=2) + "\n",
        "generation_config.json": json.dumps(generation, indent=2) + "\n",
    }
    if runner.tokenizer is not None:
        out["tokenizer.json"] = runner.tokenizer.to_json()
    return out


def new_sidecars(runner: TorchRunner, folder: Path, overwrite: bool) -> dict[str, str]:
    """File name -> content of the files to write.

    Every file if the folder has no such file, or with `overwrite`; else the missing ones.
    Raises ExportError if the folder has files of another model.
    """
    wanted = _sidecars(runner)
    present = [name for name in wanted if (folder / name).is_file()]
    if overwrite or not present:
        return wanted
    if not _is_same_model(runner, folder):
        raise ExportError(
            f"{folder / present[0]} belongs to another model; export into a folder of its own, or "
            "allow overwriting"
        )
    return {name: text for name, text in wanted.items() if name not in present}


def _is_same_model(runner: TorchRunner, folder: Path) -> bool:
    """Whether a folder's config and tokenizer are the runner's; it may lack a tokenizer."""
    ours = runner.tokenizer and runner.tokenizer.to_json()
    try:
        found = Tokenizer.from_folder(folder)
        same_config = GPT2Config.from_file(folder / "config.json") == runner.config
        return same_config and (found is None or found.to_json() == ours)
    except GPT2KitError:
        return False
