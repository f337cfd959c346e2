"""The graphs of a readout: ln_f, unembedding, and sums over the vocabulary.

Two graphs: `unembedding_graph` gives all logits of a few vectors; `sums_graph` gives, for many
vectors, what `gpt2kit.readout` needs and never all logits. (Two, because onnxruntime computes every
output of a graph, even if it is not fetched: onnxruntime #16013.)

Below each function that uses a trick stands the same computation in numpy. A test compares the two.

In the graphs, x is (vectors, piece): the logits of every vector for one piece of the vocabulary,
relative to the logit of the vector's first target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from exporters.engine.graph_builder import MICROSOFT, GraphBuilder
from exporters.engine.readout_weights import QuantisedTable, ReadoutWeights

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
END = np.iinfo(np.int64).max  # a Slice to the end of an axis
STEEP = 1e30  # slope of the HardSigmoid that serves as a step function

NumpyArray = NDArray[Any]


@dataclass(frozen=True)
class Piece:
    """Tokens start, start + 1, …, start + size - 1 of the vocabulary."""

    start: int
    size: int


@dataclass(frozen=True)
class PieceSums:
    """The results for one piece, by name; each has the tokens, or the pieces, on its last axis."""

    top: str  # (vectors, at most k) the largest logits
    top_ids: str  # (vectors, at most k) and their tokens
    high: str  # (vectors, 1) the largest logit
    most: str  # (vectors, 1) the probability of that token within the piece
    mean: str  # (vectors, 1, 1) mean logit under the probabilities within the piece
    reference_mean: str  # (row, 1, group) the same under the probabilities of the row's last group
    above_first: str  # (vectors, 1) number of logits above the first target's
    above_rest: str  # (others, vectors, 1) and above each other target's
    own: str  # (vectors, n) the targets' logits, if they are in this piece


@dataclass(frozen=True)
class Inputs:
    """Inputs of `sums_graph`, by name. Vectors are (row, group) flattened.

    resid: (vectors, d_model). targets: (vectors, n), n at least 1. k: (1,). by_row: (3,), the shape
    (row, group, -1). others: n - 1.
    """

    resid: str
    targets: str
    k: str
    by_row: str
    others: str


def unembedding_graph(weights: ReadoutWeights, epsilon: float) -> GraphBuilder:
    """resid (vectors, d_model) -> logits (vectors, vocab)."""
    g = GraphBuilder("unembed")
    resid = g.input("resid", FLOAT, ("vectors", "d_model"))
    logits = product(g, norm(g, resid, weights, epsilon), weights.table)
    g.op("Cast", logits, name="logits", to=FLOAT)
    g.output("logits", FLOAT, ("vectors", "vocab"))
    return g


def sums_graph(
    weights: ReadoutWeights, epsilon: float, pieces: Sequence[Piece], *, whole: bool
) -> GraphBuilder:
    """The sums over some pieces of the vocabulary; see `Inputs` and `PieceSums`, whose names are
    the graph's outputs, and `chosen`: (vectors, n) logits of the targets.

    whole: there is one piece, the vocabulary, and its logits come from one product.
    """
    g = GraphBuilder("sums")
    given = Inputs(
        resid=g.input("resid", FLOAT, ("vectors", "d_model")),
        targets=g.input("targets", INT64, ("vectors", "n")),
        k=g.input("k", INT64, (1,)),
        by_row=g.input("by_row", INT64, (3,)),
        others=g.input("others", INT64, ()),
    )
    normed = norm(g, given.resid, weights, epsilon)
    if whole:
        logits = g.op("Cast", product(g, normed, weights.table), to=FLOAT)
        chosen = g.op("GatherElements", logits, given.targets, name="chosen", axis=-1)
        base, thresholds = relative_to_first(g, chosen)
        relative = [g.op("Add", logits, base)]
    else:
        assert not isinstance(weights.table, QuantisedTable)
        chosen = target_logits(g, normed, weights.table, given.targets)
        base, thresholds = relative_to_first(g, chosen)
        relative = [piece_logits(g, normed, weights.table, piece, base) for piece in pieces]
    found = [
        piece_sums(g, x, piece, given, thresholds)
        for x, piece in zip(relative, pieces, strict=True)
    ]
    join(g, found, given.k)
    declare_outputs(g)
    return g


def norm(g: GraphBuilder, resid: str, weights: ReadoutWeights, epsilon: float) -> str:
    """ln_f, in the dtype of the weights."""
    gain, bias = g.weight("gain", weights.gain), g.weight("bias", weights.bias)
    narrow = g.op("CastLike", resid, gain)
    return g.op("LayerNormalization", narrow, gain, bias, axis=-1, epsilon=epsilon)


def product(g: GraphBuilder, normed: str, table: NumpyArray | QuantisedTable) -> str:
    """All logits, in the dtype of the weights."""
    if not isinstance(table, QuantisedTable):
        return g.op("Gemm", normed, g.weight("table", table), transB=1)
    scales = g.op("Cast", g.weight("scales", table.scales), to=FLOAT)
    operands = [normed, g.weight("packed", table.packed), scales]
    if table.zeros is not None:
        operands.append(g.weight("zeros", table.zeros))
    return g.op("MatMulNBits", *operands, domain=MICROSOFT, **table.attributes)


def target_logits(g: GraphBuilder, normed: str, table: NumpyArray, targets: str) -> str:
    """Logits (vectors, n) of the targets, without computing the logits of other tokens.

    A Scan takes the targets one by one: all at once would gather (vectors, n, d_model) numbers.
    """
    body = g.inner("one_target")
    ids = body.input("target", INT64, ("vectors",))
    rows = body.op("Gather", g.weight("table", table), ids)  # (vectors, d_model)
    logit = body.op("ReduceSum", body.op("Mul", rows, normed), g.constant([-1]))
    body.output(logit, FLOAT, ("vectors", 1))
    by_target = g.op("Transpose", targets)
    found = g.op("Scan", by_target, num_scan_inputs=1, body=body.graph())  # (n, vectors, 1)
    return g.op("Transpose", g.op("Squeeze", found, g.constant([-1])), name="chosen")


def target_logits_numpy(normed: NumpyArray, table: NumpyArray, targets: NumpyArray) -> NumpyArray:
    """`target_logits` in numpy."""
    return np.stack([(table[ids] * normed).sum(-1) for ids in targets.T], -1)


def relative_to_first(g: GraphBuilder, chosen: str) -> tuple[str, str]:
    """The number to add to all logits of a vector, and the other targets' logits with it added.

    Logits are taken relative to the first target's logit. A logit larger than this
    target's is then above 0, which needs no subtraction; and the means below are sums of small
    numbers, so that float32 loses fewer digits.
    """
    first = g.op("Slice", chosen, g.constant([0]), g.constant([1]), g.constant([-1]))
    rest = g.op("Slice", chosen, g.constant([1]), g.constant([END]), g.constant([-1]))
    by_target = g.op("Transpose", g.op("Sub", rest, first))
    # (vectors, 1), and (others, vectors, 1): Loop takes one threshold a turn
    return g.op("Neg", first), g.op("Unsqueeze", by_target, g.constant([2]))


def piece_logits(g: GraphBuilder, normed: str, table: NumpyArray, piece: Piece, base: str) -> str:
    """x, for one piece; the product adds `base` as its bias, which costs no pass of its own."""
    rows = g.weight(f"piece_{piece.start}", table[piece.start : piece.start + piece.size])
    return g.op("Gemm", normed, rows, base, transB=1)


def relative_logits_numpy(
    normed: NumpyArray, table: NumpyArray, chosen: NumpyArray, piece: Piece
) -> NumpyArray:
    """`relative_to_first`, then `piece_logits`, in numpy."""
    return normed @ table[piece.start : piece.start + piece.size].T - chosen[:, :1]


def piece_sums(g: GraphBuilder, x: str, piece: Piece, given: Inputs, thresholds: str) -> PieceSums:
    """All that is summed up of one piece."""
    k = g.op("Min", given.k, g.constant([piece.size]))
    top, places = g.top_k(x, k)
    first = (g.constant([0]), g.constant([1]), g.constant([-1]))
    best, high = g.op("Slice", places, *first), g.op("Slice", top, *first)
    p = g.op("Softmax", x, axis=-1)
    return PieceSums(
        top=top,
        top_ids=g.op("Add", places, g.constant([piece.start])),
        high=high,
        most=g.op("GatherElements", p, best, axis=-1),
        mean=mean(g, p, x),
        reference_mean=reference_mean(g, p, x, given.by_row),
        above_first=count_above_zero(g, x),
        above_rest=count_above_each(g, x, thresholds, given.others),
        own=own_logits(g, x, piece, given.targets),
    )


def log_z_numpy(x: NumpyArray) -> NumpyArray:
    """log sum exp(x) (vectors,) from `high` and `most`, as `readout_sessions` computes it.

    The largest entry of a softmax is exp(max) / sum exp(x). The softmax is computed for the means
    anyway, so that the sum costs no pass over the logits of its own.
    """
    p = np.exp(x - x.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    high, most = x.max(-1), np.take_along_axis(p, x.argmax(-1)[:, None], -1)[:, 0]
    log_z: NumpyArray = high - np.log(most)
    return log_z


def mean(g: GraphBuilder, p: str, x: str) -> str:
    """Mean of x under p, (vectors, 1, 1).

    As a product of a row with a column: Mul and ReduceSum would write as many numbers as there are
    logits. FusedMatMul reads its second operand transposed, without a copy.
    """
    alone = g.constant([0, 1, -1])  # (vectors, 1, piece)
    rows = (g.op("Reshape", value, alone) for value in (p, x))
    return g.op("FusedMatMul", *rows, domain=MICROSOFT, transB=1)


def reference_mean(g: GraphBuilder, p: str, x: str, by_row: str) -> str:
    """Mean of each group's x under the p of the row's last group, (row, 1, group)."""
    p, x = (g.op("Reshape", value, by_row) for value in (p, x))  # (row, group, piece)
    last = g.op("Slice", p, g.constant([-1]), g.constant([END]), g.constant([1]))
    return g.op("FusedMatMul", last, x, domain=MICROSOFT, transB=1)


def means_numpy(
    p: NumpyArray, x: NumpyArray, by_row: Sequence[int]
) -> tuple[NumpyArray, NumpyArray]:
    """`mean` (vectors,) and `reference_mean` (row, group) in numpy."""
    last = p.reshape(by_row)[:, -1:]
    return (p * x).sum(-1), (last * x.reshape(by_row)).sum(-1)


def count_above_zero(g: GraphBuilder, x: str) -> str:
    """Number of entries above 0, (vectors, 1) float32; exact below 2^24, which vocabularies are.

    HardSigmoid(x) = max(0, min(1, alpha x + beta)) with a huge alpha and beta 0 is a step function
    that gives floats in one pass. Greater would give booleans, and to sum those they must be cast.
    """
    step = g.op("HardSigmoid", x, alpha=STEEP, beta=0.0)
    return g.op("ReduceSum", step, g.constant([-1]))


def count_above_each(g: GraphBuilder, x: str, thresholds: str, others: str) -> str:
    """Number of entries above each threshold, (others, vectors, 1).

    A Loop takes the thresholds one by one: all at once would be (vectors, others, piece) numbers.
    """
    body = g.inner("one_threshold")
    turn, going = body.input("turn", INT64, ()), body.input("going", BOOL, ())
    body.output(body.op("Identity", going), BOOL, ())
    over = body.op("Sub", x, body.op("Gather", thresholds, turn))
    body.output(count_above_zero(body, over), FLOAT, ("vectors", 1))
    return g.op("Loop", others, "", body=body.graph())


def counts_numpy(x: NumpyArray, thresholds: NumpyArray) -> NumpyArray:
    """`count_above_zero`, then `count_above_each`, in numpy: (1 + others, vectors)."""
    zero = np.zeros((len(x), 1), x.dtype)
    return np.stack([(x > threshold).sum(-1) for threshold in (zero, *thresholds)])


def own_logits(g: GraphBuilder, x: str, piece: Piece, targets: str) -> str:
    """The targets' own entries of x, (vectors, n); any number for targets outside this piece.

    `chosen` comes from another product, which may round otherwise; with its own entry at hand, a
    target is not counted as above itself.
    """
    places = g.op("Sub", targets, g.constant([piece.start]))
    inside = g.op("Clip", places, g.constant(0), g.constant(piece.size - 1))
    return g.op("GatherElements", x, inside, axis=-1)


def join(g: GraphBuilder, found: Sequence[PieceSums], k: str) -> None:
    """Join the results of all pieces, each under its own name; keep the k largest of all."""
    for part in fields(PieceSums):
        values = [getattr(sums, part.name) for sums in found]
        candidate = "piece_" if part.name in ("top", "top_ids") else ""
        g.op("Concat", *values, name=candidate + part.name, axis=-1)
    available = g.op("Shape", "piece_top", start=1)
    _, places = g.top_k("piece_top", g.op("Min", k, available), ("top", "places"))
    g.op("GatherElements", "piece_top_ids", places, name="top_ids", axis=-1)


def declare_outputs(g: GraphBuilder) -> None:
    """Declare all outputs of `sums_graph`."""
    g.output("chosen", FLOAT, ("vectors", "n"))
    g.output("top", FLOAT, ("vectors", "top"))
    g.output("top_ids", INT64, ("vectors", "top"))
    g.output("high", FLOAT, ("vectors", "pieces"))
    g.output("most", FLOAT, ("vectors", "pieces"))
    g.output("mean", FLOAT, ("vectors", 1, "pieces"))
    g.output("reference_mean", FLOAT, ("row", 1, "pieces_group"))
    g.output("above_first", FLOAT, ("vectors", "pieces"))
    g.output("above_rest", FLOAT, ("others", "vectors", "pieces"))
    g.output("own", FLOAT, ("vectors", "pieces_n"))
