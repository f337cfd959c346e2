"""Trace a model to an ONNX graph, and simplify the graph."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import onnx_ir
import torch

from exporters.file.names import edit_names, present_names
from exporters.tracing.example_inputs import example_inputs
from exporters.tracing.fused import FusedModule
from exporters.tracing.fusions import drop_reshapes, join_gelus, join_norms, join_projections
from exporters.tracing.plan import Plan
from exporters.tracing.portable import PortableModule
from gpt2kit.errors import ExportError
from gpt2kit.model import GPT2
from gpt2kit.taps import axes_of

_MODULES = {"portable": PortableModule, "fused": FusedModule}


def trace(model: GPT2, plan: Plan) -> torch.onnx.ONNXProgram:
    """The graph of a model whose weights have the plan's dtype, or are packed.

    Raises ExportError if torch cannot trace it.
    """
    try:
        with _quiet():
            program = _traced(model, plan)
    except Exception as error:  # torch.onnx wraps whatever went wrong
        reason = (str(error).strip().splitlines() or [repr(error)])[-1]
        raise ExportError(
            f"the model could not be traced at opset {plan.opset}: {reason}"
        ) from error
    _simplify(program.model.graph, plan)
    _make_edits_optional(program.model.graph, plan)
    return program


def _traced(model: GPT2, plan: Plan) -> torch.onnx.ONNXProgram:
    inputs = example_inputs(model.config, plan)
    program = torch.onnx.export(
        _MODULES[plan.profile](model, plan.taps, plan.edits).eval(),
        tuple(inputs.values),
        dynamo=True,
        opset_version=plan.opset,
        input_names=inputs.names,
        output_names=["logits", *present_names(model.config.n_layer), *plan.taps],
        dynamic_shapes=tuple(inputs.axes),
        verbose=False,
    )
    assert program is not None
    return program


def _simplify(graph: onnx_ir.Graph, plan: Plan) -> None:
    drop_reshapes(graph)
    if plan.profile == "fused":
        join_projections(graph)
        join_gelus(graph)
        if plan.dtype != "float32":  # for CUDA; on the CPU, the joined kernel is the slower one
            join_norms(graph)


def _make_edits_optional(graph: onnx_ir.Graph, plan: Plan) -> None:
    """Give the two inputs of every edit the defaults 1 and 0, which change nothing.

    In ONNX, an input with an initializer of its name is optional.
    """
    inputs = {value.name: value for value in graph.inputs}
    for tap in plan.edits:
        axes = axes_of(tap)
        for name, default in zip(edit_names(tap), (1, 0), strict=True):
            value = inputs[name]
            value.shape = onnx_ir.Shape([f"{name}.{axis}" for axis in axes])
            array = np.full((1,) * len(axes), default, np.float32)
            value.const_value = onnx_ir.tensor(array, name=name)
            graph.register_initializer(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's warnings about optional packages and names of axes."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
