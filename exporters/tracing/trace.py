"""Trace a model to an ONNX graph, and simplify the graph."""

from __future__ import annotations

import onnx
import onnx_ir
import onnxscript  # noqa: F401 - torch.onnx needs it: a missing one is found before the work
import torch

from exporters.file.names import present_names
from exporters.tracing.example_inputs import example_inputs
from exporters.tracing.fused import FusedModule
from exporters.tracing.fusions import drop_reshapes, join_gelus, join_norms, join_projections
from exporters.tracing.optional_inputs import give_defaults
from exporters.tracing.plan import Plan
from exporters.tracing.portable import PortableModule
from exporters.tracing.warned import expected_warnings_only
from gpt2kit.errors import ExportError
from gpt2kit.model import GPT2

_MODULES = {"portable": PortableModule, "fused": FusedModule}


def trace(model: GPT2, plan: Plan) -> torch.onnx.ONNXProgram:
    """The graph of a model whose weights have the plan's dtype, or are packed.

    Raises ExportError if torch cannot trace it, or warns about something unexpected.
    """
    with expected_warnings_only():
        try:
            program = _traced(model, plan)
        except Exception as error:  # torch.onnx wraps whatever went wrong
            if stop := _interruption(error):
                raise stop from None
            reason = (str(error).strip().splitlines() or [repr(error)])[-1]
            raise ExportError(
                f"the model could not be traced at opset {plan.opset}: {reason}"
            ) from error
    _simplify(program.model.graph, plan)
    give_defaults(program.model.graph, plan, model.config.n_positions)
    program.model.ir_version = lowest_ir_version(plan.opset)
    return program


def _interruption(error: BaseException | None) -> BaseException | None:
    """What stopped the process (Ctrl-C, a signal), if an error was made of it; else None."""
    while error is not None and isinstance(error, Exception):
        error = error.__cause__ or error.__context__
    return error


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


def lowest_ir_version(opset: int) -> int:
    """The oldest file format that may hold this opset, so that older runtimes open the file."""
    version: int = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    return version
