"""Open a large .onnx file without reading its weights into memory first.

onnxruntime maps weights that lie in an external file, and lets go of each once it is packed for its
kernels; weights inside the .onnx it first reads whole. So the graph is handed over without them,
as if they were external: in the .onnx itself, at the offsets where they lie.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import onnx_ir
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnx import TensorProto

LARGE = 1 << 16  # bytes; smaller weights stay in the graph
# Field numbers in onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9


def session(
    path: Path,
    options: ort.SessionOptions,
    without: Callable[[str], bool] | None = None,
    **given: object,
) -> ort.InferenceSession:
    """An InferenceSession over the file, whose large weights are mapped. Raises what it raises.

    without: which outputs to leave out, with what is computed for them alone; onnxruntime computes
             all that a graph has, whatever is fetched (its issue #16013).
    """
    graph = without_weights(path)
    folder = str(path.resolve().parent)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if without is not None:
        graph = _without_outputs(path, graph, without) or graph
    return ort.InferenceSession(graph or str(path), options, **given)


def _without_outputs(
    path: Path, graph: bytes | None, without: Callable[[str], bool]
) -> bytes | None:
    """The serialised model without some outputs, and without what is computed for them alone; None
    if it has none of them, or is no model."""
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
    needed.update(value.name for value in model.graph.input)  # whose defaults are kept as well
    weights = [weight for weight in model.graph.initializer if weight.name in needed]
    for part, left in (("output", kept), ("node", nodes[::-1]), ("initializer", weights)):
        model.graph.ClearField(part)
        getattr(model.graph, part).extend(left)
    made: bytes = model.SerializeToString()
    return made


def load(path: Path) -> onnx_ir.Model:
    """The model for looking at: its large weights stay on disk until they are asked for."""
    graph = without_weights(path)
    if graph is None:
        return onnx_ir.load(path)
    model = onnx_ir.from_proto(onnx.load_from_string(graph))
    onnx_ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def without_weights(path: Path) -> bytes | None:
    """The serialised model, its large weights made external; None if it has none, or is none."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _Outside(data, path.name)
            model = found.rewrite(0, len(data), (_GRAPH, _INITIALIZER))
            return model if found.count else None
    except (IndexError, ValueError):  # empty, cut off, or no protobuf: onnxruntime will tell
        return None


class _Outside:
    """Rewrites messages, leaving out the large weights below them."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self.data, self.name, self.count = data, name, 0

    def rewrite(self, start: int, stop: int, path: tuple[int, ...]) -> bytes:
        """The message in data[start:stop], with what lies at `path` (field numbers) rewritten."""
        out = bytearray()
        for number, begin, body, end in self._fields(start, stop):
            if not path and number == _RAW_DATA and end - body >= LARGE:
                out += self._reference(body, end - body)
            elif path and number == path[0]:
                message = self.rewrite(body, end, path[1:])
                out += _varint(number << 3 | 2) + _varint(len(message)) + message
            else:
                out += self.data[begin:end]
        return bytes(out)

    def _reference(self, offset: int, length: int) -> bytes:
        self.count += 1
        tensor = TensorProto(data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        made: bytes = tensor.SerializeToString()
        return made

    def _fields(self, at: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """(field number, its start, its content's start, its end) of every field of a message."""
        while at < stop:
            begin = at
            tag, at = self._number(at)
            size = 0
            match tag & 7:
                case 0:
                    _, end = self._number(at)
                case 1:
                    end = at + 8
                case 2:
                    size, at = self._number(at)
                    end = at + size
                case 5:
                    end = at + 4
                case _:
                    raise ValueError("not a protobuf message")
            if end > stop:
                raise ValueError("a field goes beyond its message")
            yield tag >> 3, begin, at, end
            at = end

    def _number(self, at: int) -> tuple[int, int]:
        """The varint at a place, and the place after it."""
        value = shift = 0
        while True:
            byte = self.data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
