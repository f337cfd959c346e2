"""The contract of results: every result of the probes is saved, read back, tabulated and drawn."""

import csv
import html
import io
import json
import re

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

import probes
from gpt2kit import TorchRunner
from gpt2kit.errors import InputError
from gpt2kit.result import ModelResult, PromptResult, Result
from probes import Metric, TunedLens
from probes.facts.check import check_facts
from probes.facts.fact import Fact
from tests.conftest import CONFIG

A, B = "the [/] b", "the [b] b"
TAP = "blocks.1.resid_post"
TEXTS = ["a b", "a c", "a d", "a e", "b x", "c x", "d x", "e x"]
LABELS = [0] * 4 + [1] * 4
METRIC = Metric.logit_diff("[", "/")
ANSWER = {"target": "a", "foil": "b"}
WORDS = (" a",), (" b",)
FACTS = [
    Fact(name="one", source="here", measure=lambda _: [1.5], claimed=(1.0,), reason="rounding"),
    Fact(name="two", source="there", claimed=(1.0, 2.0), labels=("a", "b"), reason="not measured"),
]
PUBLIC = {
    "Ablation": lambda r: probes.ablate(r, [A, B], metric=METRIC),
    "AttentionPatterns": lambda r: probes.attention_patterns(r, A),
    "AttentionStatistics": lambda r: probes.attention_statistics(r, A),
    "CircuitTokens": lambda r: probes.qk_top_tokens(r, 1, 2, "a"),
    "CopyingScores": probes.copying_score,
    "DirectLogitAttribution": lambda r: probes.direct_logit_attribution(r, A, **ANSWER, by="head"),
    "Direction": lambda r: probes.mean_difference(r, TEXTS[:4], TEXTS[4:], tap=TAP),
    "EditEffect": lambda r: probes.edit_effect(r, A, "blocks.1.z = 0", max_new_tokens=4, seed=0),
    "GenerationLens": lambda r: probes.generation_lens(r, A, max_new_tokens=4, seed=0),
    "GreaterThan": lambda r: probes.GreaterThan(
        ("a",), ("b",), np.array([98]), (("99",),), (("98", "97"),), ((5,),), ((6, 7),)
    ),
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
    "Steered": lambda r: probes.steer(r, "a", PUBLIC["Direction"](r), [-1, 0, 1], max_new_tokens=9),
    "TopActivating": lambda r: probes.top_activating(r, 1, 5, ["the [b] and more"] * 3),
    "Trajectory": lambda r: probes.trajectory(r, A),
    "TunedLens": TunedLens.identity,
}  # fmt: skip
OTHERS = {
    "FactsReport": lambda r: check_facts(r, FACTS),
    "HeadPattern": lambda r: probes.attention_patterns(r, A).show(1, 2),
    "Saving": lambda r: PUBLIC["Patching"](r).saving,
    "Step": lambda r: PUBLIC["GenerationLens"](r).steps[0],
}
MAKERS = PUBLIC | OTHERS
# Drawn without the title that shows the model and its precision.
WITHOUT_TITLE = {"Direction", "EditEffect", "GenerationLens"}


def drawn(result: Result, width: int) -> list[str]:
    """The lines of a result in a terminal of this width."""
    console = Console(width=width, color_system=None, file=io.StringIO())
    with console.capture() as capture:
        console.print(result.render())
    return capture.get().splitlines()


class Quantised(TorchRunner):
    """A torch model that claims to have the weights of a file quantised to 8 bits."""

    precision = "int8"


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def concrete(kind: type[Result]) -> set[type[Result]]:
    """The results of the probes that inherit from `kind` and have no heirs of their own."""
    heirs = kind.__subclasses__()
    own = {kind} if not heirs and kind.__module__.startswith("probes.") else set()
    return own.union(*map(concrete, heirs))


def test_no_result_is_left_out():
    public = [getattr(probes, name) for name in probes.__all__]
    results = {x.__name__ for x in public if isinstance(x, type) and issubclass(x, Result)}
    assert results == set(PUBLIC)
    assert {kind.__name__ for kind in concrete(Result)} == set(MAKERS)


@pytest.fixture(scope="module", params=MAKERS)
def result(request, torch_runner) -> Result:
    """One result of each type."""
    made = MAKERS[request.param](torch_runner)
    assert type(made).__name__ == request.param
    return made


def test_a_result_is_drawn_within_the_width_and_as_html(result):
    name = type(result).__name__
    assert re.fullmatch(rf"{name}\(.+\)" if name in PUBLIC else r".+", repr(result))
    for width in (80, 200):
        assert max(map(cell_len, drawn(result, width))) <= width
    shown = html.unescape(re.sub(r"<[^>]*>", "", result._repr_html_()))
    assert drawn(result, 200)[0].split()[0] in shown


def test_a_saved_result_has_a_header_and_all_fields(result):
    data = json.loads(result.to_json(), parse_constant=refuse_constant)
    assert data == result.to_dict()  # plain already
    assert data["schema_version"] == result.schema_version == 1
    if type(result).__name__ == "LogitLens":  # which keeps the keys of its first version
        assert data["kind"] == result.kind
        assert set(data) >= {"model", "dtype", "bos_added", "ids", "tokens", "rows", "cells"}
        assert set(data) >= {"source", "prompt_ids", "prompt_tokens", "has_bos"}
    else:
        assert data["kind"] == result.result_kind()
        assert set(vars(result)) <= set(data)


def test_a_saved_result_comes_back_equal(result):
    kind = type(result)
    for back in (kind.from_dict(result.to_dict()), kind.from_json(result.to_json())):
        assert type(back) is kind
        assert back == result
        assert hash(back) == hash(result)
        assert back.to_dict() == result.to_dict()
        assert drawn(back, 80) == drawn(result, 80)


def test_data_that_is_not_this_result_is_refused(result):
    kind, data = type(result), result.to_dict()
    with pytest.raises(InputError, match="saved data of kind 'cake' given"):
        kind.from_dict(data | {"kind": "cake"})
    with pytest.raises(InputError, match="schema version 2 is unknown"):
        kind.from_dict(data | {"schema_version": 2})
    with pytest.raises(InputError, match=r"cannot be read|saved data has no"):
        kind.from_dict({name: data[name] for name in ("kind", "schema_version")})
    with pytest.raises(InputError, match="an object is needed, got NoneType"):
        kind.from_dict(None)
    with pytest.raises(InputError, match="not JSON"):
        kind.from_json(result.to_json()[:-1])
    with pytest.raises(InputError, match="must be a JSON object"):
        kind.from_json("[]")


def test_a_table_has_rows_of_plain_values(result):
    rows = result.table()
    assert isinstance(rows, list)
    assert rows
    for row in rows:
        assert list(row) == list(rows[0])
        for value in row.values():
            assert type(value) in (str, int, float, bool, type(None))


def test_a_table_becomes_csv_and_a_data_frame(result):
    rows, columns = result.table(), list(result.table()[0])
    read = list(csv.DictReader(io.StringIO(result.to_csv(), newline="")))
    assert [list(row) for row in read] == [columns] * len(rows)
    for row, want in zip(read, rows, strict=True):
        assert row == {name: "" if x is None else str(x) for name, x in want.items()}
    frame = result.to_dataframe()
    assert frame.shape == (len(rows), len(columns))
    assert list(frame.columns) == columns


def test_a_result_about_a_model_says_which_and_in_which_precision(result):
    if isinstance(result, ModelResult):
        assert (result.source, result.dtype) == ("random", "float32")
    if isinstance(result, PromptResult):
        assert len(result.prompt_ids) == len(result.prompt_tokens)
        assert not result.has_bos


@pytest.mark.parametrize("name", MAKERS)
def test_a_result_from_a_quantised_file_says_so(torch_runner, name):
    quantised = Quantised(torch_runner.model, torch_runner.tokenizer, torch_runner.source)
    result = MAKERS[name](quantised)
    if isinstance(result, ModelResult):
        assert result.dtype == "int8"
        assert ("  int8" in drawn(result, 200)[0]) == (name not in WITHOUT_TITLE)


def test_a_step_of_a_generation_is_one_line(torch_runner):
    steps = MAKERS["GenerationLens"](torch_runner).steps
    assert CONFIG.n_layer + 1 == len(steps[0].ranks)
    for step in steps:
        led = f"leads from row {step.leads_from}" if step.leads_from >= 0 else "drawn"
        assert repr(step) == f"Step({step.token!r}, {led} of 4, {step.logprobs[-1]:.3g} nats)"
        assert str(step) == repr(step) + "\n"


def test_a_tuned_lens_is_a_result_of_another_kind_of_the_same_type(torch_runner):
    lens = TunedLens.identity(torch_runner)
    read = probes.tuned_lens(torch_runner, A, lens, targets=["a", 5], positions=[-1, 2])
    back = probes.LogitLens.from_json(read.to_json())
    assert back == read
    assert (back.kind, back.positions.tolist()) == ("tuned lens", read.positions.tolist())
    assert back != probes.logit_lens(torch_runner, A, targets=["a", 5], positions=[-1, 2])


def test_facts_come_back_without_their_measurements(torch_runner):
    report = check_facts(torch_runner, FACTS)
    back = type(report).from_json(report.to_json())
    assert back.passed == report.passed
    assert [row.fact for row in back.rows] == [row.fact for row in report.rows]
    assert all(row.fact.measure is None for row in back.rows)


def test_results_are_compared_by_content_and_kept_in_sets(torch_runner):
    """NaN equals NaN: the last token has no next one."""
    one, two = (probes.logit_lens(torch_runner, "the ") for _ in range(2))
    assert np.isnan(one.next_logprobs).any()
    assert one == one
    assert one == two
    assert one != probes.logit_lens(torch_runner, "the", top_k=2)
    assert one != "the "
    assert len({one, two, one}) == 1


@pytest.mark.parametrize("damage", [None, "x", 5, [], {}, [None], [["x"]]])
def test_a_damaged_field_is_an_input_error_or_another_result(result, damage):
    """Every field in turn; what is read from damaged data cannot equal the result."""
    data = result.to_dict()
    for name in data.keys() - {"units", "passed"}:  # which say nothing of their own
        if data[name] != damage:
            try:
                back = type(result).from_dict(data | {name: damage})
            except InputError:
                continue
            assert back.to_dict() != data
