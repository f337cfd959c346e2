"""ln_f, unembedding and the sums of a readout: small graphs over an exported file's weights.

onnxruntime computes every output of a graph, whatever is fetched (onnxruntime #16013), so each
graph gives just what it is made for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, parser

from exporters.engine.sessions import providers, session_options
from exporters.file import mapped
from exporters.file.stored_weights import values
from gpt2kit.config import GPT2Config
from gpt2kit.readout import Floats, Ints, Sums

VECTORS, WIDTH = 208, 2048  # on a CPU, that meet at a time: their logits stay within its caches
WHOLE_VECTORS = 320

# What both graphs start with.
_NORMED = """narrow_resid = CastLike (resid, gain)
    normed = LayerNormalization <axis = -1, epsilon = EPSILON> (narrow_resid, gain, bias)"""
# Vectors (row, group) meet the vocabulary in pieces {i}. Logits x are taken relative to that of the
# first target, so that what is larger than it is above 0, and sums are of numbers that are small.
# Targets are taken one by one: all at once would be as many times the logits.
_SUMS = """
<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>
sums (float[vectors, d_model] resid, int64[vectors, n] targets, int64[1] k, int64[3] by_row,
      int64 others)
    => (float[vectors, n] chosen, float[vectors, top] top, int64[vectors, top] top_ids,
        float[vectors, pieces] high, float[vectors, pieces] most,
        float[vectors, 1, pieces] mean, float[row, 1, pieces_group] reference_mean,
        float[vectors, pieces] above_first, float[others, vectors, pieces] above_rest,
        float[vectors, pieces_n] own)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] last = {-1},
 int64[1] end = {9223372036854775807}, int64[3] alone = {0, 1, -1}, bool on = {1}>
{
    NORMED
    CHOSEN
    first = Slice (chosen, zero, one, last)
    rest = Slice (chosen, one, end, last)
    base = Neg (first)
    behind = Sub (rest, first)
    by_target = Transpose (behind)
    thresholds = Unsqueeze (by_target, two)
    PIECES
    JOIN
    found = Shape <start = 1> (tops)
    most_k = Min (k, found)
    top, at = TopK <axis = -1> (tops, most_k)
    top_ids = GatherElements <axis = -1> (ids, at)
}
"""
_LOGITS = """
<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>
unembed (float[vectors, d_model] resid) => (float[vectors, vocab] logits)
{
    NORMED
    PRODUCT
    logits = Cast <to = 1> (narrow)
}
"""
_CHOSEN_ALONE = """
    ids_by_target = Transpose (targets)
    found_by_target = Scan <
        num_scan_inputs = 1,
        body = one_target (int64[vectors] id) => (float[vectors, 1] logit) {
            column = Gather (unembedding, id)
            product = Mul (column, normed)
            logit = ReduceSum (product, last)
        }
    > (ids_by_target)
    chosen_by_target = Squeeze (found_by_target, last)
    chosen = Transpose (chosen_by_target)
"""
_CHOSEN_OF_ALL = """
    PRODUCT
    whole = Cast <to = 1> (narrow)
    chosen = GatherElements <axis = -1> (whole, targets)
"""
_PLAIN = "narrow = Gemm <transB = 1> (normed, unembedding)"
_QUANTISED = """
    scales = Cast <to = 1> (narrow_scales)
    narrow = com.microsoft.MatMulNBits <ATTRIBUTES> (normed, packed, scales ZEROS)
"""
_PIECE = """
    x_{i} = PRODUCT
    k_{i} = Min (k, size_{i})
    tops_{i}, places_{i} = TopK <axis = -1> (x_{i}, k_{i})
    ids_{i} = Add (places_{i}, start_{i})
    high_{i} = Slice (tops_{i}, zero, one, last)
    best_{i} = Slice (places_{i}, zero, one, last)
    p_{i} = Softmax <axis = -1> (x_{i})
    most_{i} = GatherElements <axis = -1> (p_{i}, best_{i})
    x_alone_{i} = Reshape (x_{i}, alone)
    p_alone_{i} = Reshape (p_{i}, alone)
    mean_{i} = com.microsoft.FusedMatMul <transB = 1> (p_alone_{i}, x_alone_{i})
    x_by_row_{i} = Reshape (x_{i}, by_row)
    p_by_row_{i} = Reshape (p_{i}, by_row)
    reference_{i} = Slice (p_by_row_{i}, last, end, one)
    reference_mean_{i} = com.microsoft.FusedMatMul <transB = 1> (reference_{i}, x_by_row_{i})
    larger_{i} = HardSigmoid <alpha = 1e30, beta = 0.0> (x_{i})
    above_first_{i} = ReduceSum (larger_{i}, last)
    above_rest_{i} = Loop <
        body = another_{i} (int64 n, bool more) => (bool again, float[vectors, 1] count) {
            again = Identity (more)
            threshold = Gather (thresholds, n)
            over = Sub (x_{i}, threshold)
            larger = HardSigmoid <alpha = 1e30, beta = 0.0> (over)
            count = ReduceSum (larger, last)
        }
    > (others, on)
    shifted_{i} = Sub (targets, start_{i})
    within_{i} = Clip (shifted_{i}, first_{i}, last_{i})
    own_{i} = GatherElements <axis = -1> (x_{i}, within_{i})
"""
_JOINED = (
    "tops", "ids", "high", "most", "mean", "reference_mean", "above_first", "above_rest", "own",
)  # fmt: skip
_CUT = "Gemm <transB = 1> (normed, piece_{i}, base)"
_WHOLE = "Add (whole, base)"


class Unembedding:
    """From a few vectors to all their logits: the session behind `OnnxRunner.unembed`."""

    def __init__(self, path: Path, config: GPT2Config, device: str, threads: int) -> None:
        weights, product = _weights(path)
        text = _LOGITS.replace("PRODUCT", product)
        self._session = _Session(text, config, weights, device, threads)

    def logits(self, resid: Floats) -> Floats:
        """(vectors, d_model) -> (vectors, vocab)."""
        return self._session.run({"resid": resid})["logits"]


class ReadoutGraph:
    """The sessions behind `OnnxRunner.readout`.

    vectors: how many meet the vocabulary together. On a CPU the unembedding is kept in pieces, each
    packed for its kernel, so that the logits of a piece stay within the caches; each thread has a
    session of its own for its share of them, since what follows a product is too short to be
    shared. Quantised weights, and a GPU's, are whole.
    """

    def __init__(self, path: Path, config: GPT2Config, device: str, threads: int) -> None:
        weights, product = _weights(path)
        size = config.vocab_size
        whole = device != "cpu" or "unembedding" not in weights
        whole = whole or weights["gain"].dtype != np.float32
        shares = 1 if whole else min(threads, -(-size // WIDTH))
        self.vectors, self.width = WHOLE_VECTORS, size
        if not whole:
            pieces = shares * -(-size // (shares * WIDTH))
            self.vectors, self.width = VECTORS, 16 * -(-size // (16 * pieces))  # as kernels go
        starts = range(0, size, self.width)
        numbers: dict[str, Any] = {}
        for i, start in enumerate(starts):
            count = min(self.width, size - start)
            numbers |= {f"start_{i}": [start], f"size_{i}": [count]}
            numbers |= {f"first_{i}": 0, f"last_{i}": count - 1}
            if not whole:
                weights[f"piece_{i}"] = weights["unembedding"][start : start + count]
        weights |= {name: np.array(number, np.int64) for name, number in numbers.items()}
        self._sessions = [
            _Session(
                _text(share.tolist(), whole, product), config, weights, device, threads // shares
            )
            for share in np.array_split(np.arange(len(starts)), shares)
        ]
        self._pool = ThreadPoolExecutor(shares)

    def sums(self, resid: Floats, targets: Ints, refers: bool, top_k: int) -> Sums:
        """See `gpt2kit.readout.Read`."""
        rows, n = resid.shape[:2], targets.shape[-1]
        count = rows[0] * rows[1]
        # Some logit must be the one that others are relative to.
        flat = targets.reshape(count, n) if n else np.zeros((count, 1), np.int64)
        feeds = {
            "resid": resid.reshape(count, -1),
            "targets": flat,
            "k": np.array([top_k]),
            "by_row": np.array([rows[0], rows[1], -1]),
            "others": np.array(flat.shape[1] - 1),
        }
        shares = list(self._pool.map(lambda session: session.run(feeds), self._sessions))
        got = {name: np.concatenate([share[name] for share in shares], -1) for name in shares[0]}
        chosen = shares[0]["chosen"]
        base, reference_mean = chosen[:, :1], got["reference_mean"].reshape(rows[0], -1, rows[1])
        pieces = reference_mean.shape[1]
        above_rest = got["above_rest"].sum(-1).reshape(-1 + flat.shape[1], count)
        above = np.concatenate([got["above_first"].sum(-1)[None], above_rest]).T
        # A target is never above itself, however its two products were rounded.
        own = got["own"].reshape(count, pieces, -1)
        own = np.take_along_axis(own, flat[:, None] // self.width, 1)[:, 0]
        above = np.nan_to_num(above).astype(np.int64) - (own > chosen - base)
        return Sums(
            base=np.broadcast_to(base.reshape(rows), (pieces, *rows)),
            log_z=(got["high"] - np.log(got["most"])).T.reshape(pieces, *rows),
            mean=got["mean"].T.reshape(pieces, *rows),
            reference_mean=reference_mean.swapaxes(0, 1) if refers else None,
            top=(got["top"] + base).reshape(*rows, -1),
            top_ids=got["top_ids"].reshape(*rows, -1),
            chosen=chosen[:, :n].reshape(*rows, n),
            above=above[:, :n].reshape(*rows, n),
        )


class _Session:
    """A small graph over weights that are handed to it where they lie."""

    def __init__(
        self,
        text: str,
        config: GPT2Config,
        weights: dict[str, NDArray[Any]],
        device: str,
        threads: int,
    ) -> None:
        normed = _NORMED.replace("EPSILON", f"{config.layer_norm_epsilon:.12f}")
        model = parser.parse_model(text.replace("NORMED", normed))
        used = set(_read(model.graph))
        held = {}
        for name in used & weights.keys():
            if weights[name].size <= 1:  # onnxruntime wants to know it beforehand
                model.graph.initializer.append(onnx.numpy_helper.from_array(weights[name], name))
            else:
                held[name] = _ort_value(weights[name])
                model.graph.initializer.append(_stub(name, weights[name]))
        self._values = list(held.values())  # must live as long as the session
        options = session_options(threads)
        options.add_external_initializers(list(held), self._values)
        self._session = ort.InferenceSession(
            model.SerializeToString(), options, providers=providers(device)
        )
        self._outputs = [output.name for output in model.graph.output]

    def run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every output by its name."""
        feeds = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        feeds["resid"] = feeds["resid"].astype(np.float32, copy=False)
        return dict(zip(self._outputs, self._session.run(None, feeds), strict=True))


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    """What the nodes of a graph read, and those of the graphs within."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            yield from _read(attribute.g)


def _text(pieces: Sequence[int], whole: bool, product: str) -> str:
    """The graph of the sums over some pieces."""
    piece = _PIECE.replace("PRODUCT", _WHOLE if whole else _CUT)
    join = [
        f"{name} = Concat <axis = -1> ({', '.join(f'{name}_{i}' for i in pieces)})"
        for name in _JOINED
    ]
    chosen = _CHOSEN_OF_ALL.replace("PRODUCT", product) if whole else _CHOSEN_ALONE
    text = _SUMS.replace("CHOSEN", chosen).replace("JOIN", "\n    ".join(join))
    return text.replace("PIECES", "".join(piece.replace("{i}", str(i)) for i in pieces))


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
