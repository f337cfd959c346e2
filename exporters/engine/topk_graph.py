"""Choose the k largest logits on the device, so that only k numbers a row leave a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import parser

_GRAPH = """
<ir_version: 10, opset_import: ["" : 18]>
top_k (float[batch, pos, vocab] logits, int64[1] k)
    => (float[batch, pos, top] values, int64[batch, pos, top] ids)
{
    values, ids = TopK <axis = -1> (logits, k)
}
"""


class TopK:
    """A session that reads logits on the device where they are."""

    def __init__(self, providers: list[Any]) -> None:
        model = parser.parse_model(_GRAPH).SerializeToString()
        self.session = ort.InferenceSession(model, providers=providers)

    def __call__(
        self, logits: ort.OrtValue, k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Logits (batch, pos, vocab) -> the k largest, largest first, and their ids."""
        binding = self.session.io_binding()
        binding.bind_ortvalue_input("logits", logits)
        binding.bind_cpu_input("k", np.array([k]))
        binding.bind_output("values", "cpu")
        binding.bind_output("ids", "cpu")
        self.session.run_with_iobinding(binding)
        values, ids = (value.numpy() for value in binding.get_outputs())
        return values, ids
