"""The files beside an exported model that other libraries read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporters.file.names import sidecar_folder
from exporters.sidecars.genai import genai_config
from exporters.sidecars.generation import generation_config
from exporters.sidecars.tokenizer_config import tokenizer_config
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ExportError, GPT2KitError
from gpt2kit.tokenizer import Tokenizer
from gpt2kit.torch_engine.runner import TorchRunner

GENAI = "genai_config.json"  # about one ONNX file; the other sidecars are about the model


def _sidecars(runner: TorchRunner, target: Path, profile: str) -> dict[str, str]:
    """File name -> content."""
    relative = target.absolute().relative_to(sidecar_folder(target).absolute()).as_posix()
    contents: dict[str, Mapping[str, Any]] = {
        "config.json": runner.config.to_hf(),
        "generation_config.json": generation_config(runner),
        GENAI: genai_config(runner, relative, profile),
    }
    if runner.tokenizer is not None:
        contents["tokenizer_config.json"] = tokenizer_config(runner, runner.tokenizer)
    texts = {name: _as_text(name, content) for name, content in contents.items()}
    if runner.tokenizer is not None:
        texts["tokenizer.json"] = runner.tokenizer.to_json()
    return texts


def _as_text(name: str, content: Mapping[str, Any]) -> str:
    """JSON. Raises ExportError for NaN and infinity, which only some of its readers know."""
    try:
        return json.dumps(content, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise ExportError(f"{name}: a setting of the checkpoint is no finite number") from error


def new_sidecars(
    runner: TorchRunner, target: Path, profile: str, overwrite: bool
) -> dict[str, str]:
    """File name -> content of the files to write for the ONNX file `target`.

    Every file if the folder has no such file, or with `overwrite`; else the missing ones, and
    genai_config.json, which names the file exported last.
    Raises ExportError if the folder has files of another model.
    """
    wanted = _sidecars(runner, target, profile)
    folder = sidecar_folder(target)
    present = [name for name in wanted if (folder / name).is_file()]
    if overwrite or not present:
        return wanted
    if not _is_same_model(runner, folder):
        raise ExportError(
            f"{folder / present[0]} belongs to another model; export into a folder of its own, or "
            "allow overwriting"
        )
    return {name: text for name, text in wanted.items() if name == GENAI or name not in present}


def _is_same_model(runner: TorchRunner, folder: Path) -> bool:
    """Whether a folder's config and tokenizer are the runner's; it may lack a tokenizer."""
    ours = runner.tokenizer and runner.tokenizer.to_json()
    try:
        found = Tokenizer.from_folder(folder)
        same_config = GPT2Config.from_file(folder / "config.json") == runner.config
        return same_config and (found is None or found.to_json() == ours)
    except GPT2KitError:
        return False
