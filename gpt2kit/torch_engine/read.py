"""Read a checkpoint folder into a model, and check every tensor on the way."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointError
from gpt2kit.model import GPT2
from gpt2kit.torch_engine.find import WEIGHT_FILES, first_line, weight_files

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_config(folder: Path) -> GPT2Config:
    """The config of a checkpoint folder."""
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder}: no config.json; is it a Hugging Face checkpoint folder?")
    return GPT2Config.from_file(file)


def read_model(folder: Path, device: str, dtype: torch.dtype) -> GPT2:
    """The model with its weights; they are memory mapped unless they have to be converted.

    Raises CheckpointError for the first tensor that is missing, unexpected, of a wrong shape, or
    not finite.
    """
    config = read_config(folder)
    files = weight_files(folder)
    if not files:
        raise CheckpointError(f"{folder}: no weights; expected one of {', '.join(WEIGHT_FILES)}")
    with torch.device("meta"):
        model = GPT2(config)
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= read_safetensors(file) if file.suffix == ".safetensors" else _read_bin(file)
    weights = _canonical(weights, config, folder)
    _check_weights(weights, model.state_dict(), folder)
    weights = {name: x.to(device=device, dtype=dtype) for name, x in weights.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


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
        raise CheckpointError(f"{file}: not a readable checkpoint ({first_line(error)})") from error
    if not isinstance(weights, Mapping) or not all(isinstance(x, Tensor) for x in weights.values()):
        raise CheckpointError(f"{file}: not a mapping from names to tensors")
    return dict(weights)


def _canonical(
    weights: Mapping[str, Tensor], config: GPT2Config, folder: Path
) -> dict[str, Tensor]:
    """Drop the prefix `transformer.`, the causal masks, and the tied copy of the embedding."""
    named = {name.removeprefix("transformer."): x for name, x in weights.items()}
    named = {k: x for k, x in named.items() if not k.endswith((".attn.bias", ".attn.masked_bias"))}
    if config.tie_word_embeddings and "lm_head.weight" in named:
        head = named.pop("lm_head.weight")
        table = named.setdefault("wte.weight", head)  # either name may be the one that was saved
        if not torch.equal(head.to(table.dtype), table):
            raise CheckpointError(
                f"{folder}: lm_head.weight differs from wte.weight, but config.json ties them; "
                "set tie_word_embeddings to false or remove lm_head.weight"
            )
    return named


def _check_weights(
    weights: Mapping[str, Tensor], model: Mapping[str, Tensor], folder: Path
) -> None:
    """Raise CheckpointError unless names and shapes of the weights are the model's."""
    for name, x in model.items():
        if name not in weights:
            raise CheckpointError(
                f"{folder}: {name} {tuple(x.shape)} is missing from the weights"
                f"{_more(model, weights)}"
            )
        _check_tensor(f"{folder}: {name}", weights[name], tuple(x.shape))
    extra = [name for name in weights if name not in model]
    if extra:
        raise CheckpointError(
            f"{folder}: {extra[0]} {tuple(weights[extra[0]].shape)} is no part of this "
            f"GPT-2{_more(weights, model)}"
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


def _more(names: Iterable[str], known: Mapping[str, Tensor]) -> str:
    """ " (and 3 more)": how many further names are not known; "" for none."""
    others = sum(name not in known for name in names) - 1
    return f" (and {others} more)" if others else ""
