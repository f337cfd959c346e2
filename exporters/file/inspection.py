"""What an exported file says of itself; nothing is run, and its weights stay on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from exporters.file import mapped
from exporters.file.metadata import FileMetadata
from exporters.file.names import data_file, edit_names, existing, parity_file
from gpt2kit.config import GPT2Config
from gpt2kit.edit_arrays import Chunk
from gpt2kit.errors import EngineError, GPT2KitError
from gpt2kit.taps import axes_of


@dataclass(frozen=True)
class Inspection:
    """See `inspect_onnx`.

    size: bytes, weights that lie beside the file included. inputs, outputs: name -> type and shape,
    taps and edits apart. taps: name -> axes. edits: name -> shape that its two inputs broadcast to,
    axes by name where they vary from run to run. parity: the
    verdict of the gate. proof: what became of the whole report beside the file: "as written",
    "missing" or "changed".
    """

    path: str
    size: int
    version: str
    model: str
    revision: str | None
    weights_sha256: str
    config: dict[str, Any]
    profile: str
    dtype: str
    quantize: str | None
    opset: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    taps: dict[str, tuple[str, ...]]
    edits: dict[str, tuple[str | int, ...]]
    parity: dict[str, Any]
    proof: str

    def to_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)


def inspect_onnx(path: str | os.PathLike[str]) -> Inspection:
    """Read a file that `export_onnx` made. Raises EngineError if it is none."""
    file = existing(path)
    try:
        model = mapped.load(file)
        return _described(file, model)
    except GPT2KitError:
        raise
    except Exception as error:  # protobuf's own exceptions
        raise EngineError(f"{file}: not an ONNX file, or a damaged one") from error


def _described(file: Path, model: onnx_ir.Model) -> Inspection:
    meta = FileMetadata.from_metadata(model.metadata_props, file)
    if meta.parity is None:
        raise EngineError(f"{file}: has no parity result; make it with `gpt2kit export --onnx`")
    changing = {name for tap in meta.edits for name in edit_names(tap)}
    outside = data_file(file)
    return Inspection(
        path=str(file),
        size=file.stat().st_size + (outside.stat().st_size if outside.exists() else 0),
        version=meta.version,
        model=meta.model,
        revision=meta.revision,
        weights_sha256=meta.weights_sha256,
        config=meta.config.to_hf(),
        profile=meta.profile,
        dtype=meta.dtype,
        quantize=meta.quantize,
        opset=meta.opset,
        inputs={v.name: _type(v) for v in model.graph.inputs if v.name and v.name not in changing},
        outputs={
            v.name: _type(v) for v in model.graph.outputs if v.name and v.name not in meta.taps
        },
        taps={tap: axes_of(tap) for tap in meta.taps},
        edits={tap: _shape(tap, meta.config) for tap in meta.edits},
        parity=meta.parity,
        proof=_proof(file, meta.parity_sha256),
    )


def _shape(tap: str, config: GPT2Config) -> tuple[str | int, ...]:
    """'batch' and 'pos' by name, the rest as the model has it."""
    chunk, axes = Chunk(np.zeros(1, np.int64), 0, 0), axes_of(tap)
    varying = ("batch", "pos", "query", "key")
    return tuple(axis if axis in varying else chunk.size(axis, config) for axis in axes)


def _types(values: Iterable[onnx_ir.Value], without: Collection[str]) -> dict[str, str]:
    return {v.name: _type(v) for v in values if v.name and v.name not in without}


def _type(value: onnx_ir.Value) -> str:
    """'int64 (batch_size, sequence_length)'."""
    shape = ", ".join(str(size) for size in value.shape or ())
    return f"{str(value.dtype).lower()} ({shape})"


def _proof(file: Path, digest: str | None) -> str:
    report = parity_file(file)
    if not report.is_file():
        return "missing"
    same = hashlib.sha256(report.read_bytes()).hexdigest() == digest
    return "as written" if same else "changed"
