"""Make the inputs that only gpt2kit knows optional, so that other clients can run the file.

In ONNX, an input with an initializer of its name is optional.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.file.names import LOGITS_POSITIONS, edit_names
from exporters.tracing.plan import Plan
from gpt2kit.taps import axes_of


def give_defaults(graph: ir.Graph, plan: Plan, n_positions: int) -> None:
    """Give defaults to the inputs of edits and to `logits_positions`; name their axes.

    The defaults of an edit are 1 and 0, which change nothing. By default, every column gets logits.
    """
    inputs = {value.name: value for value in graph.inputs}
    if LOGITS_POSITIONS in inputs:
        _cut_to_width(graph, inputs[LOGITS_POSITIONS], inputs["input_ids"])
        _make_optional(graph, inputs[LOGITS_POSITIONS], np.arange(n_positions)[None])
    for tap in plan.edits:
        axes = axes_of(tap)
        for name, default in zip(edit_names(tap), (1, 0), strict=True):
            inputs[name].shape = ir.Shape([f"{name}.{axis}" for axis in axes])
            if not plan.edits_required:
                identity = np.full((1,) * len(axes), default, np.float32)
                _make_optional(graph, inputs[name], identity)


def _make_optional(graph: ir.Graph, value: ir.Value, default: np.ndarray) -> None:
    value.const_value = ir.tensor(default, name=value.name)
    graph.register_initializer(value)


def _cut_to_width(graph: ir.Graph, positions: ir.Value, ids: ir.Value) -> None:
    """Let the graph read at most as many `logits_positions` as `input_ids` has columns.

    So the default may name every column that there can be. The Slice is added after the trace, in
    which it would tie the two sizes together. It reads its end on the host (see `FusedModule`).
    """
    cut = ir.Value(name=f"{LOGITS_POSITIONS}.cut", shape=positions.shape, type=positions.type)
    positions.replace_all_uses_with(cut)
    positions.shape = ir.Shape([f"{LOGITS_POSITIONS}.batch", f"{LOGITS_POSITIONS}.pos"])
    width = ir.node("Shape", [ids], {"start": 1, "end": 2})
    start, axis = (ir.node("Constant", [], {"value": ir.tensor(np.array([n]))}) for n in (0, 1))
    ends = (node.outputs[0] for node in (start, width, axis))
    slice_node = ir.node("Slice", [positions, *ends], outputs=[cut])
    graph.insert_before(graph[0], (width, start, axis, slice_node))
