"""A small builder of ONNX graphs: call an operator, get the name of its output."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 18, 10
MICROSOFT = "com.microsoft"  # the domain of onnxruntime's own operators


class GraphBuilder:
    """One graph, built node by node. A value is a string: its name in the graph.

    weights: initializers whose data a session is given in memory; the model holds only their types.
    """

    def __init__(self, name: str, counter: Iterator[int] | None = None) -> None:
        self.name, self.weights = name, dict[str, NDArray[Any]]()
        self._counter = counter or itertools.count()  # shared with inner graphs: names are unique
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: list[TensorProto] = []
        self._constants: dict[str, str] = {}  # value -> name

    def input(self, name: str, element: int, shape: Sequence[int | str]) -> str:
        """Declare an input: its element type (`TensorProto.FLOAT`, …) and axes."""
        self._inputs.append(helper.make_tensor_value_info(name, element, shape))
        return name

    def output(self, name: str, element: int, shape: Sequence[int | str]) -> str:
        """Declare that the value of this name is an output."""
        self._outputs.append(helper.make_tensor_value_info(name, element, shape))
        return name

    def constant(self, value: int | list[int]) -> str:
        """An int64 constant inside the graph, where onnxruntime sees it while it optimises."""
        if repr(value) not in self._constants:
            name = self._constants[repr(value)] = self._unique("constant")
            self._initializers.append(numpy_helper.from_array(np.asarray(value, np.int64), name))
        return self._constants[repr(value)]

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """An initializer whose data stays where it is. Two of the same name are the same one."""
        if name in self.weights or any(name == held.name for held in self._initializers):
            return name
        if array.size <= 1:  # onnxruntime takes single numbers only from inside the graph
            self._initializers.append(numpy_helper.from_array(array, name))
        else:
            self._initializers.append(_type_of(name, array))
            self.weights[name] = array
        return name

    def op(
        self, kind: str, *inputs: str, name: str | None = None, domain: str = "", **attributes: Any
    ) -> str:
        """Add an operator with one output, and return that output (called `name` if given)."""
        output = name or self._unique(kind)
        node = helper.make_node(kind, list(inputs), [output], domain=domain, **attributes)
        self._nodes.append(node)
        return output

    def top_k(self, x: str, k: str, names: Sequence[str] | None = None) -> tuple[str, str]:
        """The k largest along the last axis, and their places."""
        values, places = names or (self._unique("values"), self._unique("places"))
        self._nodes.append(helper.make_node("TopK", [x, k], [values, places], axis=-1))
        return values, places

    def inner(self, name: str) -> GraphBuilder:
        """A builder for the body of a Scan or a Loop, which may read this graph's values."""
        return GraphBuilder(name, self._counter)

    def graph(self) -> onnx.GraphProto:
        """What was built so far; the `body` attribute of a Scan or a Loop."""
        return helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, self._initializers
        )

    def model(self) -> bytes:
        """A serialised model of the graph."""
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(self.graph(), opset_imports=opsets, ir_version=IR_VERSION)
        serialised: bytes = model.SerializeToString()
        return serialised

    def _unique(self, kind: str) -> str:
        return f"{kind}_{next(self._counter)}"


class BuiltSession:
    """A session over a graph that was built here, with its weights handed over in memory."""

    def __init__(
        self, graph: GraphBuilder, options: ort.SessionOptions, providers: Sequence[Any]
    ) -> None:
        values = {name: _ort_value(array) for name, array in graph.weights.items()}
        self._values = list(values.values())  # must live as long as the session
        options.add_external_initializers(list(values), self._values)
        self._session = ort.InferenceSession(graph.model(), options, providers=list(providers))
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Inputs by name -> every output by name."""
        feeds = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        return dict(zip(self._outputs, self._session.run(None, feeds), strict=True))


def _type_of(name: str, array: NDArray[Any]) -> TensorProto:
    """An initializer without data: the session gets the data from memory."""
    tensor = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.external_data.add(key="location", value="in-memory")
    return tensor


def _ort_value(array: NDArray[Any]) -> ort.OrtValue:
    """The array without a copy; numpy has bfloat16 only through ml_dtypes."""
    if array.dtype.name != "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy(array)
    element = helper.np_dtype_to_tensor_dtype(array.dtype)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), element)
