"""What is left to simplify in a traced graph, since a decode step is so short that nodes count.

Taps split the computation into named values; where no tap is asked for, reshapes that undo each
other remain, and are removed. In the fused profile, queries, keys and values go to the attention as
the one matrix they came as, and a bias into the GELU that reads it; for CUDA, a residual sum and
the layer norm of it become one node, which still gives the sum.
"""

from __future__ import annotations

import onnx_ir as ir


def drop_reshapes(graph: ir.Graph) -> None:
    """Let a reshape of a reshape read the original; drop it where that has the shape already."""
    for node in list(graph):
        if node.op_type != "Reshape":
            continue
        before = node.inputs[0]
        while (parent := _made_by(before, "Reshape")) is not None:
            before = parent.inputs[0]
        node.replace_input_with(0, before)
        out = node.outputs[0]
        same = before is not None and before.shape is not None and before.shape == out.shape
        if same and before is not None and not out.is_graph_output():
            out.replace_all_uses_with(before)
    _sweep(graph)


def join_projections(graph: ir.Graph) -> None:
    """Give GroupQueryAttention the matrix that its queries, keys and values were split from."""
    for node in graph:
        if node.op_type != "GroupQueryAttention":
            continue
        splits = {_made_by(value, "Split") for value in node.inputs[:3]}
        split = splits.pop()
        if not splits and split is not None and list(split.outputs) == list(node.inputs[:3]):
            node.replace_input_with(0, split.inputs[0])
            node.replace_input_with(1, None)
            node.replace_input_with(2, None)
    _sweep(graph)


def join_gelus(graph: ir.Graph) -> None:
    """Make a bias and the tanh GELU of what it is added to one FastGelu."""
    for gelu in list(graph):
        if gelu.op_type != "Gelu" or gelu.attributes["approximate"].as_string() != "tanh":
            continue
        add = _made_by(gelu.inputs[0], "Add")
        if add is None or len(add.outputs[0].uses()) > 1 or add.outputs[0].is_graph_output():
            continue
        x, bias = add.inputs
        if bias is None or bias.shape is None or not bias.is_initializer() or len(bias.shape) != 1:
            continue
        fused = ir.Node("com.microsoft", "FastGelu", [x, bias], num_outputs=1)
        graph.insert_before(gelu, fused)
        _take_over(gelu.outputs[0], fused.outputs[0])
    _sweep(graph)


def join_norms(graph: ir.Graph) -> None:
    """Make a sum and the layer norm of it one SkipLayerNormalization."""
    for norm in list(graph):
        if norm.op_type != "LayerNormalization":
            continue
        add = _made_by(norm.inputs[0], "Add")
        if add is None or add.inputs[0].shape != add.inputs[1].shape:  # type: ignore[union-attr]
            continue
        fused = ir.Node(
            "com.microsoft",
            "SkipLayerNormalization",
            [*add.inputs, *norm.inputs[1:]],
            [ir.AttrFloat32("epsilon", norm.attributes["epsilon"].as_float())],
            num_outputs=4,
        )
        graph.insert_before(add, fused)
        _take_over(norm.outputs[0], fused.outputs[0])
        _take_over(add.outputs[0], fused.outputs[3])
        graph.remove([norm, add], safe=True)
    _sweep(graph)


def _take_over(old: ir.Value, new: ir.Value) -> None:
    """Put one value in the place of another, name and all."""
    new.shape, new.type, name = old.shape, old.type, old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = None, name


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes a value, if it is of this type."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _sweep(graph: ir.Graph) -> None:
    """Remove nodes that nothing reads."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
