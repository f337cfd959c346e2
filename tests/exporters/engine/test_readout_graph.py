"""The graphs of a readout against the same computations in numpy."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper

from exporters.engine import readout_graph as graphs
from exporters.engine.graph_builder import BuiltSession, GraphBuilder
from exporters.engine.readout_graph import Piece, sums_graph, unembedding_graph
from exporters.engine.readout_sessions import (
    ReadoutSessions,
    piece_width,
    sums_feeds,
    sums_from,
    vocabulary_pieces,
)
from exporters.engine.readout_weights import QuantisedTable, ReadoutWeights
from exporters.engine.sessions import providers, session_options
from exporters.tracing.packed_modules import Packed
from tests.conftest import close

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
D_MODEL, VOCAB, ROWS, GROUPS = 32, 150, 4, 3
EPSILON = 1e-5


def run(graph: GraphBuilder, **feeds):
    return BuiltSession(graph, session_options(1), providers("cpu")).run(feeds)


def rng(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, shape)


def softmax(x):
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


# One trick at a time


def test_the_logits_of_targets_one_by_one():
    g = GraphBuilder("g")
    normed = g.input("normed", FLOAT, ("vectors", D_MODEL))
    targets = g.input("targets", INT64, ("vectors", "n"))
    graphs.target_logits(g, normed, rng(VOCAB, D_MODEL), targets)
    g.output("chosen", FLOAT, ("vectors", "n"))
    x, ids = rng(5, D_MODEL, seed=1), tokens(5, 3)
    got = run(g, normed=x, targets=ids)["chosen"]
    close(got, graphs.target_logits_numpy(x, rng(VOCAB, D_MODEL), ids))
    close(got, np.take_along_axis(x @ rng(VOCAB, D_MODEL).T, ids, -1))


@pytest.mark.parametrize("piece", [Piece(0, VOCAB), Piece(48, 16)])
def test_logits_relative_to_the_first_target(piece):
    g, table = GraphBuilder("g"), rng(VOCAB, D_MODEL)
    normed = g.input("normed", FLOAT, ("vectors", D_MODEL))
    chosen = g.input("chosen", FLOAT, ("vectors", "n"))
    base, thresholds = graphs.relative_to_first(g, chosen)
    x = g.output(graphs.piece_logits(g, normed, table, piece, base), FLOAT, ("v", "p"))
    g.output(thresholds, FLOAT, ("others", "vectors", 1))
    vectors, given = rng(5, D_MODEL, seed=1), rng(5, 3, seed=2)
    got = run(g, normed=vectors, chosen=given)
    close(got[x], graphs.relative_logits_numpy(vectors, table, given, piece))
    close(got[thresholds][..., 0], (given[:, 1:] - given[:, :1]).T)


def of_logits(build, x, **others):
    """Run a graph that `build` makes of x (vectors, piece) and further inputs."""
    g = GraphBuilder("g")
    names = [g.input("x", FLOAT, ("vectors", "piece"))]
    for name, array in others.items():
        element = INT64 if array.dtype == np.int64 else FLOAT
        names.append(g.input(name, element, [None] * array.ndim))
    out = g.output(build(g, *names), FLOAT, None)
    return run(g, x=x, **others)[out]


def test_the_step_function_counts():
    x = rng(6, 50) * 10.0 ** rng(6, 1, seed=1).round()
    x[:, :3] = 0, 1e-20, -1e-20  # equal is not above
    thresholds = rng(2, 6, 1, seed=3)
    want = graphs.counts_numpy(x, thresholds)
    close(of_logits(graphs.count_above_zero, x)[:, 0], want[0], 0)
    others = np.array(len(thresholds))
    got = of_logits(graphs.count_above_each, x, thresholds=thresholds, others=others)
    close(got[..., 0], want[1:], 0)
    none = of_logits(graphs.count_above_each, x, thresholds=thresholds[:0], others=others * 0)
    assert none.size == 0


def test_a_step_below_the_inverse_of_its_slope_is_the_limit_of_the_trick():
    x = np.array([[1e-20, 1e-29, 1e-31]], np.float32)
    count = of_logits(graphs.count_above_zero, x)[0, 0]
    assert count == pytest.approx(2.1)


def test_means_as_products():
    x = rng(ROWS * GROUPS, 50)
    p, by_row = softmax(x), np.array([ROWS, GROUPS, -1])
    want, want_reference = graphs.means_numpy(p, x, by_row)
    close(of_logits(lambda g, x, p: graphs.mean(g, p, x), x, p=p).ravel(), want)
    got = of_logits(
        lambda g, x, p, by_row: graphs.reference_mean(g, p, x, by_row), x, p=p, by_row=by_row
    )
    close(got[:, 0], want_reference)


@pytest.mark.parametrize("scale", [1, 30, 1000])
def test_log_sum_exp_from_the_largest_entry_of_a_softmax(scale):
    x = scale * rng(6, 50)
    wide = x.astype(np.float64)
    high = wide.max(-1, keepdims=True)
    close(graphs.log_z_numpy(x), (high[:, 0] + np.log(np.exp(wide - high).sum(-1))))


# The whole graph


@pytest.fixture(scope="module", params=["whole", "pieces", "float16", "int8", "int4"])
def kind(request):
    return request.param


def weights_of(kind):
    """Weights of one kind, the unembedding that they stand for, and how closely it is computed."""
    table, gain, bias = rng(VOCAB, D_MODEL), rng(D_MODEL, seed=1), rng(D_MODEL, seed=2)
    if kind == "float16":
        narrow = ReadoutWeights(*(x.astype(np.float16) for x in (gain, bias, table)))
        return narrow, narrow.table.astype(np.float32), 2e-2
    if kind not in ("int8", "int4"):
        return ReadoutWeights(gain, bias, table), table, 1e-4
    bits = int(kind[-1])
    made = Packed(torch.from_numpy(table), bits, 16, symmetric=bits == 4)
    attributes = {"K": D_MODEL, "N": VOCAB, "bits": bits, "block_size": 16, "accuracy_level": 1}
    arrays = [None if x is None else x.numpy() for x in (made.packed, made.scales, made.zeros)]
    stored = QuantisedTable(*arrays, attributes)
    return ReadoutWeights(gain, bias, stored), made.dequantised().numpy(), 1e-4


def normed(resid, weights):
    x = resid - resid.mean(-1, keepdims=True)
    x /= np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON)
    return x * weights.gain.astype(np.float32) + weights.bias.astype(np.float32)


def test_unembedding_equals_numpy(kind):
    weights, table, tolerance = weights_of(kind)
    resid = rng(5, D_MODEL, seed=3)
    got = run(unembedding_graph(weights, EPSILON), resid=resid)["logits"]
    assert got.dtype == np.float32
    close(got, normed(resid, weights) @ table.T, tolerance)


@pytest.mark.parametrize(("n", "k"), [(1, 5), (3, 1), (2, 100)])
def test_sums_equal_numpy(kind, n, k):
    weights, table, tolerance = weights_of(kind)
    whole = kind != "pieces"
    pieces = vocabulary_pieces(VOCAB, VOCAB if whole else 64)
    resid, targets = rng(ROWS, GROUPS, D_MODEL, seed=3), tokens(ROWS, GROUPS, n)
    feeds = sums_feeds(resid, targets, k)
    got = run(sums_graph(weights, EPSILON, pieces, whole=whole), **feeds)
    x = normed(feeds["resid"], weights)
    chosen = graphs.target_logits_numpy(x, table, feeds["targets"])
    close(got["chosen"], chosen, tolerance)
    for i, piece in enumerate(pieces):
        logits = graphs.relative_logits_numpy(x, table, chosen, piece)
        mean, reference_mean = graphs.means_numpy(softmax(logits), logits, feeds["by_row"])
        close(got["high"][:, i], logits.max(-1), tolerance)
        log_z = got["high"][:, i] - np.log(got["most"][:, i])
        close(log_z, graphs.log_z_numpy(logits), tolerance)
        close(got["mean"][:, 0, i], mean, tolerance)
        close(got["reference_mean"][:, 0, i * GROUPS :][:, :GROUPS], reference_mean, tolerance)
        counts = graphs.counts_numpy(logits, (chosen[:, 1:] - chosen[:, :1]).T[..., None])
        # One off: a target's own entry may be rounded to more than `chosen`; another: ties.
        slack = 2 if kind == "float16" else 1
        above_rest = got["above_rest"].reshape(n - 1, ROWS * GROUPS, len(pieces))
        assert (np.abs(got["above_first"][:, i] - counts[0]) <= slack).all()
        assert (np.abs(above_rest[..., i] - counts[1:]) <= slack).all()
        own = got["own"][:, n * i : n * (i + 1)]
        places = feeds["targets"] - piece.start
        inside = (places >= 0) & (places < piece.size)
        want = np.take_along_axis(logits, places.clip(0, piece.size - 1), -1)
        close(own[inside], want[inside], tolerance)
    every = x @ table.T - chosen[:, :1]
    close(got["top"], -np.sort(-every)[:, :k], tolerance)
    close(np.take_along_axis(every, got["top_ids"], -1), got["top"], tolerance)


def test_sums_are_joined_across_pieces_and_shares(kind):
    weights, table, tolerance = weights_of(kind)
    whole = kind != "pieces"
    width = VOCAB if whole else 32
    pieces, targets = vocabulary_pieces(VOCAB, width), tokens(ROWS, GROUPS, 2)
    resid = rng(ROWS, GROUPS, D_MODEL, seed=3)
    feeds = sums_feeds(resid, targets, 4)
    found = run(sums_graph(weights, EPSILON, pieces, whole=whole), **feeds)
    sums = sums_from(found, feeds["targets"], targets.shape, refers=True, width=width)
    logits = normed(resid, weights) @ table.T
    x = logits - np.take_along_axis(logits, targets[..., :1], -1)
    for i, piece in enumerate(pieces):
        part = x[..., piece.start : piece.start + piece.size]
        close(sums.log_z[i], np.log(np.exp(part).sum(-1)), tolerance)
        close(sums.mean[i], (softmax(part) * part).sum(-1), tolerance)
    close(sums.top, -np.sort(-logits)[..., :4], tolerance)
    chosen = np.take_along_axis(logits, targets, -1)
    ranks = (logits[..., None, :] > chosen[..., None]).sum(-1)
    assert np.abs(sums.above - ranks).max() <= (kind == "float16")


def test_no_targets_and_no_reference_leave_nothing(kind):
    weights, _, _ = weights_of(kind)
    targets = np.zeros((ROWS, GROUPS, 0), np.int64)
    feeds = sums_feeds(rng(ROWS, GROUPS, D_MODEL), targets, 1)
    pieces = vocabulary_pieces(VOCAB, VOCAB)
    found = run(sums_graph(weights, EPSILON, pieces, whole=kind != "pieces"), **feeds)
    sums = sums_from(found, feeds["targets"], targets.shape, refers=False, width=VOCAB)
    assert sums.chosen.shape == sums.above.shape == (ROWS, GROUPS, 0)
    assert sums.reference_mean is None
    assert np.isfinite(sums.log_z).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_pieces_cover_the_vocabulary_once_and_are_shared_out_evenly(threads):
    width = piece_width(50257, threads)
    pieces = vocabulary_pieces(50257, width)
    assert width % 16 == 0
    assert [i for piece in pieces for i in (piece.start, piece.start + piece.size)][1:-1:2] == [
        piece.start for piece in pieces[1:]
    ]
    assert pieces[0].start == 0
    assert pieces[-1].start + pieces[-1].size == 50257
    assert len(pieces) % threads == 0


def test_threads_share_the_pieces(fused_runner):
    """Each has a session of its own; the sums are the same."""
    c = fused_runner.config
    resid, targets = rng(ROWS, GROUPS, c.n_embd), tokens(ROWS, GROUPS, 2)
    one, two = (ReadoutSessions(fused_runner.path, c, "cpu", threads) for threads in (1, 2))
    for name, value in vars(one.sums(resid, targets, True, 3)).items():
        close(value, getattr(two.sums(resid, targets, True, 3), name), 1e-5)


# The builder


def test_constants_are_shared_and_single_numbers_lie_inside_the_graph():
    g = GraphBuilder("g")
    assert g.constant([1]) == g.constant([1]) != g.constant(1)
    g.weight("one", np.ones(1, np.float32))
    g.weight("many", np.ones(2, np.float32))
    assert list(g.weights) == ["many"]
    inside = {x.name: x for x in g.graph().initializer}
    assert numpy_helper.to_array(inside["one"]) == 1
    assert inside["many"].data_location == TensorProto.EXTERNAL
