"""Activation patching and ablation against one plain run for each place, on both engines."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from gpt2kit import Edit
from gpt2kit.errors import InputError, TapError
from gpt2kit.logits import log_softmax
from gpt2kit.taps import axes_of, tap_axes
from probes.causal.ablation import ablate
from probes.causal.patching import activation_patching
from probes.causal.paths import path_patching
from probes.core import base_run, batching
from probes.core.metrics import Metric, as_metric
from tests import by_hand
from tests.conftest import CONFIG, close, random_ids

LAYERS, HEADS, POS = range(CONFIG.n_layer), CONFIG.n_head, 6
CLEAN = random_ids(POS, seed=1)
CORRUPT = CLEAN.copy()
CORRUPT[[2, 4]] = 7, 9
DIFF = Metric.logit_diff(11, 12)
KINDS = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_pre", "q", "k", "v",
         "z", "head_out", "attn_scores", "pattern", "ln_1_scale"]  # fmt: skip


class Whole:
    """A runner that can only run whole prompts, as an engine other than torch."""

    def __init__(self, runner) -> None:
        self.config, self.tokenizer, self.source = runner.config, runner.tokenizer, runner.source
        self.run, self.dtype, self.precision = runner.run, runner.dtype, runner.precision


@pytest.fixture(params=["torch", "whole", "onnx"])
def engine(request, torch_runner):
    if request.param == "onnx":
        return request.getfixturevalue("onnx_runner")
    return torch_runner if request.param == "torch" else Whole(torch_runner)


def logit_diff(logits: np.ndarray) -> float:
    return float(logits[0, -1, 11] - logits[0, -1, 12])


def put(value: np.ndarray, where: tuple = (...,)):
    """The change of a tap to `value` at `where`, for `by_hand.forward`."""

    def change(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[where] = torch.as_tensor(value)[where]
        return x

    return change


def one_by_one(runner, over: str, cells: list[dict[str, int]]) -> np.ndarray:
    """(layers, cells) the logit difference, one plain float64 run each."""
    clean = by_hand.forward(runner.model, CLEAN[None])
    out = np.zeros((len(LAYERS), len(cells)))
    for layer in LAYERS:
        tap = f"blocks.{layer}.{over}"
        if over == "resid_pre" and layer:
            tap = f"blocks.{layer - 1}.resid_post"
        for i, cell in enumerate(cells):
            where = tuple(cell.get(axis, slice(None)) for axis in axes_of(tap))
            run = by_hand.forward(runner.model, CORRUPT[None], {tap: put(clean[tap], where)})
            out[layer, i] = logit_diff(run["logits"])
    return out


# The metrics


def test_every_metric_equals_its_definition_on_arrays_and_tensors():
    logits, clean = np.random.default_rng(0).normal(0, 3, (2, 5, 17))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    r = np.exp(clean[0]) / np.exp(clean[0]).sum()
    want = {
        Metric.logit_diff(3, 5): logits[:, 3] - logits[:, 5],
        Metric.prob(3): p[:, 3],
        Metric.logprob(3): np.log(p[:, 3]),
        Metric.rank(3): [sorted(row)[::-1].index(row[3]) for row in logits],
        Metric.kl(): (r * (np.log(r) - np.log(p))).sum(-1),
        Metric.of(lambda x: x[:, 2] ** 2): logits[:, 2] ** 2,
    }
    for metric, values in want.items():
        ids = np.array(metric.tokens, int)
        reference = log_softmax(clean[0])
        close(metric(logits, ids, reference), values, 1e-12)
        tensors = torch.tensor(logits), ids, torch.tensor(reference)
        close(metric(*tensors).numpy(), values, 1e-12)


def test_a_target_is_a_text_or_an_id_and_may_be_one_a_prompt(torch_runner):
    a, b, c = (torch_runner.tokenizer.single(text) for text in "abc")
    assert Metric.logit_diff("a", np.int64(b)).ids(torch_runner).tolist() == [[a, b]]
    assert Metric.logit_diff(["a", b], "c").ids(torch_runner, 2).tolist() == [[a, c], [b, c]]
    assert "'a'" in repr(Metric.prob("a"))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (Metric.prob("cat"), "'cat' is not one token: it is 'c' \\+ 'a' \\+ 't'"),
        (Metric.prob(CONFIG.vocab_size), f"outside the vocabulary of {CONFIG.vocab_size}"),
        (Metric.prob(["a", "b"]), "names 2 tokens for 1 prompt;"),
        (Metric.logit_diff("a", "a"), "target and foil are both 'a', whose difference is always 0"),
        (lambda x: x, r"gave shape \(1, \d+\) for logits"),
        (lambda x: 1.0, "gave float for logits"),
        ("logit_diff", "'logit_diff' is neither a Metric nor a function"),
        (
            Metric.prob("a", position=POS),
            f"position {POS} does not lie in the prompt, which has {POS} tokens",
        ),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(torch_runner, metric, message):
    with pytest.raises(InputError, match=message) as caught:
        activation_patching(torch_runner, CLEAN, CORRUPT, metric=metric)
    assert "\n" not in str(caught.value)


# A run from a later layer


@pytest.mark.parametrize("layer", [0, 1, CONFIG.n_layer])
def test_a_run_from_a_layer_is_the_rest_of_a_run(double, layer):
    ids = random_ids(2, POS)
    order = list(tap_axes(CONFIG.n_layer))
    entry = ("blocks.0.resid_pre", *(f"blocks.{i}.resid_post" for i in LAYERS))[layer]
    later = order[order.index(entry) :]
    edits = [Edit.scale(entry, 0.5, pos=1, batch=0), Edit.steer("ln_f", np.ones(CONFIG.n_embd))]
    want = double.run(ids, taps=later, edits=edits)
    resid = double.run(ids, taps=[entry]).taps[entry]
    got = double.run_from(layer, resid, taps=later, edits=edits)
    assert list(got.taps) == list(want.taps)
    close(got.logits, want.logits, 1e-12)
    for tap in later:
        close(got.taps[tap], want.taps[tap], 1e-12)
    last = double.run_from(layer, resid, edits=edits, last_only=True)
    close(last.logits, want.logits[:, -1:], 1e-12)


@pytest.mark.parametrize(
    ("layer", "shape", "options", "message"),
    [
        (2, (1, 3, 24), {"taps": ["blocks.1.z"]}, "blocks.1.z comes before layer 2"),
        (2, (1, 3, 24), {"edits": [Edit.zero("embed")]}, "embed comes before layer 2"),
        (4, (1, 3, 24), {}, "layer = 4 must be from 0 to 3"),
        (1, (3, 24), {}, r"a residual stream is \(batch, pos, 24\), got \(3, 24\)"),
        (1, (1, 41, 24), {}, "41 positions do not fit the context of 40"),
    ],
)
def test_a_run_from_a_layer_refuses_what_it_would_not_do(
    torch_runner, layer, shape, options, message
):
    with pytest.raises(InputError, match=message):
        torch_runner.run_from(layer, np.zeros(shape, np.float32), **options)


# Activation patching


@pytest.mark.parametrize("over", KINDS)
def test_every_place_equals_a_run_of_its_own(double, over):
    axes = axes_of(f"blocks.0.{over}") if over != "resid_pre" else ("batch", "pos")
    has_heads, pos = "head" in axes, "query" if "query" in axes else "pos"
    got = activation_patching(double, CLEAN, CORRUPT, metric=DIFF, over=over)
    if has_heads:
        assert got.axes == ("layer", "head")
        close(got.values, one_by_one(double, over, [{"head": h} for h in range(HEADS)]), 1e-9)
        got = activation_patching(
            double, CLEAN, CORRUPT, metric=DIFF, over=over, heads=[2, 0], positions=[-1, 2]
        )
        assert (got.axes, got.values.shape) == (("layer", "head", "position"), (3, 2, 2))
        assert (got.heads.tolist(), got.positions.tolist()) == ([2, 0], [POS - 1, 2])
        cells = [{"head": h, pos: p} for h in (2, 0) for p in (POS - 1, 2)]
    else:
        assert (got.axes, got.heads) == (("layer", "position"), None)
        cells = [{pos: p} for p in range(POS)]
    want = one_by_one(double, over, cells).reshape(got.values.shape)
    close(got.values, want, 1e-9)
    ends = [logit_diff(by_hand.forward(double.model, x[None])["logits"]) for x in (CLEAN, CORRUPT)]
    close([got.clean, got.corrupt], ends, 1e-9)
    close(got.normalised, (want - ends[1]) / (ends[0] - ends[1]), 1e-9)


@pytest.mark.parametrize("over", ["pattern", "attn_scores"])
def test_keys_are_patched_one_by_one(double, over):
    given = {"metric": DIFF, "over": over, "heads": [2, 1]}
    got = activation_patching(double, CLEAN, CORRUPT, **given, keys=slice(None))
    assert (got.axes, got.values.shape) == (("layer", "head", "key"), (3, 2, POS))
    assert (got.keys.tolist(), got.positions) == (list(range(POS)), None)
    cells = [{"head": h, "key": k} for h in (2, 1) for k in range(POS)]
    close(got.values, one_by_one(double, over, cells).reshape(got.values.shape), 1e-9)
    both = activation_patching(double, CLEAN, CORRUPT, **given, positions=[-1, 4], keys=[2, 0])
    assert both.axes == ("layer", "head", "position", "key")
    cells = [
        {"head": h, "query": q, "key": k} for h in (2, 1) for q in (POS - 1, 4) for k in (2, 0)
    ]
    want = one_by_one(double, over, cells).reshape(3, 2, 2, 2)
    close(both.values, want, 1e-9)
    assert np.abs(both.normalised).max() > 1e-3
    assert "\neach at its strongest position and key\n" in str(both)
    one = replace(both, values=both.values[:, :, :1], normalised=both.normalised[:, :, :1])
    assert "\neach at its strongest key\n" in str(one)
    most = [*np.unravel_index(np.abs(both.normalised).argmax(), both.values.shape)]
    head, query, key = ((2, 1), (POS - 1, 4), (2, 0))
    where = f"head {head[most[1]]}, position {query[most[2]]}, key {key[most[3]]}"
    assert f"strongest at layer {most[0]}, {where}: " in repr(both)


@pytest.mark.parametrize("over", ["embed", "pos_embed", "ln_f", "ln_f_scale"])
def test_taps_outside_the_blocks_are_swept_too(double, torch_runner, engine, over):
    got = activation_patching(double, CLEAN, CORRUPT, metric=DIFF, over=over)
    assert (got.axes, got.values.shape) == (("tap", "position"), (1, POS))
    clean = by_hand.forward(double.model, CLEAN[None])
    for p in range(POS):
        change = {over: put(clean[over], (slice(None), p))}
        run = by_hand.forward(double.model, CORRUPT[None], change)
        assert got.values[0, p] == pytest.approx(logit_diff(run["logits"]), abs=1e-9)
    effect = np.abs(got.values[0] - got.corrupt) > 1e-6
    changed = {"embed": CLEAN != CORRUPT, "pos_embed": np.zeros(POS, bool)}
    assert (effect == changed.get(over, np.arange(POS) == POS - 1)).all()
    plain = activation_patching(torch_runner, CLEAN, CORRUPT, metric=DIFF, over=over)
    other = activation_patching(engine, CLEAN, CORRUPT, metric=DIFF, over=over)
    close(other.values, plain.values, 1e-3)
    rows = str(plain).splitlines()
    assert any(row.startswith(f"{over} ") for row in rows)
    assert f"strongest at tap {over}, position" in repr(plain)


def test_taps_outside_the_blocks_are_ablated_too(double):
    got = ablate(double, [CLEAN], metric=DIFF, over="embed")
    run = by_hand.forward(double.model, CLEAN[None], {"embed": lambda x: 0 * x})
    assert (got.axes, got.values.shape) == (("tap",), (1, 1))
    assert got.values[0, 0] == pytest.approx(logit_diff(run["logits"]), abs=1e-9)
    assert any(row.startswith("embed ") for row in str(got).splitlines())


@pytest.mark.parametrize("over", ["resid_post", "z", "mlp_out", "resid_pre"])
def test_all_engines_agree(double, torch_runner, engine, over):
    want = activation_patching(torch_runner, CLEAN, CORRUPT, metric=DIFF, over=over)
    got = activation_patching(engine, CLEAN, CORRUPT, metric=DIFF, over=over)
    close(got.values, want.values, 1e-3)
    close(got.normalised, want.normalised, 1e-3)


@pytest.mark.parametrize("freeze_ln", [False, True])
def test_all_engines_agree_on_paths(torch_runner, engine, freeze_ln):
    given = {"metric": DIFF, "senders": "*", "freeze_ln": freeze_ln}
    given["receivers"] = ["*.q", "mlp.*", "logits"]
    want = path_patching(torch_runner, CLEAN, CORRUPT, **given)
    got = path_patching(engine, CLEAN, CORRUPT, **given)
    close(np.nan_to_num(got.scores, nan=-9), np.nan_to_num(want.scores, nan=-9), 1e-3)


def test_the_whole_clean_stream_is_the_clean_run_and_what_is_equal_changes_nothing(engine):
    one = CLEAN.copy()
    one[3] = 8
    got = activation_patching(engine, CLEAN, one, metric=DIFF, over="resid_pre")
    assert got.normalised[0, 3] == pytest.approx(1, abs=1e-4)  # all that differs is put back
    close(got.normalised[:, :3], np.zeros((3, 3)))  # before it, both runs are the same
    close(np.delete(got.normalised[0], 3), np.zeros(POS - 1))
    end = activation_patching(engine, CLEAN, one, metric=DIFF, over="resid_post")
    close(end.normalised[-1], np.eye(POS)[-1])  # nothing but the last position is read


def test_swapped_prompts_are_the_other_direction(double):
    got = activation_patching(double, CORRUPT, CLEAN, metric=DIFF, over="mlp_out", positions=[4])
    other = by_hand.forward(double.model, CORRUPT[None])
    for layer in LAYERS:
        tap = f"blocks.{layer}.mlp_out"
        change = {tap: put(other[tap], (slice(None), 4))}
        run = by_hand.forward(double.model, CLEAN[None], change)
        assert got.values[layer, 0] == pytest.approx(logit_diff(run["logits"]), abs=1e-9)


def test_a_metric_at_an_earlier_position_is_that_of_the_prompts_cut_there(double):
    early = Metric.logit_diff(11, 12, position=-2)
    got = activation_patching(double, CLEAN, CORRUPT, metric=early)
    want = activation_patching(double, CLEAN[:-1], CORRUPT[:-1], metric=DIFF)
    assert got.values.shape == (3, POS - 1)
    close(got.values, want.values, 1e-12)
    with pytest.raises(InputError, match=r"positions \[5\] are not among the 5"):
        activation_patching(double, CLEAN, CORRUPT, metric=early, positions=[5])


def test_kl_is_nought_in_the_clean_run_and_rank_counts(double):
    kl = activation_patching(double, CLEAN, CORRUPT, metric=Metric.kl())
    assert kl.clean == pytest.approx(0, abs=1e-12)
    assert (kl.values > -1e-12).all()
    assert kl.values[-1, -1] == pytest.approx(0, abs=1e-12)
    rank = activation_patching(double, CLEAN, CORRUPT, metric=Metric.rank(11))
    assert (rank.values == np.round(rank.values)).all()


def test_layers_below_the_patch_are_shared_where_the_engine_can(torch_runner):
    heads = activation_patching(torch_runner, CLEAN, CORRUPT, metric=DIFF, over="z")
    assert heads.saving.layers_run == HEADS * (3 + 2 + 1)
    assert heads.saving.layers_naive == HEADS * 3 * 3
    assert heads.saving.batches == (HEADS,) * 3
    stream = activation_patching(torch_runner, CLEAN, CORRUPT, metric=DIFF)
    assert stream.saving.layers_run == POS * (2 + 1 + 0)
    whole = activation_patching(Whole(torch_runner), CLEAN, CORRUPT, metric=DIFF)
    assert whole.saving.layers_run == whole.saving.layers_naive == POS * 3 * 3
    assert "18 runs in 3 batches of up to 6, 18 layers instead of 54" in str(stream)
    assert "18 runs in 3 batches of up to 6, 54 layers with none shared" in str(whole)
    embed = activation_patching(torch_runner, CLEAN, CORRUPT, metric=DIFF, over="embed")
    assert embed.saving.layers_run == embed.saving.layers_naive == POS * 3


def test_the_sweep_is_timed_beside_what_single_runs_would_take(torch_runner, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(base_run, "perf_counter", lambda: float(next(clock)))
    got = activation_patching(torch_runner, CLEAN, CORRUPT, metric=DIFF)
    assert (got.saving.seconds, got.saving.seconds_naive) == (3, 18)  # 3 batches; 18 runs of 1 s
    assert "3 s; one by one about 18 s, as one was timed" in str(got)
    assert "about 18 s" in repr(got.saving)


@pytest.mark.parametrize("limit", [batching.COPIES_POSITIONS, 2 * POS])
def test_progress_counts_every_place_once_and_ends_when_all_are_done(
    torch_runner, monkeypatch, limit
):
    monkeypatch.setattr(batching, "COPIES_POSITIONS", limit)
    for probe, given, total in (
        (activation_patching, (CLEAN, CORRUPT), 3 * POS),
        (
            partial(activation_patching, over="z", positions=[0, -1]),
            (CLEAN, CORRUPT),
            3 * 2 * HEADS,
        ),
        (partial(path_patching, senders="*", receivers=["*.q", "logits"]), (CLEAN, CORRUPT), 58),
        (ablate, (PROMPTS,), 3 * 3 * HEADS),
        (partial(ablate, over="ln_f"), (PROMPTS,), 3),
    ):
        seen = []
        probe(torch_runner, *given, metric=DIFF, on_progress=lambda *x, seen=seen: seen.append(x))
        done = [count for count, _ in seen]
        assert done == sorted(set(done))
        assert seen[-1] == (total, total)
        assert {of for _, of in seen} == {total}


def test_batches_are_as_small_as_the_limit_asks(monkeypatch, double):
    want = activation_patching(double, CLEAN, CORRUPT, metric=DIFF)
    monkeypatch.setattr(batching, "COPIES_POSITIONS", 4 * POS + 1)
    got = activation_patching(double, CLEAN, CORRUPT, metric=DIFF)
    assert got.saving.batches == (4, 2) * 3
    close(got.values, want.values, 1e-12)
    monkeypatch.setattr(batching, "COPIES_POSITIONS", 1)
    assert set(activation_patching(double, CLEAN, CORRUPT, metric=DIFF).saving.batches) == {1}


def test_texts_and_ids_are_the_same_prompt(torch_runner):
    texts = "the cat", "the hat"
    ids = [torch_runner.tokenizer.encode(text) for text in texts]
    one, two = (
        activation_patching(torch_runner, *prompts, metric=Metric.prob("a"))
        for prompts in (texts, ids)
    )
    close(one.values, two.values, 0)
    assert "".join(one.clean_tokens) == "the cat"
    assert "".join(one.corrupt_tokens) == "the hat"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"corrupt": CORRUPT[:-1]}, InputError, "clean prompt has 6 tokens and the corrupt one 5"),
        ({"corrupt": CLEAN}, InputError, "logit of token 11 minus .* nothing can be normalised"),
        ({"over": "zz"}, TapError, "unknown tap 'blocks.0.zz'; did you mean 'blocks.0.z'"),
        ({"over": "*"}, TapError, "selects .* name one"),
        ({"heads": [0]}, InputError, "resid_post has no heads to choose from"),
        ({"over": "z", "heads": [3]}, InputError, r"heads \[3\] are not among the 3"),
        ({"keys": [0]}, InputError, "resid_post has no keys to choose from"),
        ({"over": "pattern", "keys": [POS]}, InputError, r"keys \[6\] are not among the 6"),
        ({"positions": [POS]}, InputError, r"positions \[6\] are not among the 6"),
        ({"positions": slice(9, None)}, InputError, r"slice\(9, None, None\) select none of the 6"),
        ({"clean": []}, InputError, "the prompt has no tokens"),
        ({"clean": [1.0, 2.0]}, InputError, "a prompt is a text or a row of token ids"),
        ({"clean": [[1, 2]]}, InputError, "a prompt is a text or a row of token ids"),
        ({"clean": ""}, InputError, "the prompt is empty"),
    ],
)
def test_bad_input_is_one_clear_line(torch_runner, options, error, message):
    given = {"clean": CLEAN, "corrupt": CORRUPT, "metric": DIFF} | options
    with pytest.raises(error, match=message) as caught:
        activation_patching(torch_runner, given.pop("clean"), given.pop("corrupt"), **given)
    assert "\n" not in str(caught.value)


# Ablation

PROMPTS = [random_ids(5, seed=3), random_ids(7, seed=4), random_ids(7, seed=5)]


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


# How it looks


@pytest.fixture(scope="module")
def results(torch_runner):
    texts = "the [b] cat\n, the cat", "the [b] hat\n, the hat"
    metric = Metric.logit_diff("a", "[")
    return [
        activation_patching(torch_runner, *texts, metric=metric),
        activation_patching(torch_runner, *texts, metric=metric, over="z"),
        activation_patching(torch_runner, *texts, metric=metric, over="z", positions=slice(None)),
        ablate(torch_runner, texts, metric=metric),
        ablate(torch_runner, texts[0], metric=metric, over="mlp_out"),
    ]


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_grid_fits_its_terminal(results, width):
    for result in results:
        console = Console(width=width, color_system=None)
        with console.capture() as capture:
            console.print(result.render())
        lines = capture.get().splitlines()
        assert max(map(cell_len, lines)) <= width
        blocks = lines.count("layer")
        pages = -(-len(result.clean_tokens) * 6 // (width - 8)) if lines[-1][:3] == "pos" else 1
        assert blocks == pages
        assert sum(line.startswith("2 ") for line in lines) == blocks


def test_cells_say_what_they_are(results):
    stream, heads = results[:2]
    rows = [line for line in str(stream).splitlines() if line[:2] in ("0 ", "1 ", "2 ")]
    shown = [[float(x) for x in row.split()[1:]] for row in rows[:3]]
    columns = len(shown[0])
    close(shown, stream.normalised[::-1][:, :columns], 0.00501)
    assert "·" in str(stream)  # a leading space can be seen
    assert "⏎" in str(stream)
    assert "head       0     1     2" in str(heads)
    assert "resid_post" in str(stream)
    assert "0 as in the corrupt run, 1 as in the clean one" in str(stream)
    several, one = (str(result) for result in results[3:])
    assert "mean of all" in several
    assert "18 runs in 6 batches of up to 3" in several  # of both prompts together
    assert "random  float32  2 prompts" in several
    assert "random  float32  17 tokens" in one
    assert not {"mean", "prompt"} & set(re.findall(r"\w+", one))
    assert one.splitlines()[-1].split() == ["mlp_out"]  # and not a head
    assert several.splitlines()[-1].split() == ["head", "0", "1", "2"]


def test_the_strongest_place_is_the_largest_in_size_whatever_its_sign(results):
    stream, ablation = results[0], results[4]
    values = np.zeros(stream.values.shape)
    values[1, 2], values[2, 4] = -0.9, 0.4
    assert "; strongest at layer 1, position 2: -0.90;" in repr(replace(stream, normalised=values))
    effect = np.array([0.4, -0.9, 0.0])
    assert "; strongest at layer 1: -0.9;" in repr(replace(ablation, effect=effect))


def test_results_are_data_and_html(results):
    for result in results:
        data = json.loads(result.to_json())
        close(data["values"], result.values, 0)
        assert data["saving"]
        assert result._repr_html_().startswith("<pre")
        assert "\n" not in repr(result)
    assert "3 layers x 3 heads x 17 positions" in repr(results[2])
    assert "2 prompts" in repr(results[3])


def test_an_ablated_tap_outside_the_blocks_has_its_name_once(runner):
    found = ablate(runner, CLEAN, metric=DIFF, over="embed")
    assert "strongest at tap embed: " in repr(found)
    close(found.values, ablate(runner, [CLEAN], metric=DIFF, over="embed").values, 0)
    assert [line.split()[0] for line in str(found).splitlines()[-3:-1]] == ["tap", "embed"]


def test_a_metric_of_several_prompts_says_which_token_is_which():
    assert Metric.logit_diff(["a", "b"], ["c", "d"]).name == (
        "logit of each prompt's target minus logit of each prompt's foil"
    )


def test_a_model_without_a_tokenizer_is_patched_by_ids(double, monkeypatch):
    monkeypatch.setattr(double, "tokenizer", None)
    got = activation_patching(double, CLEAN, CORRUPT, metric=DIFF)
    assert got.clean_tokens == tuple(str(i) for i in CLEAN)
    with pytest.raises(InputError, match="has no tokenizer to look 'a' up; give its id"):
        activation_patching(double, CLEAN, CORRUPT, metric=Metric.prob("a"))


def test_importing_the_probes_does_not_import_torch():
    imports = "from probes.causal import ablation, gradients, patching, paths"
    code = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_plain_function_is_a_metric():
    metric = as_metric(lambda logits: logits[:, 0])
    assert metric.name == "<lambda>"
    assert as_metric(metric) is metric
