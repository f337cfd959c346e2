"""The weights of an exported file, by their names in the checkpoint. Imports no torch.

The file holds most of them by that name; where it does not, `gpt2kit.weights` in its metadata says
by which: equal weights share one initializer, and one that the trace has reshaped, or cast, is held
as that alone. A quantised matrix is three: `{name}.packed`, `.scales` and, unless they are all in
the middle, `.zeros`, laid out (out, in) as `exporters.tracing.quantize` says.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from exporters.file import mapped
from exporters.file.metadata import FileMetadata
from gpt2kit.config import GPT2Config
from gpt2kit.errors import EngineError
from gpt2kit.readout import Floats
from gpt2kit.weight_names import weight_shape

TABLES = ("wte.weight", "lm_head.weight")


def initializer(path: Path, model: onnx_ir.Model, name: str) -> onnx_ir.Value | None:
    """The initializer of a weight, or of a part of a quantised weight; None if there is none."""
    renamed = FileMetadata.from_metadata(model.metadata_props, path).weights
    return model.graph.initializers.get(renamed.get(name, name))


def values(path: Path, model: onnx_ir.Model, name: str) -> NDArray[Any]:
    """A weight, or a part of one, as the file at `path` holds it. Raises EngineError without it."""
    value = initializer(path, model, name)
    if value is None or value.const_value is None:
        raise EngineError(f"{path}: holds no {name}; make it again with `gpt2kit export --onnx`")
    return value.const_value.numpy()


class Weights:
    """The weights of one file; each stays on disk until it is asked for, and is not kept."""

    def __init__(self, path: Path, config: GPT2Config) -> None:
        self.path, self.config, self.model = path, config, mapped.load(path)

    def read(self, name: str) -> Floats:
        """See `Runner.weight`."""
        shape = weight_shape(name, self.config)
        if name == "lm_head.weight" and self.config.tie_word_embeddings:
            name = "wte.weight"
        if initializer(self.path, self.model, f"{name}.packed") is None:
            weight = np.asarray(self._held(name), np.float32).reshape(shape)
        elif name in TABLES:
            weight = self._dequantised(name, shape[0])
        else:
            weight = self._dequantised(name, shape[1]).T
        weight.flags.writeable = False
        return weight

    def _held(self, name: str) -> NDArray[Any]:
        return values(self.path, self.model, name)

    def _dequantised(self, name: str, rows: int) -> Floats:
        """(out, in) what whole numbers in blocks along `in` stand for."""
        packed, scales = self._held(f"{name}.packed"), self._held(f"{name}.scales")
        scales = scales.reshape(rows, -1, 1).astype(np.float32)  # (out, blocks, 1)
        blocks = scales.shape[1]
        bits = 8 * packed.size // math.prod(weight_shape(name, self.config))
        weight = _unpack(packed, bits).reshape(rows, blocks, -1).astype(np.float32)
        if initializer(self.path, self.model, f"{name}.zeros") is None:
            weight -= 1 << bits - 1
        else:
            zeros = _unpack(self._held(f"{name}.zeros").reshape(rows, -1), bits)
            weight -= zeros[:, :blocks, None]
        weight *= scales
        return weight.reshape(rows, -1)


def _unpack(x: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Bytes (…, n) -> whole numbers (…, n * 8 / bits), low bits first."""
    if bits == 8:
        return x
    return np.stack([x & 15, x >> 4], -1).reshape(*x.shape[:-1], -1)
