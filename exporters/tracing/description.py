"""Turn a traced program into a file that describes itself: names, shapes, metadata."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir
import torch

import gpt2kit
from exporters.file.metadata import FileMetadata
from exporters.tracing.plan import Plan
from gpt2kit.errors import ExportError
from gpt2kit.model import GPT2
from gpt2kit.torch_engine.digest import weights_sha256
from gpt2kit.torch_engine.runner import TorchRunner

# Length of an output in the trace -> its name. In fused files, the cache is a longer buffer.
_LENGTHS: dict[str, dict[str | int | None, str]] = {
    "portable": {"past_sequence_length + sequence_length": "total_sequence_length"},
    "fused": {"past_sequence_length": "present_length"},
}


def describe(
    program: torch.onnx.ONNXProgram, runner: TorchRunner, plan: Plan, traced: GPT2, weights: GPT2
) -> FileMetadata:
    """Replace the tracer's notes by the file's metadata, and return the metadata.

    traced: the model that was traced. weights: the model, rounded to the file's dtype.
    Raises ExportError if the graph lacks a weight of the model.
    """
    model = program.model
    _clear_notes(model)
    _name_weights(model.graph)
    _name_lengths(model.graph, plan.profile)
    model.graph.name = "gpt2"
    model.producer_name, model.producer_version = "gpt2kit", gpt2kit.__version__
    metadata = FileMetadata(
        version=gpt2kit.__version__,
        model=runner.source.model,
        revision=runner.source.revision,
        weights_sha256=weights_sha256(weights),
        config=runner.config,
        dtype=plan.dtype,
        quantize=plan.quantize,
        profile=plan.profile,
        opset=plan.opset,
        taps=plan.taps,
        edits=plan.edits,
        weights=_other_names(model.graph, traced),
    )
    model.metadata_props.update(metadata.to_metadata())
    return metadata


def _clear_notes(model: onnx_ir.Model) -> None:
    """Remove the tracer's notes, which include paths of this machine."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.graph.doc_string = model.doc_string = None
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def _name_weights(graph: onnx_ir.Graph) -> None:
    """Give weights their names in the checkpoint; in the trace, they belong to `model`."""
    for name in list(graph.initializers):
        graph.initializers[name].name = name.removeprefix("model.")


def _name_lengths(graph: onnx_ir.Graph, profile: str) -> None:
    """Give the lengths of outputs the names that other clients know."""
    names = _LENGTHS[profile]
    for value in graph.outputs:
        if value.shape is not None:
            axes = [axis if isinstance(axis, int) else axis.value for axis in value.shape]
            value.shape = onnx_ir.Shape([names.get(axis, axis) for axis in axes])


def _other_names(graph: onnx_ir.Graph, traced: GPT2) -> dict[str, str]:
    """Checkpoint name -> initializer, for weights that the graph holds under another name.

    Equal weights share one initializer; a weight that is only read reshaped, or cast, exists in
    that form alone. They are found by content.
    """
    unnamed = {
        name: np.asarray(x.float() if x.is_floating_point() else x)
        for name, x in traced.state_dict().items()
        if name not in graph.initializers
    }
    sizes = {x.size for x in unnamed.values()}
    by_content = {
        _content(value.const_value.numpy()): name
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.size in sizes
    }
    missing = [name for name, x in unnamed.items() if _content(x) not in by_content]
    if missing:
        raise ExportError(
            f"{missing[0]} is not in the traced graph; this is a bug in gpt2kit, please report it"
        )
    return {name: by_content[_content(x)] for name, x in unnamed.items()}


def _content(x: np.ndarray) -> tuple[bool, bytes]:
    """Hash of a weight's values; shape and floating-point dtype are ignored."""
    packed = x.dtype == np.uint8
    return packed, hashlib.sha256((x if packed else x.astype(np.float32)).tobytes()).digest()
