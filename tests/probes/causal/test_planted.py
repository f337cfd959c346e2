"""Every detector finds what was planted, and nothing else: causal probes, directions, neurons.

The clean prompt says w3 before w7 and ends with w3, so that the induction head copies w7. In the
corrupt one another token stands before w7; this changes only the induction head's keys, through
the previous-token head alone.
"""

import numpy as np
import pytest

from exporters import export_onnx, open_onnx
from gpt2kit import TorchRunner
from probes import (
    Metric,
    ablate,
    activation_patching,
    attribution_patching,
    direct_logit_attribution,
    edge_attribution_patching,
    linear_probe,
    mean_difference,
    nearest_tokens,
    neuron_lens,
    path_patching,
    pca_directions,
    top_activating,
)
from tests import planted
from tests.conftest import close
from tests.planted import INDUCTION, PREVIOUS, planted_model, planted_runner, planted_tokenizer

CLEAN, CORRUPT = "w3 w7 w5 w9 w3", "w11 w7 w5 w9 w3"
AFTER, LAST = 1, 4  # the position of w7, which comes after the token that is said again at LAST
METRIC = Metric.logit_diff("w7", "w5")
HEADS = {PREVIOUS, INDUCTION}
EDGES = {("embed", "0.1.v"), ("0.1", "1.2.k"), ("1.2", "logits")}
TAPS = ["*embed", "*.resid_*", "*.[qkvz]", "*.head_out", "*.mlp_out", "*.pattern", "*scale"]
WORDS = [f"w{i}" for i in range(planted.VOCAB)]


@pytest.fixture(scope="module")
def known() -> TorchRunner:
    return planted_runner()


@pytest.fixture(scope="module")
def onnx(known, tmp_path_factory):
    path = tmp_path_factory.mktemp("planted") / "planted.onnx"
    export_onnx(known, path, taps=TAPS, edits=TAPS)
    return open_onnx(path, device="cpu")


@pytest.fixture(params=["torch", "onnx"])
def engine(request, known):
    return known if request.param == "torch" else request.getfixturevalue("onnx")


def found(values: np.ndarray, least: float = 0.01) -> set[tuple[int, ...]]:
    """The places with an effect."""
    return {tuple(map(int, place)) for place in np.argwhere(np.abs(values) > least)}


# Causal


def test_patching_finds_both_heads_and_where_they_matter(engine):
    got = activation_patching(engine, CLEAN, CORRUPT, metric=METRIC, over="z").normalised
    assert found(got) == HEADS
    close([got[head] for head in sorted(HEADS)], [1, 1], 0.02)
    got = activation_patching(
        engine, CLEAN, CORRUPT, metric=METRIC, over="z", positions=slice(None)
    ).normalised
    assert found(got) == {(*PREVIOUS, AFTER), (*INDUCTION, LAST)}


@pytest.mark.parametrize(
    ("over", "places"),
    [("q", set()), ("k", {(*INDUCTION, AFTER)}), ("v", {(*PREVIOUS, 0)})],
)
def test_patching_finds_what_composes(engine, over, places):
    """The previous-token head reads the token; the induction head's keys read what it wrote."""
    got = activation_patching(
        engine, CLEAN, CORRUPT, metric=METRIC, over=over, positions=slice(None)
    ).normalised
    assert found(got) == places


def test_patching_follows_the_stream(engine):
    got = activation_patching(engine, CLEAN, CORRUPT, metric=METRIC).normalised
    assert found(got) == {(0, AFTER), (1, LAST)}
    start = activation_patching(engine, CLEAN, CORRUPT, metric=METRIC, over="resid_pre").normalised
    assert found(start) == {(0, 0), (1, AFTER)}


def test_patching_finds_the_one_look_that_matters(engine):
    got = activation_patching(
        engine, CLEAN, CORRUPT, metric=METRIC, over="pattern", positions=slice(None),
        keys=slice(None),
    ).normalised  # fmt: skip
    assert {place[:3] for place in found(got)} == {(*INDUCTION, LAST)}
    assert np.unravel_index(got.argmax(), got.shape) == (*INDUCTION, LAST, AFTER)
    assert got.max() > 0.5


@pytest.mark.parametrize(
    "options", [{}, {"kind": "mean"}, {"kind": "resample", "reference": [CORRUPT]}]
)
def test_ablation_finds_both_heads(engine, options):
    got = ablate(engine, CLEAN, metric=METRIC, **options)
    assert found(got.effect) == HEADS
    assert max(got.effect[head] for head in HEADS) < -0.5 * planted.CERTAIN
    assert not found(ablate(engine, CLEAN, metric=METRIC, over="mlp_out", **options).effect)


@pytest.mark.parametrize("freeze_ln", [False, True])
def test_path_patching_finds_the_three_edges(engine, freeze_ln):
    got = path_patching(
        engine, CLEAN, CORRUPT, metric=METRIC, senders="*", receivers="*", freeze_ln=freeze_ln
    )
    strong = {(s, r) for s, r, score in got.top(99) if abs(score) > 0.01}
    assert strong == EDGES
    # In the corrupt run 1.2 writes a quarter of each of four words, so that a frozen scale is less.
    variance = [(x - 4**2 / planted.CONFIG.n_embd) for x in (6, 5.25)]
    want = {"logits": (variance[0] / variance[1]) ** 0.5 if freeze_ln else 1}
    for sender, receiver in EDGES:
        place = got.senders.index(sender), got.receivers.index(receiver)
        assert got.normalised[place] == pytest.approx(want.get(receiver, 1), abs=0.02)


def test_gradients_find_the_same_heads_and_edges(known):
    heads = attribution_patching(known, CLEAN, CORRUPT, metric=METRIC, over="z").normalised
    assert found(heads) == HEADS
    edges = edge_attribution_patching(known, CLEAN, CORRUPT, metric=METRIC)
    assert {(s, r) for s, r, _ in edges.top(3)} == EDGES
    strengths = [score / (edges.clean - edges.corrupt) for *_, score in edges.top(4)]
    assert min(strengths[:3]) > 0.9
    assert abs(strengths[3]) < 0.1  # to first order, the norm changes with what is taken away alone


def test_direct_attribution_finds_the_head_that_writes_the_answer(engine):
    got = direct_logit_attribution(engine, CLEAN, target="w7", foil="w5", by="head")
    assert found(got.values["head"]) == {INDUCTION}
    assert got.values["head"][INDUCTION] == pytest.approx(got.total, abs=1e-3)
    assert got.total > 0.9 * planted.CERTAIN


# Directions

TAP = "blocks.0.resid_post"


@pytest.fixture(scope="module")
def direction() -> np.ndarray:
    """Even words contain it, odd words its opposite."""
    out = np.zeros(planted.CONFIG.n_embd)
    out[planted.CLASS], out[planted.COUNTERWEIGHT] = 1, -1
    return out / np.linalg.norm(out)


def test_the_mean_difference_is_the_planted_direction(known, direction):
    got = mean_difference(known, WORDS[::2], WORDS[1::2], tap=TAP).vector
    assert got @ direction == pytest.approx(8**0.5, abs=1e-4)
    # The rest: each word is one of 20 in its group, here and as what 0.1 copies at position 0.
    assert np.linalg.norm(got) == pytest.approx((8 + 2 * 40 / 20**2) ** 0.5, abs=1e-4)


def test_the_first_component_is_the_planted_direction_and_no_other_is_strong(known, direction):
    first, second = pca_directions(known, WORDS, tap=TAP, n=2)
    assert abs(first.vector @ direction) > 0.98
    assert first.explained > 0.4
    assert second.explained < 0.1


def test_a_linear_probe_reads_the_class_where_it_is_and_not_from_what_a_head_copies(known):
    """Every word occurs once, so that held-out words share only the class with the others."""
    labels = [i % 2 for i in range(planted.VOCAB)]
    stream = linear_probe(known, WORDS, labels, tap=TAP, held_out=0.5)
    assert stream.accuracy[0] == 1
    x = np.stack([known.run(known.tokenizer.encode(w), taps=TAP).taps[TAP][0, 0] for w in WORDS])
    strength = np.abs(stream.weights[0, 0]) * x.std(0)
    assert set(np.argsort(-strength)[:2]) == {planted.CLASS, planted.COUNTERWEIGHT}
    copied = linear_probe(known, WORDS, labels, tap="blocks.1.z", held_out=0.5)
    assert copied.accuracy[0] < 0.75


# A neuron


@pytest.fixture(scope="module")
def with_neuron() -> TorchRunner:
    model = planted_model()
    planted.plant_neuron(model)
    return TorchRunner(model, planted_tokenizer())


def test_the_planted_neuron_is_found_by_what_it_reads_and_writes(with_neuron):
    layer, number = planted.NEURON
    near = nearest_tokens(with_neuron, layer, number, top_k=2)
    assert (near.read_tokens[0], near.written_tokens[0]) == (planted.READS, planted.WRITES)
    assert near.read_similarity[0] > 0.3 > near.read_similarity[1] + 0.2
    assert neuron_lens(with_neuron, layer, number, top_k=1).raised_tokens == (planted.WRITES,)
    corpus = ["w1 w2 w5 w9", "w8 w9", "w5 w6"]
    top = top_activating(with_neuron, layer, number, corpus, top_k=3)
    assert [*zip(top.texts[:2].tolist(), top.positions[:2].tolist(), strict=True)] == [
        (0, 2), (2, 0)
    ]  # fmt: skip
    assert top.activations[1] > 0.4 > abs(top.activations[2]) + 0.2


def test_attribution_and_ablation_find_the_planted_neurons_layer(with_neuron):
    prompt, target = f"w1 w2 {planted.READS}", planted.WRITES
    parts = direct_logit_attribution(
        with_neuron, prompt, target=target, foil="w20", by="neuron"
    ).values["neuron"]
    assert found(parts) == {planted.NEURON}
    effect = ablate(
        with_neuron, prompt, metric=Metric.logit_diff(target, "w20"), over="mlp_out"
    ).effect
    assert effect[planted.NEURON[0]] < -1
    assert found(effect) == {planted.NEURON[:1]}
