"""Whether the metadata of a file says what its graph is.

Metadata is text that anybody can change. What the engine and the check against torch rely on is
compared with the inputs, outputs, weights and attributes of the graph itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto

from exporters.file.metadata import FileMetadata
from exporters.file.names import (
    LOGITS_POSITIONS,
    edit_names,
    is_edit_input,
    past_names,
    present_names,
)
from exporters.file.packing import BITS
from gpt2kit.errors import EngineError
from gpt2kit.weight_names import weight_shapes

_DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}


def check_agreement(model: onnx.ModelProto, metadata: FileMetadata, path: Path) -> None:
    """Raise EngineError with the first point where the metadata contradicts the graph."""
    for said, found in _contradictions(model, metadata):
        raise EngineError(
            f"{path}: its metadata says {said}, but its graph {found}; export it again"
        )


def _contradictions(model: onnx.ModelProto, meta: FileMetadata) -> Iterator[tuple[str, str]]:
    """(what the metadata says, what the graph has) wherever they differ."""
    inputs = {value.name: value for value in model.graph.input}
    outputs = {value.name: value for value in model.graph.output}
    yield from _sizes(inputs, outputs, meta)  # first: what follows takes time for each layer
    standard = {"input_ids", "attention_mask", "position_ids", *past_names(meta.config.n_layer)}
    edits = set(filter(is_edit_input, inputs))
    yield from _names("input", standard, set(inputs) - edits - {LOGITS_POSITIONS})
    presents = present_names(meta.config.n_layer)
    yield from _names("output", {"logits", *presents}, {"logits", *presents} & set(outputs))
    opset = {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}
    yield from _differ("opset", meta.opset, opset)
    fused = LOGITS_POSITIONS in inputs
    yield from _differ("profile", meta.profile, {"fused" if fused else "portable"})
    taps = {name for name in outputs if name != "logits" and not name.startswith("present.")}
    yield from _names("taps", set(meta.taps), taps)
    yield from _names("edits", {name for tap in meta.edits for name in edit_names(tap)}, edits)
    yield from _weights(model, meta)
    epsilons = {
        attribute.f
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == "epsilon"
    }
    if epsilons:  # a graph with taps of the norm may have none
        epsilon = float(np.float32(meta.config.layer_norm_epsilon))
        yield from _differ("layer_norm_epsilon", epsilon, epsilons)


def _sizes(
    inputs: Mapping[str, ValueInfoProto], outputs: Mapping[str, ValueInfoProto], meta: FileMetadata
) -> Iterator[tuple[str, str]]:
    """Layers, heads, width, vocabulary and dtype, as the cache and the logits have them."""
    config = meta.config
    layers = sum(bool(re.fullmatch(r"past_key_values\.\d+\.key", name)) for name in inputs)
    yield from _differ("n_layer", config.n_layer, {layers})
    if (past := inputs.get("past_key_values.0.key")) is not None:
        _, heads, _, width = _shape(past, 4)
        yield from _differ("n_head", config.n_head, {heads})
        yield from _differ("n_embd", config.n_embd, {heads * width if heads and width else None})
        element = past.type.tensor_type.elem_type
        yield from _differ("dtype", meta.dtype, {_DTYPES.get(element, "another")})
    if (logits := outputs.get("logits")) is not None:
        yield from _differ("vocab_size", config.vocab_size, {_shape(logits, 3)[-1]})


def _weights(model: onnx.ModelProto, meta: FileMetadata) -> Iterator[tuple[str, str]]:
    """Tied or not, quantised or not, and the number of values of each weight."""
    held = {weight.name: weight for weight in model.graph.initializer}

    def find(name: str) -> TensorProto | None:
        return held.get(meta.weights.get(name, name))

    untied = any(find(f"lm_head.weight{end}") is not None for end in ("", ".packed"))
    yield from _differ("tie_word_embeddings", meta.config.tie_word_embeddings, {not untied})
    packed = any(name.endswith(".packed") for name in held)
    if packed != (meta.quantize is not None) or meta.quantize not in {None, *BITS}:
        yield f"quantize = {meta.quantize!r}", f"is {'' if packed else 'not '}quantised"
    for name, shape in weight_shapes(meta.config).items():
        if name == "lm_head.weight" and not untied:
            continue
        bits = _bits(name, meta.quantize) if len(shape) == 2 else None
        weight = find(f"{name}.packed" if bits else name)
        wanted = math.prod(shape) * (bits or 8) // 8  # values, or bytes of a packed matrix
        # One that is missing may have been renamed by another tool; reading it is an error.
        found = wanted if weight is None else math.prod(weight.dims)
        if found != wanted:
            yield f"{name} {shape} as {meta.precision}", f"holds {found} numbers of {wanted}"


def _bits(name: str, quantize: str | None) -> int | None:
    """Bits of a matrix in a quantised file; None if it is not quantised."""
    if quantize is None or name == "wpe.weight":
        return None
    of_layers, of_tables = BITS[quantize]
    return of_layers if name.startswith("h.") else of_tables


def _names(what: str, said: set[str], found: set[str]) -> Iterator[tuple[str, str]]:
    if missing := sorted(said - found):
        yield f"that it carries the {what} {missing[0]}", "does not"
    if more := sorted(found - said):
        yield f"that it carries no {what} {more[0]}", "does"


def _differ(what: str, said: Any, found: set[Any]) -> Iterator[tuple[str, str]]:
    """found: what the graph has; None where it does not say."""
    for value in sorted(found - {said, None}, key=repr):
        yield f"{what} = {said!r}", f"has {value!r}"


def _shape(value: ValueInfoProto, rank: int) -> list[int | None]:
    """Sizes of the axes; None for one that varies."""
    sizes = [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
    return sizes if len(sizes) == rank else [None] * rank
