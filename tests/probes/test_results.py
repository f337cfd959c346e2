"""Every result of the probes is text that fits, HTML, and JSON, whatever it is of."""

import io
import json
import re

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

import probes
from gpt2kit import TorchRunner
from gpt2kit.result import Result
from probes import Metric, TunedLens
from probes.facts.check import check_facts
from tests.conftest import CONFIG

A, B = "the [/] b", "the [b] b"
TAP = "blocks.1.resid_post"
TEXTS = ["a b", "a c", "a d", "a e", "b x", "c x", "d x", "e x"]
LABELS = [0] * 4 + [1] * 4
METRIC = Metric.logit_diff("[", "/")
ANSWER = {"target": "a", "foil": "b"}
WORDS = (" a",), (" b",)
MAKERS = {
    "Ablation": lambda r: probes.ablate(r, [A, B], metric=METRIC),
    "AttentionPatterns": lambda r: probes.attention_patterns(r, A),
    "AttentionStatistics": lambda r: probes.attention_statistics(r, A),
    "CircuitTokens": lambda r: probes.qk_top_tokens(r, 1, 2, "a"),
    "CopyingScores": probes.copying_score,
    "DirectLogitAttribution": lambda r: probes.direct_logit_attribution(r, A, **ANSWER, by="head"),
    "Direction": lambda r: probes.mean_difference(r, TEXTS[:4], TEXTS[4:], tap=TAP),
    "EditEffect": lambda r: probes.edit_effect(r, A, "blocks.1.z = 0", max_new_tokens=4, seed=0),
    "GenerationLens": lambda r: probes.generation_lens(r, A, max_new_tokens=4, seed=0),
    "GreaterThan": lambda r: probes.GreaterThan(("a",), ("b",), np.array([98]), *[(("99",),)] * 4),
    "HeadLens": lambda r: probes.head_lens(r, A, 1, 2, targets="a"),
    "HeadScores": lambda r: probes.head_scores(r, length=8),
    "InputAttribution": lambda r: probes.input_attribution(r, A, **ANSWER),
    "LinearProbe": lambda r: probes.linear_probe(r, TEXTS, LABELS, tap=TAP),
    "LogitLens": lambda r: probes.logit_lens(r, A, targets="a"),
    "NearestTokens": lambda r: probes.nearest_tokens(r, 1, 5),
    "NeuronLens": lambda r: probes.neuron_lens(r, 1, 5),
    "Pairs": lambda r: probes.Pairs("ioi", *WORDS, ("x",), *WORDS, np.array([1]), np.array([2])),
    "Patching": lambda r: probes.activation_patching(r, A, B, metric=METRIC),
    "Paths": lambda r: probes.path_patching(r, A, B, metric=METRIC, senders="*", receivers="*"),
    "Steered": lambda r: probes.steer(r, "a", MAKERS["Direction"](r), [-1, 0, 1], max_new_tokens=9),
    "TopActivating": lambda r: probes.top_activating(r, 1, 5, ["the [b] and more"] * 3),
    "Trajectory": lambda r: probes.trajectory(r, A),
    "TunedLens": TunedLens.identity,
}  # fmt: skip

WITHOUT_DTYPE = {"Direction", "EditEffect", "GenerationLens", "GreaterThan", "Pairs", "TunedLens"}


def drawn(result: Result, width: int) -> list[str]:
    console = Console(width=width, color_system=None, file=io.StringIO())
    with console.capture() as capture:
        console.print(result.render())
    return capture.get().splitlines()


class Quantised(TorchRunner):
    """A torch model that claims to have the weights of a file quantised to 8 bits."""

    precision = "int8"


def refused(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_no_result_is_left_out():
    public = [getattr(probes, name) for name in probes.__all__]
    assert {x.__name__ for x in public if isinstance(x, type) and issubclass(x, Result)} == set(
        MAKERS
    )


@pytest.mark.parametrize("name", MAKERS)
def test_a_result_can_be_read_everywhere(torch_runner, name):
    result = MAKERS[name](torch_runner)
    assert type(result).__name__ == name
    assert re.fullmatch(rf"{name}\(.+\)", repr(result))
    for width in (80, 200):
        assert max(map(cell_len, drawn(result, width))) <= width
    shown = re.sub(r"<[^>]*>", "", result._repr_html_())
    assert drawn(result, 200)[0].split()[0] in shown
    data = json.loads(result.to_json(), parse_constant=refused)
    assert set(data) >= {"cells"} if name == "LogitLens" else set(vars(result)) <= set(data)


@pytest.mark.parametrize("name", [*sorted(MAKERS.keys() - WITHOUT_DTYPE), "FactsReport"])
def test_a_result_from_a_quantised_file_says_so(torch_runner, name):
    make = MAKERS.get(name, lambda r: check_facts(r, []))
    quantised = Quantised(torch_runner.model, torch_runner.tokenizer, torch_runner.source)
    result = make(quantised)
    assert result.dtype == "int8"
    assert "  int8" in drawn(result, 200)[0]


def test_a_step_of_a_generation_is_one_line(torch_runner):
    steps = MAKERS["GenerationLens"](torch_runner).steps
    assert CONFIG.n_layer + 1 == len(steps[0].ranks)
    for step in steps:
        led = f"leads from row {step.leads_from}" if step.leads_from >= 0 else "drawn"
        assert repr(step) == f"Step({step.token!r}, {led} of 4, {step.logprobs[-1]:.3g} nats)"
        assert str(step) == repr(step) + "\n"
