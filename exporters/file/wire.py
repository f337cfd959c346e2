"""Rewrite a serialised ONNX model so that its large weights count as external data.

protobuf's own parser would copy every weight into memory. This reads the wire format instead: it
walks over the fields, copies the small ones, and replaces each large weight by a reference to its
place in the same file. See https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from onnx import TensorProto

LARGE = 1 << 16  # bytes; smaller weights stay in the graph
# Field numbers in onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_WITH_LENGTH = 2  # wire type of a field whose content follows its length


def without_weights(path: Path) -> bytes | None:
    """The serialised model with its large weights as external data in the file itself.

    None if no weight is large, or if the file is not ONNX.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            rewriter = _Rewriter(data, path.name)
            model = rewriter.rewrite(0, len(data), (_GRAPH, _INITIALIZER))
            return model if rewriter.count else None
    except (IndexError, ValueError):  # empty, cut off, or not protobuf: onnxruntime says so later
        return None


class _Rewriter:
    """Copies messages; large weights in them become references. count: how many."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self.data, self.name, self.count = data, name, 0

    def rewrite(self, start: int, stop: int, path: tuple[int, ...]) -> bytes:
        """The message in data[start:stop], rewritten.

        path: field numbers that lead from this message down to the tensors.
        """
        out = bytearray()
        for number, begin, body, end in self._fields(start, stop):
            if not path and number == _RAW_DATA and end - body >= LARGE:
                out += self._reference(body, end - body)
            elif path and number == path[0]:
                message = self.rewrite(body, end, path[1:])
                out += _varint(number << 3 | _WITH_LENGTH) + _varint(len(message)) + message
            else:
                out += self.data[begin:end]
        return bytes(out)

    def _reference(self, offset: int, length: int) -> bytes:
        """The fields of a tensor that say where in the file its data is."""
        self.count += 1
        tensor = TensorProto(data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        reference: bytes = tensor.SerializeToString()
        return reference

    def _fields(self, at: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """(field number, its start, its content's start, its end) of every field of a message.

        Raises ValueError if the bytes are not protobuf.
        """
        while at < stop:
            begin = at
            tag, at = self._read_varint(at)
            match tag & 7:  # the wire type
                case 0:  # a variable-length integer
                    _, end = self._read_varint(at)
                case 1:  # eight bytes
                    end = at + 8
                case 2:  # content after its length
                    size, at = self._read_varint(at)
                    end = at + size
                case 5:  # four bytes
                    end = at + 4
                case _:
                    raise ValueError("not a protobuf message")
            if end > stop:
                raise ValueError("a field goes beyond its message")
            yield tag >> 3, begin, at, end
            at = end

    def _read_varint(self, at: int) -> tuple[int, int]:
        """The variable-length integer at a place, and the place after it."""
        value = shift = 0
        while True:
            byte = self.data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at


def _varint(value: int) -> bytes:
    """A variable-length integer: 7 bits a byte, low bits first, the top bit says "more"."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
