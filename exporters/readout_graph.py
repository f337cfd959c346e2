"""ln_f, unembedding and next-token statistics: a small graph over an exported file's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper, parser

from exporters import mapped

# EPSILON and UNEMBED are filled in. Statistics are float32 whatever the weights are.
# `targets` and `reference` have defaults, so both are optional; only what is fetched is computed.
_GRAPH = """
<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>
readout (float[rows, d_model] resid, int64[one] k, int64[rows, n] targets,
         float[rows, vocab] reference)
    => (float[rows, vocab] logprobs, int64[rows, top] top_ids, float[rows, top] top_logprobs,
        float[rows] log_z, float[rows] entropy, float[rows] kl,
        float[rows, n] target_logprobs, int64[rows, n] target_ranks)
<int64[1] last = {-1}, int64[1] start = {0}, int64[1] one = {1}>
{
    narrow_resid = CastLike (resid, gain)
    normed = LayerNormalization <axis = -1, epsilon = EPSILON> (narrow_resid, gain, bias)
    UNEMBED
    logits = Cast <to = 1> (narrow)
    logprobs = LogSoftmax <axis = -1> (logits)
    top_logprobs, top_ids = TopK <axis = -1> (logprobs, k)
    a_logit = Slice (logits, start, one, last)
    a_logprob = Slice (logprobs, start, one, last)
    offset = Sub (a_logit, a_logprob)
    log_z = Squeeze (offset, last)
    p = Exp (logprobs)
    terms = Mul (p, logprobs)
    negative = ReduceSum <keepdims = 0> (terms, last)
    entropy = Neg (negative)
    reference_p = Exp (reference)
    gap = Sub (reference, logprobs)
    weighted = Mul (reference_p, gap)
    kl = ReduceSum <keepdims = 0> (weighted, last)
    target_logprobs = GatherElements <axis = -1> (logprobs, targets)
    columns = Unsqueeze (target_logprobs, last)
    every = Unsqueeze (logprobs, one)
    above = Greater (every, columns)
    ones = Cast <to = 7> (above)
    target_ranks = ReduceSum <keepdims = 0> (ones, last)
}
"""
_PLAIN = "narrow = Gemm <transB = 1> (normed, unembedding)"
_QUANTISED = """
    scales = Cast <to = 1> (narrow_scales)
    narrow = com.microsoft.MatMulNBits <ATTRIBUTES> (normed, packed, scales, zeros)
"""


class ReadoutGraph:
    """The session behind `OnnxRunner.readout`."""

    def __init__(
        self, path: Path, epsilon: float, options: ort.SessionOptions, **session: Any
    ) -> None:
        weights, unembed = _weights(path)
        text = _GRAPH.replace("EPSILON", f"{epsilon:.12f}")
        model = parser.parse_model(text.replace("UNEMBED", unembed))
        defaults = {"targets": np.zeros((1, 1), np.int64), "reference": np.zeros((1, 1), "f4")}
        for name, value in defaults.items():
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        for name, array in weights.items():
            model.graph.initializer.append(_stub(name, array))
        # The session reads the arrays where they lie; they must live as long as it does.
        self._values = [_ort_value(x) for x in weights.values()]
        options.add_external_initializers(list(weights), self._values)
        self.session = ort.InferenceSession(model.SerializeToString(), options, **session)
        self._quick = ort.RunOptions()
        self._quick.only_execute_path_to_fetches = True

    def logprobs(self, resid: NDArray[np.floating]) -> NDArray[np.float32]:
        """(rows, d_model) -> log-probabilities (rows, vocab)."""
        feeds = {"resid": resid.astype(np.float32, copy=False), "k": np.array([1])}
        out: NDArray[np.float32] = self.session.run(["logprobs"], feeds, self._quick)[0]
        return out

    def statistics(
        self,
        top_k: int,
        resid: NDArray[np.floating],
        targets: NDArray[np.int64] | None,
        reference: NDArray[np.float32] | None,
    ) -> Mapping[str, NDArray[Any]]:
        """The fields of Readout for a few rows (rows, d_model)."""
        names = ["top_ids", "top_logprobs", "log_z", "entropy"]
        feeds = {"resid": resid.astype(np.float32, copy=False), "k": np.array([top_k])}
        if targets is not None:
            names += ["target_logprobs", "target_ranks"]
            feeds["targets"] = np.ascontiguousarray(targets)
        if reference is not None:
            names.append("kl")
            feeds["reference"] = reference
        return dict(zip(names, self.session.run(names, feeds, self._quick), strict=True))


def _weights(path: Path) -> tuple[dict[str, NDArray[Any]], str]:
    """The weights that a readout needs, from an exported file, and the nodes that unembed.

    They are found by their use, not by name: weights that are equal share one initializer. External
    data stays on disk.
    """
    last = {node.op_type: node for node in mapped.load(path).graph}
    norm, quantised = last["LayerNormalization"].inputs, last.get("MatMulNBits")
    used = {"gain": norm[1], "bias": norm[2]}
    if quantised is None:
        used["unembedding"], nodes = last["Gemm"].inputs[1], _PLAIN
    else:
        _, used["packed"], scales, used["zeros"], *_ = quantised.inputs
        assert scales is not None
        cast = scales.producer()
        used["narrow_scales"] = cast.inputs[0] if cast else scales
        given = (f"{name} = {attribute.value}" for name, attribute in quantised.attributes.items())
        nodes = _QUANTISED.replace("ATTRIBUTES", ", ".join(given))
    return {name: np.ascontiguousarray(_value(value)) for name, value in used.items()}, nodes


def _value(initializer: onnx_ir.Value | None) -> NDArray[Any]:
    assert initializer is not None
    assert initializer.const_value is not None
    return initializer.const_value.numpy()


def _ort_value(array: NDArray[Any]) -> ort.OrtValue:
    """The array where it lies; numpy has bfloat16 only by way of ml_dtypes."""
    if array.dtype.name != "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy(array)
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), kind)


def _stub(name: str, array: NDArray[Any]) -> TensorProto:
    """An initializer whose data is handed to the session in memory."""
    tensor = onnx.TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
    tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.external_data.add(key="location", value="in-memory")
    return tensor
