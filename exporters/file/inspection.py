"""`inspect_onnx`: what an exported file is. Nothing is run, and the weights stay on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir

from exporters.file import mapped
from exporters.file.agreement import check_agreement
from exporters.file.external import check_data, files_of, read_graph
from exporters.file.metadata import FileMetadata
from exporters.file.names import edit_names, existing, parity_file
from gpt2kit.config import GPT2Config
from gpt2kit.edit_arrays import Chunk
from gpt2kit.errors import EngineError, GPT2KitError
from gpt2kit.result import Result, Row
from gpt2kit.taps import axes_of

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, eq=False)
class Inspection(Result):
    """What `inspect_onnx` finds.

    size: bytes, external weights included.
    version: the gpt2kit that wrote the file.
    model, revision: the source of the weights.
    config: the model's configuration, as config.json has it.
    inputs, outputs: name -> type and shape, without taps and the inputs of edits.
    taps: name -> axes.
    edits: name -> the shape that its two inputs broadcast to; an axis that varies from run to run
           is given by name.
    edits_required: whether every run must feed the inputs of edits.
    parity: summary of the parity report.
    proof: whether the whole report beside the file is "as written", "missing" or "changed".
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
    edits_required: bool
    parity: dict[str, Any]
    proof: str

    def __repr__(self) -> str:
        weights = f"{self.profile}, {self.quantize or self.dtype}"
        places = f"{len(self.taps)} taps, {len(self.edits)} edits"
        return f"Inspection({Path(self.path).name}: {self.model}, {weights}, {places})"

    def table(self) -> list[Row]:
        """One row for each fact about the file, then one for each input, output, tap and edit.

        Columns: section ("file", "inputs", "outputs", "taps", "edits"), name, value.
        """
        return [
            {"section": section, "name": name, "value": value}
            for section, values in {"file": self._facts(), **self._sections()}.items()
            for name, value in values.items()
        ]

    def render(self) -> RenderableType:
        """The facts about the file; then its inputs, outputs, taps and edits, layers together."""
        from exporters.file.inspection_view import facts_and_sections

        needed = "required" if self.edits_required else "optional"
        inputs = f"{needed} inputs {{tap}}.keep and {{tap}}.add, float32, each axis whole or 1"
        titles = {"edits": f"edits: {inputs}"}
        return facts_and_sections(self._facts(), self._sections(), titles)

    def _facts(self) -> dict[str, str]:
        c = self.config
        facts = {
            "file": f"{self.path}, {self.size / 1e6:.1f} MB",
            "model": self.model + (f" at {self.revision}" if self.revision else ""),
            "shape": f"{c['n_layer']} layers, {c['n_head']} heads, d_model {c['n_embd']}, "
            f"{c['vocab_size']} tokens, {c['n_positions']} positions",
            "weights": f"sha256 {self.weights_sha256[:16]}…",
            "made as": f"{self.profile}, {self.quantize or self.dtype}, opset {self.opset}, "
            f"gpt2kit {self.version}",
            "parity": self._verdict(),
            "proof": f"{parity_file(Path(self.path)).name}: {self.proof}",
        }
        if cost := self.parity.get("cost"):
            same = f"same top token {cost['top1']:.1%}"
            facts["cost"] = f"KL divergence {cost['kl']:.4f} nats, {same}"
        return facts

    def _verdict(self) -> str:
        quantity, error, case = self.parity["worst"]
        return (
            f"{'passed' if self.parity['passed'] else 'FAILED'}: {self.parity['cases']} cases, "
            f"worst error {error:.1e} at {quantity} in '{case}', "
            f"tolerance {self.parity['tolerance']:.0e}"
        )

    def _sections(self) -> dict[str, dict[str, str]]:
        return {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "taps": {tap: _shape_text(axes) for tap, axes in self.taps.items()},
            "edits": {tap: _shape_text(axes) for tap, axes in self.edits.items()},
        }


def inspect_onnx(path: str | os.PathLike[str]) -> Inspection:
    """Read what a file says about itself.

    Raises EngineError if it cannot be read, or if `export_onnx` did not make it.
    """
    file = existing(path)
    try:
        if (graph := read_graph(file)) is None:
            raise EngineError(f"{file}: not an ONNX file, or a damaged one")
        check_data(file, graph, whole=True)
        size = sum(part.stat().st_size for part in files_of(file, graph))
        return _inspection(file, graph, mapped.load_model(file), size)
    except GPT2KitError:
        raise
    except Exception as error:  # protobuf's own exceptions
        raise EngineError(f"{file}: not an ONNX file, or a damaged one") from error


def _inspection(file: Path, graph: onnx.ModelProto, model: onnx_ir.Model, size: int) -> Inspection:
    meta = FileMetadata.from_metadata(model.metadata_props, file)
    check_agreement(graph, meta, file)
    if meta.parity is None:
        raise EngineError(f"{file}: has no parity result; make it with `gpt2kit export --onnx`")
    edit_inputs = {name for tap in meta.edits for name in edit_names(tap)}
    return Inspection(
        path=str(file),
        size=size,
        version=meta.version,
        model=meta.model,
        revision=meta.revision,
        weights_sha256=meta.weights_sha256,
        config=meta.config.to_hf(),
        profile=meta.profile,
        dtype=meta.dtype,
        quantize=meta.quantize,
        opset=meta.opset,
        inputs=_types(model.graph.inputs, without=edit_inputs),
        outputs=_types(model.graph.outputs, without=meta.taps),
        taps={tap: axes_of(tap) for tap in meta.taps},
        edits={tap: _edit_shape(tap, meta.config) for tap in meta.edits},
        edits_required=not model.graph.initializers.keys() >= edit_inputs,
        parity=meta.parity,
        proof=_proof(file, meta.parity_sha256),
    )


def _edit_shape(tap: str, config: GPT2Config) -> tuple[str | int, ...]:
    """The axes of a tap: 'batch', 'pos', 'query' and 'key' by name, the others by their size."""
    chunk, axes = Chunk(np.zeros(1, np.int64), 0, 0), axes_of(tap)
    varying = ("batch", "pos", "query", "key")
    return tuple(axis if axis in varying else chunk.size(axis, config) for axis in axes)


def _types(values: Iterable[onnx_ir.Value], without: Collection[str]) -> dict[str, str]:
    """Name -> 'int64 (batch_size, sequence_length)', with ', optional' for such an input."""
    return {
        value.name: f"{str(value.dtype).lower()} {_shape_text(value.shape or ())}"
        + (", optional" if value.is_initializer() else "")
        for value in values
        if value.name and value.name not in without
    }


def _shape_text(shape: Iterable[Any]) -> str:
    return f"({', '.join(map(str, shape))})"


def _proof(file: Path, sha256: str | None) -> str:
    report = parity_file(file)
    if not report.is_file():
        return "missing"
    same = hashlib.sha256(report.read_bytes()).hexdigest() == sha256
    return "as written" if same else "changed"
