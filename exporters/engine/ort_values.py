"""Arrays in onnxruntime's memory: on which device, and in dtypes that numpy does not have."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, parser

from exporters.engine.sessions import providers, session_options

ELEMENT = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
_WIDEN = """
<ir_version: 10, opset_import: ["" : 18]>
widen (bfloat16[a, b, c, d] x) => (float[a, b, c, d] y) { y = Cast <to = 1> (x) }
"""


def on_device(array: NDArray[Any], device: str) -> ort.OrtValue:
    """Copy an array to a device, "cpu" or "cuda"."""
    return ort.OrtValue.ortvalue_from_numpy(array, device)


def zeros(shape: Sequence[int], element: int, device: str) -> ort.OrtValue:
    """Zeros of an ONNX element type (`ELEMENT`) on a device."""
    # Zeros of 2 bytes are the same bits in uint16, float16 and bfloat16.
    bits = np.zeros(shape, np.float32 if element == TensorProto.FLOAT else np.uint16)
    value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, element)
    if device == "cpu":
        return value
    there = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), element, device)
    there.update_inplace(value)
    return there


def copy_of(value: ort.OrtValue) -> ort.OrtValue:
    """A copy with memory of its own, on the same device."""
    copied = zeros(value.shape(), value.element_type(), value.device_name())
    copied.update_inplace(value)
    return copied


def as_float32(value: ort.OrtValue, device: str) -> NDArray[np.float32]:
    """A value as a float32 array. A bfloat16 value must have four axes, as keys and values do."""
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy(), np.float32)
    session = _widening_session(device)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", value)
    binding.bind_output("y", "cpu")
    session.run_with_iobinding(binding)
    wide: NDArray[np.float32] = binding.get_outputs()[0].numpy()
    return wide


@cache
def _widening_session(device: str) -> ort.InferenceSession:
    """A session that casts bfloat16 to float32, which numpy cannot."""
    model = parser.parse_model(_WIDEN).SerializeToString()
    return ort.InferenceSession(model, session_options(1), providers=providers(device))
