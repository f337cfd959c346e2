"""`load`: a model by its name, ready to run."""

from __future__ import annotations

import os

import torch

from gpt2kit.checks import check_choice, short
from gpt2kit.errors import InputError
from gpt2kit.json_files import read_object
from gpt2kit.packages import explained_imports
from gpt2kit.tokenizer import Tokenizer
from gpt2kit.torch_engine.dtypes import DTYPES
from gpt2kit.torch_engine.find import find
from gpt2kit.torch_engine.read import read_model
from gpt2kit.torch_engine.runner import TorchRunner
from gpt2kit.torch_engine.weight_files import first_line


@explained_imports()
def load(
    model: str | os.PathLike[str] = "auto",
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> TorchRunner:
    """Load a GPT-2 from a folder in Hugging Face layout, a hub id, "bundled" or "auto".

    revision: branch, tag or commit of a hub id.
    device: "cpu", "cuda", …, or "auto": CUDA if torch can use it, else the CPU.
    dtype: "float32", "float16", "bfloat16" or "float64"; weights in the file are converted.
    Raises CheckpointError, ConfigError or InputError; each message says what to do.
    """
    check_choice("dtype", dtype, DTYPES)
    device = choose_device(device)
    found = find(model, revision)
    module = read_model(found.folder, device, DTYPES[dtype])
    tokenizer = Tokenizer.from_folder(found.folder)
    generation = read_object(found.folder / "generation_config.json")
    return TorchRunner(module, tokenizer, found.source, generation)


def choose_device(device: str) -> str:
    """The torch device to use; "auto" is CUDA if torch can use it, else the CPU.

    Raises InputError for a device that torch does not know or cannot use.
    """
    if not isinstance(device, str):
        raise InputError(f"device = {device!r} must be a text, such as 'cpu' or 'cuda'")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(
            f"device {device!r} is not one that torch knows; try cpu or cuda"
        ) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device {device!r}: torch sees no CUDA here; `gpt2kit doctor` says what is missing"
        )
    try:
        torch.ones(1, device=device).item()
    except Exception as error:  # mps on Linux, cuda:9, meta: each backend has errors of its own
        raise InputError(
            f"device {device!r} cannot be used here ({short(first_line(error))}); try cpu or cuda"
        ) from error
    return device
