"""Activation patching against one plain run for each place, on every engine."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from gpt2kit.errors import InputError, TapError
from gpt2kit.taps import axes_of
from probes.causal.ablation import ablate
from probes.causal.patching import activation_patching
from probes.causal.paths import path_patching
from probes.core import base_run, batching
from probes.core.metrics import Metric
from tests import by_hand
from tests.conftest import close
from tests.probes.causal.support import (
    CLEAN,
    CORRUPT,
    DIFF,
    HEADS,
    KINDS,
    LAYERS,
    POS,
    PROMPTS,
    Whole,
    logit_diff,
    one_by_one,
    put,
)


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


def test_kl_is_zero_in_the_clean_run_and_rank_counts(double):
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
        (
            {"corrupt": CLEAN},
            InputError,
            "logit of token 11 minus .* normalised by the difference",
        ),
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
