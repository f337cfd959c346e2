"""Simplify a traced graph. A decode step is so short that every node counts.

The model splits its computation at every tap. Where a tap is not exported, reshapes remain that
undo each other; they are removed. In the fused profile, attention reads queries, keys and values as
the one matrix that they were split from, and GELU adds its own bias. For CUDA, a residual sum and
its layer norm become one node, which also gives the sum.
"""

from __future__ import annotations

import onnx_ir as ir


def drop_reshapes(graph: ir.Graph) -> None:
    """Let a reshape of a reshape read the original; drop it if the original has its shape."""
    for node in list(graph):
        if node.op_type != "Reshape":
            continue
        before = node.inputs[0]
        while (parent := _producer(before, "Reshape")) is not None:
            before = parent.inputs[0]
        node.replace_input_with(0, before)
        out = node.outputs[0]
        same = before is not None and before.shape is not None and before.shape == out.shape
        if same and before is not None and not out.is_graph_output():
            out.replace_all_uses_with(before)
    _drop_unread(graph)


def join_projections(graph: ir.Graph) -> None:
    """Give GroupQueryAttention the matrix that its queries, keys and values were split from.

    The operator then takes it as its first input, and no second and third.
    """
    for node in graph:
        if node.op_type != "GroupQueryAttention":
            continue
        splits = {_producer(value, "Split") for value in node.inputs[:3]}
        split = splits.pop()
        if not splits and split is not None and list(split.outputs) == list(node.inputs[:3]):
            node.replace_input_with(0, split.inputs[0])
            node.replace_input_with(1, None)
            node.replace_input_with(2, None)
    _drop_unread(graph)


def join_gelus(graph: ir.Graph) -> None:
    """Fuse Add(x, bias) and tanh Gelu into FastGelu."""
    for gelu in list(graph):
        if gelu.op_type != "Gelu" or gelu.attributes["approximate"].as_string() != "tanh":
            continue
        add = _producer(gelu.inputs[0], "Add")
        if add is None or len(add.outputs[0].uses()) > 1 or add.outputs[0].is_graph_output():
            continue
        x, bias = add.inputs
        if bias is None or bias.shape is None or not bias.is_initializer() or len(bias.shape) != 1:
            continue
        fused = ir.Node("com.microsoft", "FastGelu", [x, bias], num_outputs=1)
        graph.insert_before(gelu, fused)
        _replace(gelu.outputs[0], fused.outputs[0])
    _drop_unread(graph)


def join_norms(graph: ir.Graph) -> None:
    """Fuse Add and the LayerNormalization of its sum into SkipLayerNormalization."""
    for norm in list(graph):
        if norm.op_type != "LayerNormalization":
            continue
        add = _producer(norm.inputs[0], "Add")
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
        _replace(norm.outputs[0], fused.outputs[0])
        _replace(add.outputs[0], fused.outputs[3])
        graph.remove([norm, add], safe=True)
    _drop_unread(graph)


def _replace(old: ir.Value, new: ir.Value) -> None:
    """Let `new` replace `old` everywhere, under the name of `old`."""
    new.shape, new.type, name = old.shape, old.type, old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = None, name


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that computes a value, if it has this type; else None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _drop_unread(graph: ir.Graph) -> None:
    """Remove nodes whose outputs are not read, and constants that only they read.

    Some runtimes warn of a constant that nothing reads.
    """
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
