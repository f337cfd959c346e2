"""The weights of an exported file, by their names in the checkpoint. Imports no torch.

The file holds most weights under those names. `FileMetadata.weights` gives the name of the others:
equal weights share one initializer, and a weight that the trace reshaped or cast exists in that
form alone. A quantised matrix is three initializers, `{name}.packed`, `{name}.scales` and, unless
its blocks are symmetric, `{name}.zeros`; see `exporters.file.packing`.
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
from exporters.file.packing import dequantise
from gpt2kit.errors import EngineError
from gpt2kit.readout import Floats
from gpt2kit.weight_names import weight_shape

_TABLES = ("wte.weight", "lm_head.weight")  # (out, in) in the checkpoint; other matrices: (in, out)


class StoredWeights:
    """The weights of one file. Each stays on disk until it is read, and is not kept."""

    def __init__(self, path: Path) -> None:
        self.path, self.model = path, mapped.load_model(path)
        self.metadata = FileMetadata.from_metadata(self.model.metadata_props, path)

    def read(self, name: str) -> Floats:
        """See `Runner.weight`."""
        config = self.metadata.config
        shape = weight_shape(name, config)
        if name == "lm_head.weight" and config.tie_word_embeddings:
            name = "wte.weight"
        if self._initializer(f"{name}.packed") is None:
            weight = np.asarray(self.held(name), np.float32).reshape(shape)
        elif name in _TABLES:
            weight = self._dequantised(name, shape[0])
        else:
            weight = self._dequantised(name, shape[1]).T
        weight.flags.writeable = False
        return weight

    def held(self, name: str) -> NDArray[Any]:
        """A weight, or a part of a quantised one, as the file holds it.

        Raises EngineError if the file does not hold it.
        """
        value = self._initializer(name)
        if value is None or value.const_value is None:
            raise EngineError(
                f"{self.path}: holds no {name}; make it again with `gpt2kit export --onnx`"
            )
        return value.const_value.numpy()

    def _initializer(self, name: str) -> onnx_ir.Value | None:
        return self.model.graph.initializers.get(self.metadata.weights.get(name, name))

    def _dequantised(self, name: str, rows: int) -> Floats:
        """(out, in); rows: the size of `out`."""
        packed, scales = self.held(f"{name}.packed"), self.held(f"{name}.scales")
        bits = 8 * packed.size // math.prod(weight_shape(name, self.metadata.config))
        symmetric = self._initializer(f"{name}.zeros") is None
        zeros = None if symmetric else self.held(f"{name}.zeros")
        return dequantise(packed, scales.reshape(rows, -1), zeros, bits)
