"""Input attribution against gradients by finite differences."""

import numpy as np
import pytest
import torch

from gpt2kit import TorchRunner, load
from probes.attribution.direct import direct_logit_attribution
from probes.attribution.inputs import METHODS, input_attribution
from tests.by_hand import forward
from tests.conftest import byte_tokenizer, close, random_model
from tests.probes.attribution.support import BOTH, PROMPT, id_of


def number(runner: TorchRunner, ids, position: int, scale: np.ndarray) -> float:
    """Logit of "a" minus logit of "b", with the token embeddings multiplied by `scale` (pos,)."""
    scales = torch.from_numpy(scale)[None, :, None]
    out = forward(runner.model, np.asarray([ids]), {"embed": lambda x: x * scales})
    logits = out["logits"][0, position]
    return float(logits[id_of("a")] - logits[id_of("b")])


def slopes(runner: TorchRunner, ids, position: int, point: float) -> np.ndarray:
    """(pos,) gradient times embedding, with all embeddings multiplied by `point`."""
    h, eye = 1e-5, np.eye(len(ids))
    ends = [[number(runner, ids, position, point + s * h * e) for e in eye] for s in (1, -1)]
    return (np.array(ends[0]) - ends[1]) / (2 * h)


@pytest.mark.parametrize("position", [-1, 3])
def test_gradient_x_input_equals_finite_differences(exact, position):
    found = input_attribution(
        exact, PROMPT, target="a", foil="b", method="gradient_x_input", position=position
    )
    ids, at = found.prompt_ids, found.position
    close(found.values, slopes(exact, ids, at, 1.0), 1e-6)
    ends = [number(exact, ids, at, np.full(len(ids), x)) for x in (0.0, 1.0)]
    close([found.baseline_total, found.total], ends, 1e-9)
    close(found.completeness, found.values.sum() - (ends[1] - ends[0]), 1e-9)
    assert abs(found.completeness) > 0.01  # the model is not linear
    assert (found.values[at + 1 :] == 0).all()


def test_integrated_gradients_equal_the_integral(double):
    ids = double.tokenizer.encode(PROMPT)[:6]
    found = input_attribution(double, ids, target="a", foil="b", steps=100)
    middles = (np.arange(120) + 0.5) / 120
    close(found.values, np.mean([slopes(double, ids, -1, x) for x in middles], axis=0), 1e-3)
    assert abs(found.completeness) < 1e-6


def test_enough_steps_are_complete(exact):
    gaps = [
        abs(input_attribution(exact, PROMPT, target="a", steps=steps).completeness)
        for steps in (2, 20, 300)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-8


def test_the_bundled_model_is_complete_by_default(bundled):
    text = "Tom and Lily went to the park. Tom gave the ball to"
    found = input_attribution(bundled, text, target=" Lily", foil=" Tom")
    assert abs(found.completeness) < 1e-3 < abs(found.total - found.baseline_total)
    logits = bundled.run(found.prompt_ids).logits[0, -1]
    lily, tom = (bundled.tokenizer.single(text) for text in (" Lily", " Tom"))
    close(found.total, logits[lily] - logits[tom])


@pytest.mark.parametrize("method", METHODS)
def test_a_foil_gives_the_difference_for_tokens_as_well(exact, method):
    diff = input_attribution(exact, PROMPT, target="a", foil="b", method=method)
    a, b = (input_attribution(exact, PROMPT, target=text, method=method) for text in "ab")
    close(diff.values, a.values - b.values, 1e-9)
    close(diff.completeness, a.completeness - b.completeness, 1e-9)


def test_many_steps_go_in_several_passes(exact, monkeypatch):
    whole = input_attribution(exact, PROMPT, target="a", steps=7)
    monkeypatch.setattr("probes.attribution.inputs._BACKWARD_TOKENS", 3 * len(whole.prompt_ids) + 1)
    close(input_attribution(exact, PROMPT, target="a", steps=7).values, whole.values, 1e-9)


def test_nothing_is_left_on_the_model(torch_runner):
    model = random_model()
    runner = TorchRunner(model, byte_tokenizer())
    before = {name: x.clone() for name, x in model.state_dict().items()}
    for wanted in (False, True):
        model.requires_grad_(wanted)
        for method in METHODS:
            input_attribution(runner, PROMPT, target="a", method=method)
        direct_logit_attribution(runner, PROMPT, target="a", by="neuron")
        assert all(x.grad is None and x.requires_grad is wanted for x in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(torch_runner, off):
    want = input_attribution(torch_runner, PROMPT, target="a")
    with off():
        close(input_attribution(torch_runner, PROMPT, target="a").values, want.values)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize(("dtype", "slack"), [("float16", 0.005), ("bfloat16", 0.03)])
def test_half_precision_is_near(bundled, dtype, slack):
    text, options = "Once upon a time, there was a", {"target": " girl", "foil": " boy"}
    half = input_attribution(load("bundled", device="cpu", dtype=dtype), text, **options)
    want = input_attribution(bundled, text, **options)
    assert np.abs(half.values - want.values).max() < slack * np.abs(want.values).max()
    assert abs(half.completeness) < slack * max(1, np.abs(want.values).sum())


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_on_a_gpu(bundled, dtype):
    slack = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}[dtype]
    text, options = "Once upon a time, there was a", {"target": " girl", "foil": " boy"}
    cuda = load("bundled", device="cuda", dtype=dtype)
    parts, tokens = (probe(cuda, text, **options) for probe in BOTH)
    close(parts.parts, direct_logit_attribution(bundled, text, **options).parts, slack)
    want = input_attribution(bundled, text, **options).values
    assert np.abs(tokens.values - want).max() < slack * np.abs(want).max()


def test_input_attribution_has_one_row_a_token_and_is_read_back(torch_runner):
    found = input_attribution(torch_runner, PROMPT, target="a", position=4)
    rows = found.table()
    assert [row["token_id"] for row in rows] == found.prompt_ids.tolist()
    assert [row["value"] for row in rows] == found.values.tolist()
    assert found.to_csv().splitlines()[0] == "position,token_id,token,value"
    assert type(found).from_json(found.to_json()) == found
