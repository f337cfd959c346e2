"""Every probe refuses a model whose values overflow, in one line that says where."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest

import probes
from exporters import open_onnx
from gpt2kit import Edit
from gpt2kit.errors import InputError, NonFiniteError
from probes import Metric, TunedLens
from probes.core.base_run import BaseRun
from probes.facts.check import check_facts
from probes.facts.fact import Fact
from probes.facts.measures import loss
from tests.overflow import FIRST, altered_file, half_runner

A, B, METRIC = "the cat", "the bat", Metric.logit_diff("a", "b")
TAP, TEXTS = "blocks.1.resid_post", ["a b", "a c", "a d", "b x", "c x", "d x"]
ANSWER = {"target": "a", "foil": "b"}
PAIR = {"metric": METRIC, "senders": "*", "receivers": "*"}
DIRECTION = probes.Direction(TAP, np.ones(24), np.zeros(24), source="", dtype="float32")
FACT = Fact(
    name="loss", source="here", measure=lambda r: loss(r, text=A), claimed=(1.0,), reason=""
)

RUNS = {
    "ablate": lambda r: probes.ablate(r, A, metric=METRIC),
    "activation_patching": lambda r: probes.activation_patching(r, A, B, metric=METRIC),
    "attention_patterns": lambda r: probes.attention_patterns(r, A),
    "attention_statistics": lambda r: probes.attention_statistics(r, A),
    "direct_logit_attribution": lambda r: probes.direct_logit_attribution(r, A, **ANSWER),
    "edit_effect": lambda r: probes.edit_effect(r, A, "blocks.0.z = 0", max_new_tokens=2),
    "generation_lens": lambda r: probes.generation_lens(r, A, max_new_tokens=2),
    "head_lens": lambda r: probes.head_lens(r, A, 2, 0),
    "head_scores": lambda r: probes.head_scores(r, length=8),
    "linear_probe": lambda r: probes.linear_probe(r, TEXTS, [0, 0, 0, 1, 1, 1], tap=TAP),
    "logit_lens": lambda r: probes.logit_lens(r, A),
    "mean_difference": lambda r: probes.mean_difference(r, TEXTS[:3], TEXTS[3:], tap=TAP),
    "path_patching": lambda r: probes.path_patching(r, A, B, **PAIR),
    "pca_directions": lambda r: probes.pca_directions(r, TEXTS, tap=TAP),
    "steer": lambda r: probes.steer(r, "a", DIRECTION, [0, 1], max_new_tokens=2),
    "top_activating": lambda r: probes.top_activating(r, 2, 5, [A, "the"]),
    "trajectory": lambda r: probes.trajectory(r, A),
    "tuned_lens": lambda r: probes.tuned_lens(r, A, TunedLens.identity(r)),
    "facts": lambda r: check_facts(r, [FACT]),
}
TORCH_ONLY = {
    "attribution_patching": lambda r: probes.attribution_patching(r, A, B, metric=METRIC),
    "edge_attribution_patching": lambda r: probes.edge_attribution_patching(r, A, B, **PAIR),
    "input_attribution": lambda r: probes.input_attribution(r, A, **ANSWER),
    "train_tuned_lens": lambda r: probes.train_tuned_lens(r, A * 3, length=4, steps=2),
    "processed": lambda r: probes.logit_lens(probes.processed(r), A),
}
OF_WEIGHTS = {
    "copying_score": probes.copying_score,
    "nearest_tokens": lambda r: probes.nearest_tokens(r, 1, 5),
    "neuron_lens": lambda r: probes.neuron_lens(r, 1, 5),
    "ov_top_tokens": lambda r: probes.ov_top_tokens(r, 1, 0, "a"),
    "qk_top_tokens": lambda r: probes.qk_top_tokens(r, 1, 0, "a"),
}
TASKS = {"docstring_like", "greater_than", "ioi", "repeated_tokens"}


def test_no_probe_is_left_out():
    functions = {name for name in probes.__all__ if not isinstance(getattr(probes, name), type)}
    assert functions == ({*RUNS, *TORCH_ONLY, *OF_WEIGHTS} - {"facts"}) | TASKS


def test_probes_read_models_through_checked_runs_alone():
    """A direct call of these methods would show NaN as a result."""
    direct = [
        f"{file.name}: {ast.unparse(node)}"
        for file in Path(probes.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("run", "readout", "unembed")
    ]
    assert direct == ["tuned_training.py: model.unembed"]  # of the module; its loss is checked


@pytest.fixture(scope="module")
def half():
    return half_runner()


@pytest.fixture(scope="module", params=["portable", "fused"])
def altered(request, file_of, tmp_path_factory):
    file = altered_file(file_of(request.param, taps="*", edits="*"), tmp_path_factory.mktemp("inf"))
    return open_onnx(file, device="cpu")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [*RUNS, *TORCH_ONLY])
def test_a_half_precision_model_that_overflows_is_refused(half, name):
    with pytest.raises(NonFiniteError) as caught:
        (RUNS | TORCH_ONLY)[name](half)
    message = str(caught.value)
    assert "first seen in blocks.1.mlp_out (layer 1, position 0" in message
    assert "in float16 holds numbers up to 65504; try --dtype float32" in message
    assert "\n" not in message


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", RUNS)
def test_an_exported_file_that_overflows_is_refused(altered, name):
    with pytest.raises(NonFiniteError, match=f"^values become inf, {FIRST}"):
        RUNS[name](altered)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_probes_of_weights_alone_are_not_concerned(half, name):
    def refuse(constant):
        raise AssertionError(constant)

    data = json.loads(OF_WEIGHTS[name](half).to_json(), parse_constant=refuse)
    assert "inf" not in json.dumps(data)


def test_a_copy_that_overflows_alone_is_named(runner):
    """The base run is finite; an edit of one copy at one position is too large."""
    base = BaseRun(runner, np.array([1, 2, 3, 4]))
    edits = [Edit("blocks.1.mlp_out", add=3e38, at={"batch": 1, "pos": 2})]
    edits += [Edit("blocks.1.resid_mid", add=3e38, at={"batch": 1, "pos": 2})]
    with pytest.raises(
        NonFiniteError,
        match=r"become inf, first seen in blocks\.1\.ln_2_scale \(layer 1, position 2, row 1\)"
        r".* make the edits smaller$",
    ):
        base.run_copies(1, 3, edits)


# Tuned lenses


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_tuned_lens_that_is_not_finite_is_refused(torch_runner, part, wrong):
    good = TunedLens.identity(torch_runner)
    parts = {"weight": good.weight.copy(), "bias": good.bias.copy()}
    parts[part][1, 3] = wrong
    with pytest.raises(InputError, match=rf"{part}\[1, 3.*\] is {wrong}; give finite numbers"):
        TunedLens(good.source, good.sha256, **parts)


@pytest.mark.filterwarnings("error")
def test_a_tuned_lens_that_makes_a_stream_infinite_is_refused(torch_runner):
    good = TunedLens.identity(torch_runner)
    lens = TunedLens(good.source, good.sha256, good.weight + np.float32(3e38), good.bias)
    with pytest.raises(InputError, match="a translated stream"):
        probes.tuned_lens(torch_runner, A, lens)


def test_a_training_that_diverges_is_refused(torch_runner):
    with pytest.raises(
        NonFiniteError, match=r"the loss is not finite at step \d+; give a lower lr"
    ):
        probes.train_tuned_lens(torch_runner, A * 9, length=8, steps=9, lr=1e30)
