"""Files of tuned lenses: our own format, and the format in which the paper's authors publish."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2kit.errors import CheckpointError
from gpt2kit.json_files import parse_json
from gpt2kit.packages import explained_imports
from gpt2kit.readout import Floats

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = "gpt2kit tuned lens"

Parts = tuple[str, tuple[str, ...], Floats, Floats]  # the fields of a TunedLens


@explained_imports()
def write_saved(
    path: str | os.PathLike[str], source: str, sha256: Sequence[str], weight: Floats, bias: Floats
) -> None:
    """Write one safetensors file; its metadata names the model and its weights.

    weight, bias: written in the dtype that they have.
    """
    from safetensors.numpy import save

    tensors = {"weight": np.ascontiguousarray(weight), "bias": np.ascontiguousarray(bias)}
    metadata = {"format": _FORMAT, "source": source, "weights_sha256": " ".join(sha256)}
    Path(path).write_bytes(save(tensors, metadata))  # save_file lets nobody else read the file


@explained_imports()
def read_saved(path: Path) -> Parts:
    """Read what `write_saved` wrote; float16 becomes float32.

    Raises CheckpointError for any other file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            weight, bias = (file.get_tensor(name) for name in ("weight", "bias"))
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: numpy has no bfloat16
        raise CheckpointError(f"{path}: not a tuned lens that can be read ({error})") from error
    if metadata.get("format") != _FORMAT or not {"source", "weights_sha256"} <= metadata.keys():
        raise CheckpointError(f"{path}: not a tuned lens that gpt2kit saved")
    digests = tuple(metadata["weights_sha256"].split())
    return metadata["source"], digests, _at_least_float32(weight), _at_least_float32(bias)


@explained_imports()
def read_published(folder: Path) -> Parts:
    """Read config.json and params.pt. Raises CheckpointError if they do not fit each other.

    params.pt holds `{layer}.weight` and, unless the lens has no bias, `{layer}.bias` of torch's
    Linear, whose weight is (out, in), as in our files.
    """
    import torch

    try:
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
        layers, width = int(config["num_hidden_layers"]), int(config["d_model"])
        name = str(config.get("base_model_name_or_path", folder.name))
        state = torch.load(folder / "params.pt", map_location="cpu", weights_only=True)
        if not 0 < layers <= len(state):
            raise ValueError(f"{layers} layers in config.json, {len(state)} tensors in params.pt")
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(f"{folder}: not a tuned lens that can be read ({error!r})") from error
    shapes: dict[str, tuple[int, ...]] = {f"{i}.weight": (width, width) for i in range(layers)}
    if config.get("bias", True):
        shapes |= {f"{i}.bias": (width,) for i in range(layers)}
    _check_shapes(folder, state, shapes)
    weight = _stacked_parts([state[f"{i}.weight"] for i in range(layers)])
    no_bias = torch.zeros(width)
    bias = _stacked_parts([state.get(f"{i}.bias", no_bias) for i in range(layers)])
    return name, (), weight, bias


def _at_least_float32(x: Floats) -> Floats:
    return x.astype(np.promote_types(x.dtype, np.float32), copy=False)


def _check_shapes(
    folder: Path, state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise CheckpointError unless names and shapes of the tensors follow from config.json."""
    found = {key: tuple(getattr(x, "shape", ())) for key, x in state.items()}
    if found == shapes:
        return
    wrong = min(k for k in found.keys() | shapes if found.get(k) != shapes.get(k))
    raise CheckpointError(
        f"{folder}: params.pt has {wrong} {found.get(wrong, 'missing')}, its config.json asks "
        f"for {shapes.get(wrong, 'no such tensor')}"
    )


def _stacked_parts(parts: Sequence[Tensor]) -> Floats:
    """(layer, …) in float32."""
    return np.stack([part.float().numpy() for part in parts])
