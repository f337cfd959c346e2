"""The small files beside a model: its config, its tokenizer, and the proof that torch agrees."""

from __future__ import annotations

import json
from pathlib import Path

from gpt2kit.config import GPT2Config
from gpt2kit.errors import ExportError, GPT2KitError
from gpt2kit.tokenizer import Tokenizer
from gpt2kit.torch_engine.runner import TorchRunner


def _sidecars(runner: TorchRunner) -> dict[str, str]:
    """File name -> content of what lies beside the model."""
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
    """The sidecars that are to be written: all, or those that this model's folder lacks.

    Raises ExportError if the folder holds another model's.
    """
    wanted = _sidecars(runner)
    there = [name for name in wanted if (folder / name).exists()]
    if overwrite or not there:
        return wanted
    ours = runner.tokenizer and runner.tokenizer.to_json()
    try:
        lies = Tokenizer.from_folder(folder)
        same = GPT2Config.from_file(folder / "config.json") == runner.config and (
            lies is None or lies.to_json() == ours
        )
    except GPT2KitError:
        same = False
    if not same:
        raise ExportError(
            f"{folder / there[0]} belongs to another model; export into a folder of its own, or "
            "allow overwriting"
        )
    return {name: text for name, text in wanted.items() if name not in there}
