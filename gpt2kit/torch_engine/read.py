"""Read a checkpoint folder into a model, and check every tensor on the way."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2kit.config import TOKEN_IDS, GPT2Config
from gpt2kit.errors import CheckpointError, ConfigError
from gpt2kit.json_files import read_object
from gpt2kit.model import GPT2
from gpt2kit.torch_engine.dtypes import converted
from gpt2kit.torch_engine.stored import Stored, own_names
from gpt2kit.torch_engine.weight_files import WEIGHT_FILES, first_line, weight_files
from gpt2kit.weight_names import weight_shapes

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_config(folder: Path) -> GPT2Config:
    """The config of a checkpoint folder; its token ids may still lie outside the vocabulary."""
    file = folder / "config.json"
    if file.is_file():
        return GPT2Config.sizes_from_file(file)
    if (folder / "ckpt.pt").is_file():
        raise _nanogpt(folder / "ckpt.pt")
    raise CheckpointError(f"{folder}: no config.json; is it a Hugging Face checkpoint folder?")


def _with_token_ids(config: GPT2Config, folder: Path) -> GPT2Config:
    """Check the special tokens, and take the end tokens of generation_config.json.

    As in transformers, config.json's end tokens count only without that file.
    """
    config.check_token_ids(folder / "config.json")
    file = folder / "generation_config.json"
    if not file.is_file():
        return config
    given = read_object(file)
    ids: dict[str, Any] = {name: given.get(name) for name in TOKEN_IDS}
    try:
        generation = replace(config, **ids)
    except ConfigError as error:
        raise ConfigError(f"{file}: {str(error).removeprefix('config: ')}") from error
    generation.check_token_ids(file)
    return replace(config, eos_token_id=generation.eos_token_id)


def read_model(folder: Path, device: str, dtype: torch.dtype) -> GPT2:
    """The model with its weights; they are memory mapped unless they have to be converted.

    Raises CheckpointError for the first tensor that is missing, unexpected, of a wrong shape, or
    not finite in the file or in `dtype`.
    """
    config = read_config(folder)
    files = weight_files(folder)
    if not files and (folder / "ckpt.pt").is_file():
        raise _nanogpt(folder / "ckpt.pt")
    if not files:
        raise CheckpointError(f"{folder}: no weights; expected one of {', '.join(WEIGHT_FILES)}")
    stored: list[Stored] = []
    for file in files:
        tensors = read_safetensors(file) if file.suffix == ".safetensors" else _read_bin(file)
        stored += [Stored(file, name, x) for name, x in tensors.items()]
    weights = own_names(stored, folder, tied=config.tie_word_embeddings)
    _check_weights(weights, config, folder)
    config = _with_token_ids(config, folder)
    weights = {k: converted(f"{folder}: {k}", x, dtype, device) for k, x in weights.items()}
    return GPT2.from_weights(config, weights)


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file by name, memory mapped."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({first_line(error)}); download it again"
        ) from error


def _read_bin(file: Path) -> dict[str, Tensor]:
    """All tensors of a .bin file by name. Code in the pickle is refused, not run."""
    try:
        mmap = zipfile.is_zipfile(file)  # files from before torch 1.6 cannot be mapped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files that it then refuses
            weights = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: refused, it is damaged or holds code or objects beside tensors; "
            "use safetensors"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise CheckpointError(f"{file}: not a readable checkpoint ({reason})") from error
    if isinstance(weights, Mapping) and "model_args" in weights:
        raise _nanogpt(file)
    if not isinstance(weights, Mapping) or not all(isinstance(x, Tensor) for x in weights.values()):
        raise CheckpointError(f"{file}: not a mapping from names to tensors")
    return dict(weights)


def _nanogpt(file: Path) -> CheckpointError:
    return CheckpointError(
        f"{file}: a nanoGPT checkpoint; to convert it, transpose the weights of c_attn, c_fc and "
        "both c_proj in checkpoint['model'], add zeros for missing biases, save it as "
        "pytorch_model.bin, and write config.json from checkpoint['model_args'] (block_size is "
        "n_positions, activation_function is gelu)"
    )


def _check_weights(weights: Mapping[str, Tensor], config: GPT2Config, folder: Path) -> None:
    """Raise CheckpointError unless names and shapes of the weights are the config's.

    Takes no longer for a config of a million layers: beyond the first layer that the weights lack,
    layers are only counted.
    """
    held = len({name.split(".")[1] for name in weights if name.startswith("h.")})
    layers = min(config.n_layer, held + 1)
    shapes = dict(weight_shapes(replace(config, n_layer=layers)))
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    beyond = (config.n_layer - layers) * sum(name.startswith("h.0.") for name in shapes)
    for name, shape in shapes.items():
        if name not in weights:
            more = _more(shapes, weights, beyond)
            raise CheckpointError(f"{folder}: {name} {shape} is missing from the weights{more}")
        _check_tensor(f"{folder}: {name}", weights[name], shape)
    extra = [name for name in weights if name not in shapes]
    if extra:
        raise CheckpointError(
            f"{folder}: {extra[0]} {tuple(weights[extra[0]].shape)} is no part of this "
            f"GPT-2{_more(weights, shapes)}"
        )


def _check_tensor(what: str, found: Tensor, shape: tuple[int, ...]) -> None:
    """Raise CheckpointError unless the tensor has this shape and holds finite floats."""
    if found.shape != shape:
        raise CheckpointError(
            f"{what} has shape {tuple(found.shape)}, config.json asks for {shape}"
        )
    if found.dtype not in _FLOATS:
        raise CheckpointError(f"{what} holds {found.dtype}, not floating point")
    low, high = torch.aminmax(found)  # one pass, no copy; NaN comes through
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise CheckpointError(f"{what} holds NaN or infinite values")


def _more(names: Iterable[str], known: Collection[str], beyond: int = 0) -> str:
    """ " (and 3 more)": how many further names are not known, `beyond` included; "" for none."""
    others = sum(name not in known for name in names) - 1 + beyond
    return f" (and {others} more)" if others else ""
