"""ln_f, unembedding and the sums of a readout: two small graphs over an exported file's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, parser

from exporters import mapped
from exporters.weights import values
from gpt2kit.config import GPT2Config
from gpt2kit.readout import Floats, Ints, Piece

# From residual vectors to what their logits are made of. EPSILON and LOGITS are filled in.
_OPEN = """
<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>
open (float[rows, d_model] resid, int64[rows, n] targets)
    => (DTYPE[rows, d_model] normed, OUTPUTS float[rows, n] chosen)
<int64[1] last = {-1}>
{
    narrow_resid = CastLike (resid, gain)
    normed = LayerNormalization <axis = -1, epsilon = EPSILON> (narrow_resid, gain, bias)
    CHOSEN
}
"""
_PLAIN = "narrow = Gemm <transB = 1> (normed, unembedding)"
_QUANTISED = """
    scales = Cast <to = 1> (narrow_scales)
    narrow = com.microsoft.MatMulNBits <ATTRIBUTES> (normed, packed, scales ZEROS)
"""
_CHOSEN_OF_ALL = """
    LOGITS
    logits = Cast <to = 1> (narrow)
    chosen = GatherElements <axis = -1> (logits, targets)
"""
_CHOSEN_ALONE = """
    columns = Gather (unembedding, targets)
    row = Unsqueeze (normed, last)
    products = MatMul (columns, row)
    narrow_chosen = Squeeze (products, last)
    chosen = Cast <to = 1> (narrow_chosen)
"""
# The sums of `gpt2kit.readout.Piece`, from logits or from what they are the product of.
_MEET = """
<ir_version: 10, opset_import: ["" : 18]>
meet (INPUTS, int64[3] shape, int64[1] k, float[group, row] floor, float[group, row, n] chosen,
      int64[group, row, n] places)
    => (float[group, row] high, float[group, row] z, float[group, row] zx, float[group, row] rx,
        float[some, top] top, int64[some, top] top_ids, float[group, row, n] above,
        float[group, row, n] itself)
<int64[1] start = {0}, int64[1] last = {-1}, int64[1] end = {9223372036854775807},
 int64[1] third = {2}>
{
    PRODUCT
    logits = Reshape (flat, shape)
    highest = ReduceMax <keepdims = 1> (logits, last)
    high = Squeeze (highest, last)
    better = Greater (high, floor)
    flat_better = Reshape (better, last)
    better_rows = Compress <axis = 0> (flat, flat_better)
    top, top_ids = TopK <axis = -1, sorted = 0> (better_rows, k)
    x = Sub (logits, highest)
    weights = Exp (x)
    z = ReduceSum <keepdims = 0> (weights, last)
    weighted = Mul (weights, x)
    zx = ReduceSum <keepdims = 0> (weighted, last)
    reference = Slice (weights, last, end, start)
    expected = Mul (reference, x)
    rx = ReduceSum <keepdims = 0> (expected, last)
    every = Unsqueeze (logits, third)
    one = Unsqueeze (chosen, last)
    larger = Greater (every, one)
    ones = Cast <to = 1> (larger)
    above = ReduceSum <keepdims = 0> (ones, last)
    itself = GatherElements <axis = -1> (logits, places)
}
"""
_PRODUCT = "narrow = Gemm <transB = 1> (normed, piece) flat = Cast <to = 1> (narrow)"
_SUMS = ["high", "z", "zx", "top", "top_ids", "above", "itself"]


class ReadoutGraph:
    """The sessions behind `OnnxRunner.readout`.

    vectors, width: how many vectors meet how many tokens at a time. On a CPU the logits stay within
    its caches; quantised weights cannot be cut in pieces, and a GPU need not. For few vectors,
    again and again, the unembedding is kept packed for its kernel, whole, which costs a copy.
    """

    def __init__(
        self,
        path: Path,
        config: GPT2Config,
        device: str,
        few: bool,
        options: ort.SessionOptions,
        **given: Any,
    ) -> None:
        weights, product = _weights(path)
        self.device = device
        whole = few or device != "cpu" or "packed" in weights
        self.pieces = None if whole else weights["unembedding"]
        self.vectors, self.width = (320, config.vocab_size) if whole else (1024, 512)
        dtype = weights["gain"].dtype.name.replace("float32", "float")
        text = _OPEN.replace("EPSILON", f"{config.layer_norm_epsilon:.12f}").replace("DTYPE", dtype)
        text = text.replace("OUTPUTS", "float[rows, vocab] logits," if whole else "")
        text = text.replace("CHOSEN", _CHOSEN_OF_ALL if whole else _CHOSEN_ALONE)
        model = parser.parse_model(text.replace("LOGITS", product))
        for name, array in weights.items():
            model.graph.initializer.append(_stub(name, array))
        # The session reads the arrays where they lie; they must live as long as it does.
        self._values = [_ort_value(x) for x in weights.values()]
        text = _MEET.replace("PRODUCT", "" if whole else _PRODUCT)
        inputs = f"{dtype}[rows, d_model] normed, {dtype}[tokens, d_model] piece"
        text = text.replace("INPUTS", "float[rows, tokens] flat" if whole else inputs)
        self._meet = ort.InferenceSession(
            parser.parse_model(text).SerializeToString(), options, **given
        )
        options.add_external_initializers(list(weights), self._values)
        self._open = ort.InferenceSession(model.SerializeToString(), options, **given)
        self._quick = ort.RunOptions()
        self._quick.only_execute_path_to_fetches = True

    def tile(self, resid: Floats, targets: Ints, refers: bool) -> OnnxTile:
        """Residual vectors (group, row, d_model), targets (group, row, n); see `OpenTile`."""
        return OnnxTile(self, resid, targets, refers)

    def open(self, resid: Floats, targets: Ints) -> tuple[str, ort.OrtValue, Floats]:
        """What `meet` reads, its name first, and the targets' logits (rows, n)."""
        name = "logits" if self.pieces is None else "normed"
        feeds = {"resid": resid.astype(np.float32, copy=False), "targets": targets}
        binding = self._open.io_binding()
        for key, array in feeds.items():
            binding.bind_cpu_input(key, np.ascontiguousarray(array))
        binding.bind_output(name, self.device)
        binding.bind_output("chosen", "cpu")
        self._open.run_with_iobinding(binding, self._quick)
        value, chosen = binding.get_outputs()
        return ("flat" if self.pieces is None else name), value, chosen.numpy()

    def logits(self, resid: Floats) -> Floats:
        """(rows, d_model) -> (rows, vocab), where the unembedding is whole."""
        feeds = {
            "resid": resid.astype(np.float32, copy=False),
            "targets": np.zeros((len(resid), 1), np.int64),  # an input, though not read for this
        }
        logits: Floats = self._open.run(["logits"], feeds, self._quick)[0]
        return logits

    def meet(
        self, values: dict[str, ort.OrtValue], feeds: dict[str, NDArray[Any]], names: list[str]
    ) -> dict[str, NDArray[Any]]:
        """These outputs, and no more computed than they need."""
        binding = self._meet.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in names:
            binding.bind_output(name, "cpu")
        self._meet.run_with_iobinding(binding, self._quick)
        outputs = [value.numpy() for value in binding.get_outputs()]
        return dict(zip(names, outputs, strict=True))


class OnnxTile:
    """See `gpt2kit.readout.Tile`."""

    def __init__(self, graph: ReadoutGraph, resid: Floats, targets: Ints, refers: bool) -> None:
        self.names = [*_SUMS, *(["rx"] if refers else [])]
        self.graph, self.rows, self.count = graph, resid.shape[:2], targets.shape[-1]
        if not self.count:  # onnxruntime sums nothing wrongly: ask of one and leave it out
            targets = np.zeros((*self.rows, 1), np.int64)
        self.targets = targets
        flat = resid.reshape(-1, resid.shape[-1])
        name, value, chosen = graph.open(flat, targets.reshape(len(flat), -1))
        self.value, self._chosen = {name: value}, chosen.reshape(targets.shape)
        self.chosen = self._chosen[..., : self.count]

    def meet(self, start: int, stop: int, top: Floats) -> Piece:
        """Read the logits of tokens start to stop."""
        places = self.targets - start
        inside = (places >= 0) & (places < stop - start)
        values = self.value
        if self.graph.pieces is not None:
            values = values | {"piece": _ort_value(self.graph.pieces[start:stop])}
        feeds = {
            "shape": np.array([*self.rows, stop - start]),
            "k": np.array([min(top.shape[-1], stop - start)]),
            "floor": top[..., -1].astype(np.float32),
            "chosen": self._chosen,
            "places": np.where(inside, places, 0),
        }
        found = self.graph.meet(values, feeds, self.names)
        # A target is not counted above itself, however its two products were rounded.
        over = inside & (found.pop("itself") > self._chosen)
        found["above"] = (found["above"].astype(np.int64) - over)[..., : self.count]
        better = found["high"] > feeds["floor"]
        found["top"] = _spread(found["top"], better, -np.inf)
        found["top_ids"] = _spread(found["top_ids"] + start, better, 0)
        return Piece(**found)


def _spread(rows: NDArray[Any], where: NDArray[np.bool_], rest: float) -> NDArray[Any]:
    """Rows (some, …) in their places (group, row, …)."""
    out = np.full((*where.shape, rows.shape[-1]), rest, rows.dtype)
    out[where] = rows
    return out


def _weights(path: Path) -> tuple[dict[str, NDArray[Any]], str]:
    """The weights that a readout needs, from an exported file, and the nodes that unembed.

    External data stays on disk.
    """
    model = mapped.load(path)
    last = {node.op_type: node for node in model.graph}
    quantised = last.get("MatMulNBits")
    norm = {"gain": "ln_f.weight", "bias": "ln_f.bias"}
    arrays = {name: values(path, model, weight) for name, weight in norm.items()}
    used: dict[str, onnx_ir.Value | None] = {}
    if quantised is None:
        used["unembedding"], nodes = last["Gemm"].inputs[1], _PLAIN
    else:
        _, used["packed"], scales, zeros, *_ = (*quantised.inputs, None)
        assert scales is not None
        if zeros is not None:
            used["zeros"] = zeros
        cast = scales.producer()
        used["narrow_scales"] = cast.inputs[0] if cast else scales
        given = (f"{name} = {attribute.value}" for name, attribute in quantised.attributes.items())
        nodes = _QUANTISED.replace("ATTRIBUTES", ", ".join(given))
        nodes = nodes.replace("ZEROS", ", zeros" if zeros is not None else "")
    arrays |= {name: _value(value) for name, value in used.items()}
    return {name: np.ascontiguousarray(x) for name, x in arrays.items()}, nodes


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
