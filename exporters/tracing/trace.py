"""From the module to a graph: what is asked for, the trace, and the description it carries."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir
import torch

import gpt2kit
from exporters.file.metadata import FileMetadata
from exporters.file.names import LOGITS_POSITIONS, edit_names, past_names, present_names
from exporters.tracing.fusions import drop_reshapes, join_gelus, join_norms, join_projections
from exporters.tracing.graphs import Fused, Portable
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ExportError
from gpt2kit.model import GPT2
from gpt2kit.taps import axes_of
from gpt2kit.torch_engine.digest import weights_sha256
from gpt2kit.torch_engine.dtypes import DTYPES
from gpt2kit.torch_engine.runner import TorchRunner

OPSETS = range(18, 25)
DEFAULT_OPSET = 23  # the first with Attention as one operator (benchmarks/figures.py compares)
EXPORT_DTYPES = ("float32", "float16", "bfloat16")
PROFILES = {"portable": Portable, "fused": Fused}


@dataclass(frozen=True)
class Plan:
    """What a file is to be: see `exporters.export_onnx`. taps, edits: canonical names."""

    taps: tuple[str, ...] = ()
    edits: tuple[str, ...] = ()
    profile: str = "portable"
    dtype: str = "float32"
    quantize: str | None = None
    opset: int = DEFAULT_OPSET


def trace(model: GPT2, plan: Plan) -> torch.onnx.ONNXProgram:
    """The graph of a model whose weights have the plan's dtype, or are packed."""
    example, inputs, shapes = _example(model.config, plan)
    try:
        with _quiet():
            program = torch.onnx.export(
                PROFILES[plan.profile](model, plan.taps, plan.edits).eval(),
                example,
                dynamo=True,
                opset_version=plan.opset,
                input_names=inputs,
                output_names=["logits", *present_names(model.config.n_layer), *plan.taps],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as error:  # torch.onnx wraps whatever went wrong
        reason = (str(error).strip().splitlines() or [repr(error)])[-1]
        raise ExportError(
            f"the model could not be traced at opset {plan.opset}: {reason}"
        ) from error
    assert program is not None
    graph = program.model.graph
    drop_reshapes(graph)
    if plan.profile == "fused":
        join_projections(graph)
        join_gelus(graph)
        if plan.dtype != "float32":  # for CUDA; the CPU's kernel is slower than its two parts
            join_norms(graph)
    _make_edits_optional(graph, plan)
    return program


def _example(config: GPT2Config, plan: Plan) -> tuple[tuple[Any, ...], list[str], tuple[Any, ...]]:
    """Inputs to trace with, their names, and which of their axes vary."""
    batch, sequence, past = 2, 3, 5  # any sizes, all different and above 1, so none is baked in
    shape = (batch, config.n_head, past, config.d_head)
    example: list[Any] = [
        *(torch.ones(batch, n, dtype=torch.long) for n in (sequence, past + sequence, sequence)),
        [
            tuple(torch.zeros(shape, dtype=DTYPES[plan.dtype]) for _ in ("key", "value"))
            for _ in range(config.n_layer)
        ],
    ]
    tokens = {0: "batch_size", 1: "sequence_length"}
    everything = {0: "batch_size", 1: "total_sequence_length"}
    earlier = {0: "batch_size", 2: "past_sequence_length"}
    inputs = ["input_ids", "attention_mask", "position_ids", *past_names(config.n_layer)]
    shapes: list[Any] = [tokens, everything, tokens, [(earlier, earlier)] * config.n_layer]
    if plan.profile == "fused":
        example.append(torch.zeros(batch, sequence + 1, dtype=torch.long))
        inputs.append(LOGITS_POSITIONS)
        shapes.append({0: "logits_batch", 1: "logits_length"})
    sizes = [2 + i for i in range(8)]
    changes, change_shapes = [], []
    for n, tap in enumerate(plan.edits):
        rank = len(axes_of(tap))
        changes.append(tuple(torch.ones(sizes[:rank]) for _ in ("keep", "add")))
        change_shapes.append(
            tuple({i: f"edit_{n}_{part}_{i}" for i in range(rank)} for part in ("keep", "add"))
        )
        inputs += edit_names(tap)
    return (*example, changes), inputs, (*shapes, change_shapes)


def _make_edits_optional(graph: onnx_ir.Graph, plan: Plan) -> None:
    """Give the inputs of every edit a default that changes nothing."""
    inputs = {value.name: value for value in graph.inputs}
    for tap in plan.edits:
        axes = axes_of(tap)
        for name, default in zip(edit_names(tap), (1, 0), strict=True):
            value = inputs[name]
            value.shape = onnx_ir.Shape([f"{name}.{axis}" for axis in axes])
            ones = np.full((1,) * len(axes), default, np.float32)
            value.const_value = onnx_ir.tensor(ones, name=name)
            graph.register_initializer(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about optional packages and axis names off the terminal."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def describe(
    program: torch.onnx.ONNXProgram, runner: TorchRunner, plan: Plan, traced: GPT2, weights: GPT2
) -> FileMetadata:
    """Replace the tracer's notes, local paths among them, by the file's metadata; return it.

    traced: the model that was traced. weights: the model, rounded to the file's dtype.
    """
    model = program.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    for name in list(model.graph.initializers):  # named as in the checkpoint
        model.graph.initializers[name].name = name.removeprefix("model.")
    length = {"fused": "present_length", "portable": "total_sequence_length"}[plan.profile]
    for value in model.graph.outputs:  # fused: longer than the past unless they share a buffer
        if value.shape is not None and (value.name or "").startswith("present."):
            value.shape = onnx_ir.Shape([*value.shape[:2], length, value.shape[3]])
    model.graph.name, model.graph.doc_string, model.doc_string = "gpt2", None, None
    model.graph.metadata_props.clear()
    model.producer_name, model.producer_version = "gpt2kit", gpt2kit.__version__
    model.metadata_props.clear()
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
        weights=_renamed(model.graph, traced),
    )
    model.metadata_props.update(metadata.to_metadata())
    return metadata


def _renamed(graph: onnx_ir.Graph, traced: GPT2) -> dict[str, str]:
    """Weights that the graph does not hold by their own names -> the names it holds them by.

    Equal weights share one initializer; one that is only read reshaped, or cast, becomes that.
    """
    lost = {
        name: np.asarray(x.float() if x.is_floating_point() else x)
        for name, x in traced.state_dict().items()
        if name not in graph.initializers
    }
    sizes = {x.size for x in lost.values()}
    held = {
        _content(value.const_value.numpy()): name
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.size in sizes
    }
    missing = [name for name, x in lost.items() if _content(x) not in held]
    if missing:
        raise ExportError(
            f"{missing[0]} is not in the traced graph; this is a bug in gpt2kit, please report it"
        )
    return {name: held[_content(x)] for name, x in lost.items()}


def _content(x: np.ndarray) -> tuple[bool, bytes]:
    """What tells two weights apart, of whatever shape and precision."""
    packed = x.dtype == np.uint8
    return packed, hashlib.sha256((x if packed else x.astype(np.float32)).tobytes()).digest()
