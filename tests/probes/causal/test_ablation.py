"""Ablation against one plain run for each place, on every engine."""

import numpy as np
import pytest

from gpt2kit.errors import InputError
from gpt2kit.taps import axes_of
from probes.causal.ablation import ablate
from probes.core.metrics import Metric
from tests import by_hand
from tests.conftest import close, random_ids
from tests.probes.causal.support import (
    CLEAN,
    CORRUPT,
    DIFF,
    HEADS,
    LAYERS,
    POS,
    PROMPTS,
    logit_diff,
    put,
)


def ablated_by_hand(runner, ids: np.ndarray, over: str, put_in: dict[str, np.ndarray]):
    """(layers, heads or 1) the logit difference."""
    out = []
    for layer in LAYERS:
        tap = f"blocks.{layer}.{over}"
        heads = [(slice(None),) * 2 + (h,) for h in range(HEADS)] if over == "z" else [(...,)]
        out.append([])
        for where in heads:
            value = np.broadcast_to(
                put_in[tap], by_hand.forward(runner.model, ids[None])[tap].shape
            )
            run = by_hand.forward(runner.model, ids[None], {tap: put(value.copy(), where)})
            out[-1].append(logit_diff(run["logits"]))
    return np.array(out)


@pytest.mark.parametrize("over", ["z", "mlp_out"])
@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_zero_and_mean_ablation_equal_their_definition(double, over, kind):
    got = ablate(double, PROMPTS, metric=DIFF, over=over, kind=kind)
    runs = [by_hand.forward(double.model, ids[None]) for ids in PROMPTS]
    taps = [f"blocks.{layer}.{over}" for layer in LAYERS]
    put_in = {tap: np.concatenate([run[tap] for run in runs], axis=1).mean(1) for tap in taps}
    if kind == "zero":
        put_in = {tap: 0 * value for tap, value in put_in.items()}
    want = np.stack([ablated_by_hand(double, ids, over, put_in) for ids in PROMPTS])
    close(got.values, want.reshape(got.values.shape), 1e-9)
    close(got.baseline, [logit_diff(run["logits"]) for run in runs], 1e-9)
    close(got.effect, (got.values - got.baseline.reshape(-1, *[1] * (got.values.ndim - 1))).mean(0))
    assert got.axes == (("layer", "head") if over == "z" else ("layer",))


def test_the_mean_may_be_of_other_prompts(double):
    others = random_ids(2, 4, seed=9)
    got = ablate(double, PROMPTS[:1], metric=DIFF, kind="mean", reference=list(others))
    taps = by_hand.forward(double.model, others)
    put_in = {f"blocks.{i}.z": taps[f"blocks.{i}.z"].mean((0, 1)) for i in LAYERS}
    close(got.values[0], ablated_by_hand(double, PROMPTS[0], "z", put_in), 1e-9)
    assert got.put_in == "the mean over the positions of 2 prompts"


def test_resampling_from_itself_changes_nothing(engine):
    got = ablate(engine, [CLEAN], metric=DIFF, kind="resample", reference=[CLEAN])
    close(got.effect, np.zeros((3, HEADS)))


@pytest.mark.parametrize("over", ["z", "attn_out", "pattern"])
def test_resampling_puts_in_the_other_prompt(double, over):
    got = ablate(double, [CORRUPT], metric=DIFF, over=over, kind="resample",
                 reference=[np.append(CLEAN, 3)])  # fmt: skip
    clean = by_hand.forward(double.model, CLEAN[None])
    for layer in LAYERS:
        tap = f"blocks.{layer}.{over}"
        for h in range(HEADS if over != "attn_out" else 1):
            cell = {"head": h} if over != "attn_out" else {}
            where = tuple(cell.get(axis, slice(None)) for axis in axes_of(tap))
            run = by_hand.forward(double.model, CORRUPT[None], {tap: put(clean[tap], where)})
            found = got.values[0, layer] if over == "attn_out" else got.values[0, layer, h]
            assert found == pytest.approx(logit_diff(run["logits"]), abs=1e-9)


def test_resampling_draws_another_prompt_by_the_seed(double):
    prompts = [*random_ids(4, POS, seed=6)]
    draws = {}
    for seed in range(8):
        got = ablate(double, prompts, metric=DIFF, kind="resample", seed=seed)
        assert (np.abs(got.values[:, -1] - got.baseline[:, None]).max(1) > 1e-6).all()
        draws[seed] = got.values
    close(ablate(double, prompts, metric=DIFF, kind="resample", seed=3).values, draws[3], 0)
    assert any(not np.allclose(draws[0], draws[seed]) for seed in range(1, 8))


def test_each_prompt_is_judged_by_its_own_tokens_and_reference(double):
    own = Metric.logprob([1, 2, 3])
    got = ablate(double, PROMPTS, metric=own)
    for i, ids in enumerate(PROMPTS):
        alone = ablate(double, [ids], metric=Metric.logprob(i + 1))
        close(got.values[i], alone.values[0], 1e-12)
    kl = ablate(double, PROMPTS, metric=Metric.kl())
    close(kl.baseline, np.zeros(3), 1e-12)
    assert (kl.values > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "median"}, "kind = 'median' is not one of zero, mean, resample"),
        ({"over": "zz"}, "unknown tap"),
        ({"metric": Metric.logit_diff([1, 2, 3], [4, 2, 5])}, "target and foil are both 2, whose"),
        ({"over": "ln_1_scale"}, "a layer norm divides by blocks.0.ln_1_scale, which cannot be 0"),
        ({"over": "pattern", "kind": "mean"}, "pattern has no mean over positions"),
        ({"prompts": []}, "no prompts were given"),
        ({"prompts": [CLEAN], "kind": "resample"}, "no other prompt has as many"),
        (
            {"kind": "resample", "reference": [CLEAN[:3]]},
            "prompt 0 has 5 tokens and no reference prompt has as many",
        ),
        (
            {"prompts": [CLEAN[:1]], "kind": "resample"},
            "^the prompt has 1 token and no other prompt has as many to resample from; give",
        ),
    ],
)
def test_ablation_refuses_what_it_cannot_do(torch_runner, options, message):
    given = {"prompts": PROMPTS, "metric": DIFF} | options
    with pytest.raises(InputError, match=message) as caught:
        ablate(torch_runner, given.pop("prompts"), **given)
    assert "\n" not in str(caught.value)


def test_taps_outside_the_blocks_are_ablated_too(double):
    got = ablate(double, [CLEAN], metric=DIFF, over="embed")
    run = by_hand.forward(double.model, CLEAN[None], {"embed": lambda x: 0 * x})
    assert (got.axes, got.values.shape) == (("tap",), (1, 1))
    assert got.values[0, 0] == pytest.approx(logit_diff(run["logits"]), abs=1e-9)
    assert any(row.startswith("embed ") for row in str(got).splitlines())


def test_an_ablated_tap_outside_the_blocks_has_its_name_once(runner):
    found = ablate(runner, CLEAN, metric=DIFF, over="embed")
    assert "strongest at tap embed: " in repr(found)
    close(found.values, ablate(runner, [CLEAN], metric=DIFF, over="embed").values, 0)
    assert [line.split()[0] for line in str(found).splitlines()[-3:-1]] == ["tap", "embed"]
