"""Arguments of a wrong type are refused by name; ids serve as tokens; results are read back."""

import numpy as np
import pytest

from gpt2kit import Edit
from gpt2kit.errors import InputError
from probes.causal.ablation import ablate
from probes.causal.edit_effect import edit_effect
from probes.causal.gradients import attribution_patching, edge_attribution_patching
from probes.causal.patching import activation_patching
from probes.causal.paths import path_patching
from probes.core.metrics import Metric

A, B = "the cat", "the hat"
METRIC = Metric.logit_diff("a", "b")
PATHS = {"senders": "*", "receivers": "*", "metric": METRIC}
PATCHING = [activation_patching, attribution_patching]


@pytest.mark.parametrize("probe", PATCHING)
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"clean": None}, "clean = None"),
        ({"corrupt": 5}, "corrupt = 5"),
        ({"clean": [1.9]}, "a prompt is a text or a row of token ids"),
        ({"metric": 5}, "metric = 5"),
        ({"metric": None}, "metric = None"),
        ({"metric": Metric}, "metric = <class"),
        ({"metric": Metric.prob("a", position=1.5)}, r"the metric's position 1\.5"),
        ({"metric": Metric.prob("a", position="1")}, "the metric's position '1'"),
        ({"over": 3}, "over = 3"),
        ({"over": None}, "over = None"),
        ({"over": ["z"]}, r"over = \['z'\]"),
        ({"heads": 1.5, "over": "z"}, r"heads 1\.5"),
        ({"heads": "x", "over": "z"}, "heads 'x'"),
        ({"positions": [1.5]}, r"positions \[1\.5\]"),
        ({"positions": "x"}, "positions 'x'"),
        ({"keys": [0.5], "over": "pattern"}, r"keys \[0\.5\]"),
    ],
)
def test_patching_refuses_wrong_types(torch_runner, probe, options, named):
    given = {"clean": A, "corrupt": B, "metric": METRIC, "over": "resid_post"} | options
    with pytest.raises(InputError, match=named) as caught:
        probe(torch_runner, given.pop("clean"), given.pop("corrupt"), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prompts": None}, "prompts = None"),
        ({"prompts": 5}, "prompts = 5"),
        ({"prompts": [1.9]}, r"prompts = \[1\.9\]"),
        ({"prompts": ["a", None]}, r"prompts = \['a', None\]"),
        ({"metric": 5}, "metric = 5"),
        ({"over": 3}, "over = 3"),
        ({"kind": None}, "kind = None"),
        ({"kind": 1}, "kind = 1"),
        ({"reference": [1.9], "kind": "mean"}, r"reference = \[1\.9\]"),
        ({"reference": 5, "kind": "resample"}, "reference = 5"),
        ({"reference": [], "kind": "mean"}, "reference is empty"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 1.5}, r"seed = 1\.5"),
        ({"seed": None}, "seed = None"),
    ],
)
def test_ablation_refuses_wrong_types(torch_runner, options, named):
    given = {"prompts": [A, B], "metric": METRIC} | options
    with pytest.raises(InputError, match=named) as caught:
        ablate(torch_runner, given.pop("prompts"), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("probe", [path_patching, edge_attribution_patching])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"senders": None}, "senders = None"),
        ({"senders": 5}, "senders = 5"),
        ({"senders": [5]}, r"senders = \[5\]"),
        ({"receivers": None}, "receivers = None"),
        ({"receivers": 1.5}, r"receivers = 1\.5"),
        ({"receivers": ["logits", 5]}, "receivers = "),
        ({"metric": 5}, "metric = 5"),
    ],
)
def test_path_patching_refuses_wrong_types(torch_runner, probe, options, named):
    with pytest.raises(InputError, match=named) as caught:
        probe(torch_runner, A, B, **PATHS | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"edits": None}, "edits = None"),
        ({"edits": 5}, "edits = 5"),
        ({"edits": ["blocks.1.z = 0", None]}, "edits: None"),
        ({"shown": 1.5}, r"shown = 1\.5"),
        ({"shown": None}, "shown = None"),
        ({"prompt": 5}, "a prompt must be text, got int"),
    ],
)
def test_edit_effect_refuses_wrong_types(torch_runner, options, named):
    given = {"prompt": A, "edits": "blocks.1.z = 0"} | options
    with pytest.raises(InputError, match=named):
        edit_effect(
            torch_runner, given.pop("prompt"), given.pop("edits"), max_new_tokens=2, **given
        )


@pytest.mark.parametrize("make", [Metric.prob, Metric.logprob, Metric.rank])
@pytest.mark.parametrize("target", [None, 1.5, True, [], {"a"}])
def test_a_metric_names_a_wrong_target(make, target):
    with pytest.raises(InputError, match="target = "):
        make(target)


@pytest.mark.parametrize("foil", [None, 1.5, True, []])
def test_a_metric_names_a_wrong_foil(foil):
    with pytest.raises(InputError, match="foil = "):
        Metric.logit_diff("a", foil)


def test_a_metric_names_what_is_wrong_in_a_list(torch_runner):
    with pytest.raises(InputError, match=r"target = 1\.5 is neither a text nor a token id"):
        Metric.prob([1.5]).ids(torch_runner)
    with pytest.raises(InputError, match="foil = None is neither"):
        Metric.logit_diff("a", [None]).ids(torch_runner)
    with pytest.raises(InputError, match="function = 5"):
        Metric.of(5)
    with pytest.raises(InputError, match="name = 5"):
        Metric.of(len, name=5)


def test_token_ids_are_taken_like_texts(torch_runner):
    a, b = (torch_runner.tokenizer.single(text) for text in "ab")
    texts, ids = METRIC, Metric.logit_diff(a, np.int64(b))
    for probe in (activation_patching, attribution_patching):
        want, got = (probe(torch_runner, A, B, metric=metric) for metric in (texts, ids))
        np.testing.assert_array_equal(got.values, want.values)
    want, got = (ablate(torch_runner, A, metric=metric) for metric in (texts, ids))
    np.testing.assert_array_equal(got.values, want.values)


# Results as data


def test_patching_has_one_row_a_place_and_is_read_back(torch_runner):
    given = {"metric": METRIC, "over": "z", "heads": [2, 0], "positions": [-1]}
    found = activation_patching(torch_runner, A, B, **given)
    rows = found.table()
    places = [(row["layer"], row["head"], row["position"]) for row in rows]
    assert places == [(layer, head, 4) for layer in range(3) for head in (2, 0)]
    assert [row["value"] for row in rows] == found.values.ravel().tolist()
    assert [row["normalised"] for row in rows] == found.normalised.ravel().tolist()
    assert type(found).from_json(found.to_json()) == found
    linear = attribution_patching(torch_runner, A, B, metric=METRIC, over="embed")
    assert [row["tap"] for row in linear.table()] == ["embed"] * 5
    assert linear.saving is None
    assert type(linear).from_json(linear.to_json()) == linear


def test_ablation_has_one_row_a_prompt_and_place_and_is_read_back(torch_runner):
    found = ablate(torch_runner, [A, "the"], metric=METRIC)
    rows = found.table()
    assert [row["value"] for row in rows] == found.values.ravel().tolist()
    assert [row["baseline"] for row in rows] == np.repeat(found.baseline, 9).tolist()
    assert list(rows[0]) == ["prompt", "layer", "head", "value", "baseline"]
    again = type(found).from_json(found.to_json())
    assert again == found
    assert (again.kind, again.result_kind()) == ("zero", "ablation")
    assert again.saving[1].batches == found.saving[1].batches
    outside = ablate(torch_runner, A, metric=METRIC, over="embed")
    assert [row["tap"] for row in outside.table()] == ["embed"]
    saved = found.saving[0].table()[0]
    assert (saved["runs"], saved["batches"]) == (9, 3)


def test_paths_have_one_row_each_and_are_read_back(torch_runner):
    found = path_patching(torch_runner, A, B, **PATHS)
    rows = found.table()
    assert len(rows) == np.isfinite(found.scores).sum() < found.scores.size
    best = max(rows, key=lambda row: abs(row["score"]))
    assert (best["sender"], best["receiver"], best["score"]) == found.top(1)[0]
    with pytest.raises(InputError, match=r"count = 1\.5 must be an integer"):
        found.top(1.5)
    assert type(found).from_json(found.to_json()) == found


def test_an_edit_effect_has_one_row_a_token_and_is_read_back(torch_runner):
    edit = Edit.zero("blocks.1.z", head=1)
    found = edit_effect(torch_runner, A, edit, shown=3, max_new_tokens=2, seed=1)
    rows = found.table()
    assert [(row["side"], row["rank"]) for row in rows] == [
        (side, rank) for side in ("without", "with") for rank in range(3)
    ]
    assert [row["prob"] for row in rows] == found.top_probs.ravel().tolist()
    assert found.dtype == "float32"
    assert type(found).from_json(found.to_json()) == found
