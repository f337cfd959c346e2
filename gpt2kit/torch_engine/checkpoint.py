"""Where weights come from, and what they must look like: folder, hub cache, hub, or bundled."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointError
from gpt2kit.model import GPT2
from gpt2kit.runner import Source

BUNDLED = Path(__file__).parents[1] / "bundled"
_SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
]
_WEIGHTS = (  # in order of preference; an index names the shards it is split into
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_SAFE, _PICKLED = ["model*.safetensors*"], ["pytorch_model*.bin*"]


@dataclass(frozen=True)
class Checkpoint:
    """A folder in Hugging Face layout, and how its user called it."""

    folder: Path
    source: Source


def find(model: str | os.PathLike[str], revision: str | None = None) -> Checkpoint:
    """Locate a model: a folder, a hub id, "bundled", or "auto".

    "auto" is gpt2 from the cache or the hub, else the bundled model with a warning on standard
    error. Whatever is named explicitly never falls back. Raises CheckpointError.
    """
    name = os.fspath(model)
    if not name:
        raise CheckpointError("the model's name is empty; give a folder, a hub id or 'bundled'")
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - Path's raises for an unknown ~user
    if name == "auto":
        return _auto(revision)
    if name == "bundled" or folder.is_dir() or folder.is_absolute() or name.startswith((".", "~")):
        if revision is not None:
            raise CheckpointError(f"{name}: revision {revision!r} given, but only hub ids have one")
        if name == "bundled":
            return Checkpoint(BUNDLED, Source("bundled"))
        if not folder.is_dir():
            raise CheckpointError(f"{name}: no such folder")
        return Checkpoint(folder, Source(folder.resolve().name))
    snapshot = _from_hub(name, revision)
    return Checkpoint(snapshot, Source(name, snapshot.name))  # the folder is named by its commit


def _auto(revision: str | None) -> Checkpoint:
    try:
        snapshot = _from_hub("gpt2", revision)
        return Checkpoint(snapshot, Source("gpt2", snapshot.name))
    except CheckpointError:
        if revision is not None:
            raise
    print(
        "gpt2kit: gpt2 is neither cached nor reachable; using the small bundled model. For the "
        "real one, go online once with --model gpt2, or give --model FOLDER.",
        file=sys.stderr,
    )
    return find("bundled")


def _from_hub(name: str, revision: str | None) -> Path:
    """The snapshot's folder, from the cache if it is whole there, else downloaded."""
    import huggingface_hub  # a tenth of a second that a local folder need not wait for
    from huggingface_hub import errors as hub

    for local in (True, False):
        for weights in (_SAFE, _PICKLED):
            try:
                folder = Path(
                    huggingface_hub.snapshot_download(
                        name,
                        revision=revision,
                        allow_patterns=_SMALL_FILES + weights,
                        local_files_only=local,
                    )
                )
            except hub.LocalEntryNotFoundError as error:
                if local:
                    break
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
                raise CheckpointError(f"{name}: cannot be downloaded: {_line(error)}") from error
            try:
                if (folder / "config.json").is_file() and _weight_files(folder):
                    return folder
            except CheckpointError:  # a download that was cut short
                if not local:
                    raise
    raise CheckpointError(
        f"{name}: the hub (without a network, its cache) has no GPT-2 weights under that name"
    )


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, all there; [] if there are none."""
    for name in _WEIGHTS:
        file = folder / name
        if not file.is_file():
            continue
        if not name.endswith(".index.json"):
            return [file]
        try:
            shards = sorted(
                set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{file}: not a readable index of shards ({error!r})") from error
        if not all(isinstance(shard, str) and Path(shard).name == shard for shard in shards):
            raise CheckpointError(f"{file}: its shards must be names of files beside it")
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing or not shards:
            raise CheckpointError(f"{file}: shard {missing[0] if missing else '?'} is missing")
        return [folder / shard for shard in shards]
    return []


def read_config(folder: Path) -> GPT2Config:
    """The config of a checkpoint folder."""
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder}: no config.json; is it a Hugging Face checkpoint folder?")
    return GPT2Config.from_file(file)


def read_model(folder: Path, device: str, dtype: torch.dtype) -> GPT2:
    """The model with its weights, memory mapped where no conversion is asked for.

    Raises CheckpointError on the first tensor that is missing, extra, misshapen or not finite.
    """
    config = read_config(folder)
    files = _weight_files(folder)
    if not files:
        raise CheckpointError(f"{folder}: no weights; expected one of {', '.join(_WEIGHTS)}")
    with torch.device("meta"):
        model = GPT2(config)
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= _read_safetensors(file) if file.suffix == ".safetensors" else _read_bin(file)
    weights = _canonical(weights, config, folder)
    _check(weights, model.state_dict(), folder)
    weights = {name: x.to(device=device, dtype=dtype) for name, x in weights.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({_line(error)}); download it again"
        ) from error


def _read_bin(file: Path) -> dict[str, Tensor]:
    try:
        mmap = zipfile.is_zipfile(file)  # files from before torch 1.6 are not, and load as well
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on what it then refuses
            weights = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: refused, it is damaged or holds code or objects beside tensors; "
            "use safetensors"
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(f"{file}: not a readable checkpoint ({_line(error)})") from error
    if not isinstance(weights, Mapping) or not all(isinstance(x, Tensor) for x in weights.values()):
        raise CheckpointError(f"{file}: not a mapping from names to tensors")
    return dict(weights)


def _canonical(
    weights: Mapping[str, Tensor], config: GPT2Config, folder: Path
) -> dict[str, Tensor]:
    """Names without `transformer.`; causal masks and the tied copy of the embedding dropped."""
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


def _check(weights: Mapping[str, Tensor], model: Mapping[str, Tensor], folder: Path) -> None:
    for name, x in model.items():
        if name not in weights:
            raise CheckpointError(
                f"{folder}: {name} {tuple(x.shape)} is missing from the weights"
                f"{_more(model, weights)}"
            )
        found = weights[name]
        if found.shape != x.shape:
            raise CheckpointError(
                f"{folder}: {name} has shape {tuple(found.shape)}, config.json asks for "
                f"{tuple(x.shape)}"
            )
        if found.dtype not in _DTYPES:
            raise CheckpointError(f"{folder}: {name} holds {found.dtype}, not floating point")
        low, high = torch.aminmax(found)  # one pass, no copy; NaN comes through
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise CheckpointError(f"{folder}: {name} holds NaN or infinite values")
    extra = [name for name in weights if name not in model]
    if extra:
        raise CheckpointError(
            f"{folder}: {extra[0]} {tuple(weights[extra[0]].shape)} is no part of this "
            f"GPT-2{_more(weights, model)}"
        )


def _more(these: Iterable[str], those: Mapping[str, Tensor]) -> str:
    others = sum(name not in those for name in these) - 1
    return f" (and {others} more)" if others else ""


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [repr(error)])[0]


def weights_sha256(model: GPT2, rounded: torch.dtype | None = None) -> str:
    """Digest of every weight: its name, dtype, shape and bytes, in the order of the module.

    rounded: a dtype that the weights are rounded to first, and then taken as float32; that is the
             digest of a file exported in that dtype. By default they are taken as they are.
    """
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        x = weight if rounded is None else weight.to(rounded).float()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
