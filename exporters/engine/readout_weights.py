"""The weights that a readout needs: ln_f and the unembedding, as an exported file holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from exporters.file.stored_weights import StoredWeights


@dataclass(frozen=True)
class QuantisedTable:
    """The unembedding as integers in blocks, the operands of MatMulNBits.

    packed: uint8. scales: float16, one a block. zeros: uint8, or None if every zero point is in the
    middle of the range. attributes: the operator's attributes (K, N, bits, block_size, …).
    """

    packed: NDArray[Any]
    scales: NDArray[Any]
    zeros: NDArray[Any] | None
    attributes: dict[str, Any]


@dataclass(frozen=True)
class ReadoutWeights:
    """gain, bias: (d_model,) of ln_f. table: the unembedding, (vocab, d_model) if not quantised."""

    gain: NDArray[Any]
    bias: NDArray[Any]
    table: NDArray[Any] | QuantisedTable

    @classmethod
    def read(cls, path: Path) -> ReadoutWeights:
        """Read them from an exported file. Data in an external file stays on disk until used."""
        stored = StoredWeights(path)
        nodes = stored.model.graph
        last = {node.op_type: node for node in nodes}  # the unembedding is the last of a kind
        quantised = last.get("MatMulNBits")
        return cls(
            gain=np.ascontiguousarray(stored.held("ln_f.weight")),
            bias=np.ascontiguousarray(stored.held("ln_f.bias")),
            table=_initializer_array(last["Gemm"].inputs[1])
            if quantised is None
            else _quantised(quantised),
        )


def _quantised(node: onnx_ir.Node) -> QuantisedTable:
    _, packed, scales, zeros, *_ = (*node.inputs, None)
    assert scales is not None
    cast = scales.producer()  # scales are stored as float16, and cast for the operator
    return QuantisedTable(
        packed=_initializer_array(packed),
        scales=_initializer_array(cast.inputs[0] if cast else scales),
        zeros=None if zeros is None else _initializer_array(zeros),
        attributes={name: attribute.value for name, attribute in node.attributes.items()},
    )


def _initializer_array(initializer: onnx_ir.Value | None) -> NDArray[Any]:
    assert initializer is not None
    assert initializer.const_value is not None
    return np.ascontiguousarray(initializer.const_value.numpy())
