"""Open a large .onnx file without first reading its weights into memory.

onnxruntime maps weights that are external data, and releases each once it is packed for the
kernels; weights inside the .onnx file are all read first. So onnxruntime gets the graph alone, and
its weights as external data: in the .onnx file itself, at the offsets where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir
import onnxruntime as ort
from google.protobuf.message import DecodeError

from exporters.file.wire import without_weights


def session(
    path: Path,
    options: ort.SessionOptions,
    without: Callable[[str], bool] | None = None,
    **given: object,
) -> ort.InferenceSession:
    """An InferenceSession over the file, its large weights mapped. Raises onnxruntime's errors.

    without: says of an output whether to leave it out, with the nodes that serve it alone;
             onnxruntime computes all outputs of a graph, fetched or not (its issue #16013).
    """
    graph = without_weights(path)
    folder = str(path.resolve().parent)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if without is not None:
        graph = without_outputs(path, graph, without) or graph
    return ort.InferenceSession(graph or str(path), options, **given)


def load_proto(path: Path) -> onnx.ModelProto:
    """The serialised model, to look at: its large weights are references to where they are.

    Raises DecodeError if the file is not ONNX.
    """
    graph = without_weights(path)
    return onnx.load_from_string(path.read_bytes() if graph is None else graph)


def load_model(path: Path) -> onnx_ir.Model:
    """The model, to look at: its large weights stay on disk until they are read."""
    graph = without_weights(path)
    if graph is None:
        return onnx_ir.load(path)
    model = onnx_ir.from_proto(onnx.load_from_string(graph))
    onnx_ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def without_outputs(
    path: Path, graph: bytes | None, without: Callable[[str], bool]
) -> bytes | None:
    """The serialised model without some outputs, and without the nodes that serve them alone.

    None if there is no such output, or if the file is not ONNX.
    """
    try:
        model = onnx.load_from_string(path.read_bytes() if graph is None else graph)
    except DecodeError:
        return None
    kept = [output for output in model.graph.output if not without(output.name)]
    if len(kept) == len(model.graph.output):
        return None
    needed = {output.name for output in kept}
    nodes = []
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            nodes.append(node)
    needed.update(value.name for value in model.graph.input)  # keep the defaults of inputs
    weights = [weight for weight in model.graph.initializer if weight.name in needed]
    for part, left in (("output", kept), ("node", nodes[::-1]), ("initializer", weights)):
        model.graph.ClearField(part)
        getattr(model.graph, part).extend(left)
    serialised: bytes = model.SerializeToString()
    return serialised
