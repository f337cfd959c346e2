"""Caches, ragged batches, readouts, and the errors of a run; on every engine."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import exporters.engine.readout_sessions
import gpt2kit.torch_engine.readout
import gpt2kit.torch_engine.runner
from gpt2kit import TorchRunner
from gpt2kit.errors import InputError, TapError
from gpt2kit.taps import axes_of, tap_axes
from tests.by_hand import forward
from tests.conftest import CONFIG, carried, close, random_ids, random_model
from tests.gpt2kit.test_edits import in_chunks, same_taps

pytestmark = pytest.mark.filterwarnings("error")
VOCAB = CONFIG.vocab_size


# Cache


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 3))
@settings(deadline=None, max_examples=25)
def test_any_chunks_equal_one_full_forward(double, sizes, batch):
    total = min(sum(sizes), CONFIG.n_positions)
    cuts = [min(cut, total) for cut in np.cumsum(sizes)]
    sizes = [int(n) for n in np.diff([0, *cuts]) if n]
    ids = random_ids(batch, total)
    full = double.run(ids, taps="*")
    logits, taps = in_chunks(double, ids, sizes)
    close(logits, full.logits, 1e-9)
    for name, want in full.taps.items():
        same_taps(name, taps[name], want)


@pytest.mark.parametrize("sizes", [[40], [1] * 12, [7, 1, 1, 5], [1, 39]], ids=str)
def test_chunks_equal_one_full_forward_on_this_engine(runner, sizes):
    ids = random_ids(2, sum(sizes))
    full = runner.run(ids, taps=carried(runner))
    logits, taps = in_chunks(runner, ids, sizes)
    close(logits, full.logits)
    for name, want in full.taps.items():
        same_taps(name, taps[name], want, 3e-4)


def test_a_cached_run_without_taps_equals_one_with_taps(runner):
    ids, caches = random_ids(2, 10), [runner.new_cache(2), runner.new_cache(2)]
    for cut in (slice(0, 4), slice(4, 9), slice(9, 10)):
        runs = [
            runner.run(ids[:, cut], cache=cache, taps=taps)
            for cache, taps in zip(caches, [carried(runner), ()], strict=True)
        ]
        caches = [run.cache for run in runs]
        close(runs[0].logits, runs[1].logits)


def test_ragged_rows_go_on_where_each_of_them_ended(runner):
    """Prompts of unequal length, then unequal chunks, then single tokens."""
    ids = random_ids(3, 16)
    cuts = [[0, 5, 6, 7, 16], [0, 1, 8, 9, 10], [0, 8, 10, 11, 12]]
    alone = [runner.run(row[None], taps=carried(runner)) for row in ids]
    cache = runner.new_cache(3)
    for step in range(4):
        chunk = [row[cut[step] : cut[step + 1]] for row, cut in zip(ids, cuts, strict=True)]
        run = runner.run(chunk, cache=cache, taps=carried(runner))
        cache = run.cache
        assert cache.lengths.tolist() == [cut[step + 1] for cut in cuts]
        for row, cut in enumerate(cuts):
            start, end = cut[step], cut[step + 1]
            close(run.logits[row, : end - start], alone[row].logits[0, start:end])
            for name, value in run.taps.items():
                want = alone[row].taps[name][0]
                if "key" in axes_of(name):
                    got = value[row, :, : end - start, : start + 1]
                    want = want[:, start:end, : start + 1]
                else:
                    got, want = value[row, : end - start], want[start:end]
                close(got, want, 3e-4)


def test_a_pattern_in_a_ragged_batch_is_zero_on_what_a_row_does_not_have(runner):
    if "blocks.1.pattern" not in carried(runner):
        pytest.skip("this profile carries no patterns")
    cache = runner.run([[1, 2, 3, 4, 5], [6, 7]], cache=runner.new_cache(2)).cache
    pattern = runner.run([[1], [2]], cache=cache, taps="blocks.1.pattern").taps["blocks.1.pattern"]
    assert pattern.shape == (2, 3, 1, 6)
    assert (pattern[1, :, :, 3:] == 0).all()
    close(pattern.sum(-1), np.ones((2, 3, 1)))


def test_a_copied_cache_goes_its_own_way(runner):
    prompt, ends = random_ids(1, 6), random_ids(2, 5, seed=1)
    cache = runner.run(prompt, cache=runner.new_cache()).cache
    branches = [cache.copy(), cache]
    for part in (slice(0, 3), slice(3, 5)):  # turn by turn
        for i, end in enumerate(ends):
            run = runner.run(end[part], cache=branches[i])
            whole = runner.run(np.concatenate([prompt[0], end[: part.stop]]))
            close(run.logits, whole.logits[:, 6 + part.start :])
            branches[i] = run.cache
    assert [branch.lengths.tolist() for branch in branches] == [[11], [11]]


def test_a_spent_cache_is_refused(runner):
    cache = runner.new_cache()
    runner.run([1, 2], cache=cache)
    with pytest.raises(InputError, match=r"advanced by a later run.*copy"):
        runner.run([3], cache=cache)


def test_a_refused_run_leaves_its_cache_usable(runner):
    cache = runner.run([1, 2], cache=runner.new_cache()).cache
    with pytest.raises(TapError):
        runner.run([3], cache=cache, taps="nowhere")
    close(runner.run([3], cache=cache).logits[:, -1], runner.run([1, 2, 3]).logits[:, -1])


def test_a_cache_may_be_shorter_than_the_context(runner):
    cache = runner.run([1, 2, 3], cache=runner.new_cache(1, max_length=4)).cache
    cache = runner.run([4], cache=cache).cache
    with pytest.raises(InputError, match="5 positions do not fit the cache of 4"):
        runner.run([5], cache=cache)


def test_a_cache_holds_the_whole_context_and_not_more(runner):
    ids = random_ids(1, 40)
    cache = runner.run(ids[:, :39], cache=runner.new_cache()).cache
    run = runner.run(ids[:, 39:], cache=cache)
    close(run.logits[:, -1], runner.run(ids).logits[:, -1])
    with pytest.raises(InputError, match="41 positions do not fit the context of 40"):
        runner.run([1], cache=run.cache)


@pytest.mark.parametrize("length", [0, -1, 41])
def test_a_cache_of_an_impossible_length_is_refused(runner, length):
    with pytest.raises(InputError, match="max_length"):
        runner.new_cache(1, max_length=length)


def test_a_cache_is_for_its_number_of_rows(runner):
    with pytest.raises(InputError, match="2 rows, but the cache was made for 1"):
        runner.run([[1], [2]], cache=runner.new_cache())


def test_cache_buffers_are_kept_not_copied(torch_runner):
    cache = torch_runner.new_cache()
    where = cache.keys.data_ptr()
    for _ in range(3):
        cache = torch_runner.run([1], cache=cache).cache
    assert cache.keys.data_ptr() == where
    with pytest.raises(InputError, match="a cache of its own"):
        torch_runner.run([1], cache=object())


# Batches


def test_batch_mates_do_not_change_a_row(runner):
    rows = [random_ids(n, seed=n) for n in (9, 1, 40, 17)]
    together = runner.run(rows, taps="blocks.*.resid_post")
    for i, row in enumerate(rows):
        alone = runner.run(row, taps="blocks.*.resid_post")
        close(together.logits[i, : len(row)], alone.logits[0])
        for name, value in alone.taps.items():
            close(together.taps[name][i, : len(row)], value[0], 3e-4)


@pytest.mark.parametrize("padding", [0, 7, -100, 10**9])
def test_what_stands_in_the_padding_does_not_matter(runner, padding):
    ids, lengths = random_ids(3, 8), [8, 3, 5]
    padded = np.where(np.arange(8) < np.array(lengths)[:, None], ids, padding)
    before = padded.copy()
    run = runner.run(padded, lengths=lengths)
    for row, length in enumerate(lengths):
        close(run.logits[row, :length], runner.run(ids[row, :length]).logits[0])
    assert (padded == before).all()


def test_columns_past_the_longest_row_are_not_run(runner):
    assert runner.run(random_ids(2, 60), lengths=[4, 6]).logits.shape == (2, 6, VOCAB)


def test_ids_may_be_a_list_a_list_of_rows_or_an_array(runner):
    want = runner.run(np.array([[1, 2, 3]])).logits
    for ids in ([1, 2, 3], (1, 2, 3), [[1, 2, 3]], [np.array([1, 2, 3])], np.array([1, 2, 3])):
        assert (runner.run(ids).logits == want).all()
    small = np.array([1, 2, 3], np.uint8)
    assert (runner.run(small).logits == want).all()


@pytest.mark.parametrize("cached", [False, True])
def test_last_only_is_the_last_token_of_each_row(runner, cached):
    rows = [random_ids(n, seed=n) for n in (4, 9, 1)]
    options = {"cache": runner.new_cache(3)} if cached else {}
    last = runner.run(rows, last_only=True, **options)
    whole = runner.run(rows)
    assert last.logits.shape == (3, 1, VOCAB)
    for row, ids in enumerate(rows):
        close(last.logits[row, 0], whole.logits[row, len(ids) - 1])


@pytest.mark.parametrize(
    ("ids", "options", "words"),
    [
        ([], {}, "no tokens"),
        ([[]], {}, "no tokens"),
        ([[1], []], {}, "no tokens"),
        (np.zeros((0, 3), int), {}, "no tokens"),
        ([1, VOCAB], {}, f"token id {VOCAB} is outside the vocabulary of {VOCAB}"),
        ([1, -1], {}, "token id -1 is outside"),
        ([1.0, 2.0], {}, "ids must hold integers, got float64; encode text first"),
        ("text", {}, "encode text first"),
        ([[1, 2], ["a"]], {}, "encode text first"),
        ([True, False], {}, "ids must hold integers"),
        (np.zeros((1, 2, 3), int), {}, r"ids of shape \(1, 2, 3\)"),
        ([[[1, 2]]], {}, "a list of rows"),
        ([1, [2]], {}, "a list of rows"),
        ([[1], 2], {}, "a list of rows"),
        (random_ids(41), {}, "41 positions do not fit the context of 40"),
        ([[1, 2], [3, 4]], {"lengths": [2]}, "do not fit ids of shape"),
        ([[1, 2], [3, 4]], {"lengths": [2, 3]}, "do not fit ids of shape"),
        ([[1, 2], [3, 4]], {"lengths": [2, 0]}, "no tokens"),
        ([[1, 2]], {"lengths": []}, "do not fit ids of shape"),
    ],
    ids=str,
)
def test_ids_that_cannot_be_run_are_refused_in_one_line(runner, ids, options, words):
    with pytest.raises(InputError, match=words) as caught:
        runner.run(ids, **options)
    assert "\n" not in str(caught.value)


# Taps of a run


def test_an_unknown_tap_is_refused_with_the_nearest(runner):
    with pytest.raises(TapError, match=r"'blocks.0.patern'; did you mean 'blocks.0.pattern'\?"):
        runner.run([1], taps=["blocks.0.patern"])


def test_a_tap_that_was_not_asked_for_is_an_error_not_empty(runner):
    run = runner.run([1], taps=["blocks.0.z", "blocks.1.hook_resid_pre"])
    assert list(run.taps) == ["blocks.0.z", "blocks.0.resid_post"]
    assert run.taps["blocks.-3.attn.hook_z"] is run.taps["blocks.0.z"]
    with pytest.raises(TapError, match=r"was not asked for in this run; it holds: blocks.0.z"):
        run.taps["blocks.0.q"]


def test_a_run_gives_only_what_was_asked_for(runner):
    run = runner.run([1, 2])
    assert len(run.taps) == 0
    assert run.cache is None


def test_every_tap_has_the_axes_of_the_table(runner):
    sizes = {"batch": 2, "pos": 5, "query": 5, "key": 5, "head": 3}
    sizes |= {"d_model": 24, "d_head": 8, "d_mlp": 96, "one": 1}
    run = runner.run(random_ids(2, 5), taps=carried(runner))
    for name in carried(runner):
        assert run.taps[name].shape == tuple(sizes[axis] for axis in tap_axes(3)[name]), name


def test_taps_are_the_callers_own(torch_runner):
    """Writing into what a run gave changes no later run, nor the cache."""
    ids, cache = random_ids(1, 5), torch_runner.new_cache()
    want = torch_runner.run(ids, taps="*")
    run = torch_runner.run(ids[:, :3], taps="*", cache=cache)
    for value in run.taps.values():
        value[...] = 0
    close(torch_runner.run(ids[:, 3:], cache=run.cache).logits, want.logits[:, 3:])
    again = torch_runner.run(ids, taps="*")
    for name, value in again.taps.items():
        close(value, want.taps[name])


# Readout


@pytest.fixture(scope="module")
def stream(runner):
    """Every layer's residual stream over two rows, (layers, batch, pos, d_model)."""
    taps = runner.run(random_ids(2, 7), taps="blocks.*.resid_post").taps
    return np.stack(list(taps.values()))


def plain_logprobs(torch_runner, resid):
    model = torch_runner.model
    x = torch.as_tensor(resid, dtype=torch.float64)
    x = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5)
    logits = (x * model.ln_f.weight + model.ln_f.bias) @ model.wte.weight.double().T
    return logits.log_softmax(-1), logits


def test_readout_equals_plain_log_softmax(runner, torch_runner, stream):
    targets = random_ids(2, 7, 3)
    out = runner.readout(stream, top_k=6, targets=targets, reference=stream[-1])
    logprobs, logits = plain_logprobs(torch_runner, stream)
    top = logprobs.topk(6)
    assert (out.top_ids == top.indices.numpy()).all()
    close(out.top_logprobs, top.values)
    close(out.log_z, logits.logsumexp(-1))
    close(out.entropy, -(logprobs.exp() * logprobs).sum(-1))
    want = logprobs[-1].exp() * (logprobs[-1] - logprobs)
    close(out.kl, want.sum(-1))
    close(out.kl[-1], np.zeros((2, 7)), 1e-5)
    chosen = logprobs.gather(-1, torch.as_tensor(targets)[None].expand(3, -1, -1, -1))
    close(out.target_logprobs, chosen)
    ranks = (logprobs[..., None, :] > chosen[..., None]).sum(-1)
    assert (out.target_ranks == ranks.numpy()).all()


@pytest.mark.parametrize("some", [np.s_[:], np.s_[1, 0, 3], np.s_[:, :0]])
def test_unembedding_equals_plain_logits(runner, torch_runner, stream, some):
    _, logits = plain_logprobs(torch_runner, stream[some])
    close(runner.unembed(stream[some]), logits)


def test_the_last_layer_read_out_is_the_models_own_prediction(runner):
    ids = random_ids(2, 7)
    run = runner.run(ids, taps="blocks.-1.resid_post")
    out = runner.readout(run.taps["blocks.-1.resid_post"], top_k=VOCAB)
    logits = np.take_along_axis(run.logits, out.top_ids, -1)
    close(out.top_logprobs + out.log_z[..., None], logits)
    assert (np.sort(out.top_ids, -1) == np.arange(VOCAB)).all()


def test_readout_stays_within_its_bounds(runner, stream):
    out = runner.readout(stream, targets=np.arange(VOCAB), reference=stream[-1])
    assert (out.entropy >= 0).all()
    assert (out.entropy <= np.log(VOCAB) + 1e-5).all()
    assert (out.kl >= -1e-5).all()
    assert (out.target_ranks.min(-1) == 0).all()
    assert (out.target_ranks < VOCAB).all()
    close(np.exp(out.target_logprobs).sum(-1), np.ones(out.entropy.shape))


@pytest.mark.parametrize(("vectors", "width"), [(1, 7), (16, 40)])
def test_readout_does_not_depend_on_the_tile(runner, stream, monkeypatch, vectors, width):
    options = {"top_k": 9, "targets": random_ids(2, 7, 2), "reference": stream[-1]}
    want = runner.readout(stream, **options)
    alone = runner.readout(stream)
    monkeypatch.setattr(gpt2kit.torch_engine.runner, "VECTORS", vectors)
    monkeypatch.setattr(gpt2kit.torch_engine.readout, "width", lambda vectors, device: width)
    monkeypatch.setattr(exporters.engine.readout_sessions, "VECTORS", vectors)
    monkeypatch.setattr(exporters.engine.readout_sessions, "WIDTH", width)
    small = copy.copy(runner)
    vars(small).pop("_readout", None)
    for got, whole in ((small.readout(stream, **options), want), (small.readout(stream), alone)):
        for name, value in vars(whole).items():
            if value is None:
                assert getattr(got, name) is None
            else:
                close(getattr(got, name), value, 1e-5)
    close(small.unembed(stream[0, 0]), runner.unembed(stream[0, 0]), 1e-5)


def test_largest_logits_that_are_no_numbers_are_not_overlooked_in_any_piece(monkeypatch):
    model = random_model(CONFIG)
    model.wte.weight.data[130] = np.nan
    ids = random_ids(1, 5) % 100
    monkeypatch.setattr(gpt2kit.torch_engine.readout, "width", lambda vectors, device: 50)
    run = TorchRunner(model).run(ids, top_k=3)
    assert np.isnan(run.logits[..., 0]).all()
    assert (run.top_ids[..., 0] == 130).all()


def test_readout_takes_any_number_of_axes_and_any_strides(runner, stream):
    want = runner.readout(stream, reference=stream[-1]).kl
    one = runner.readout(stream[1, 0, 3], reference=stream[-1, 0, 3], targets=5)
    close(one.kl, want[1, 0, 3])
    assert one.target_ranks.shape == (1,)
    assert one.top_ids.shape == (5,)
    flipped = runner.readout(stream[:, :, ::-1], reference=stream[-1, :, ::-1])
    close(flipped.kl, want[:, :, ::-1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 0}, "top_k = 0 must be from 1"),
        ({"top_k": VOCAB + 1}, f"top_k = {VOCAB + 1} must be from 1 to {VOCAB}"),
        ({"targets": [VOCAB]}, "target"),
        ({"targets": [-1]}, "target"),
        ({"targets": random_ids(5, 2)}, "target"),
        ({"reference": np.zeros((3, 24), np.float32)}, r"reference \(3, 24\)"),
        ({"reference": np.zeros((7, 23), np.float32)}, r"reference \(7, 23\)"),
    ],
    ids=["none", "all and one", "beyond", "negative", "shape", "too few", "too narrow"],
)
def test_readout_refuses_what_it_cannot_give(runner, stream, options, words):
    with pytest.raises(InputError, match=words):
        runner.readout(stream, **options)


# The engine itself


def test_a_double_model_answers_in_double(double):
    run = double.run([1, 2], taps="*", cache=double.new_cache())
    assert run.logits.dtype == np.float64
    assert {x.dtype for x in run.taps.values()} == {np.dtype(np.float64)}
    close(run.logits, forward(double.model, np.array([[1, 2]]))["logits"], 1e-9)


def test_half_precision_taps_and_cache_work(torch_runner):
    half = TorchRunner(random_model(dtype=torch.bfloat16))
    ids = random_ids(2, 8)
    full = half.run(ids, taps="*")
    logits, _ = in_chunks(half, ids, [3, 4, 1])
    assert np.isfinite(full.logits).all()
    assert np.abs(logits - full.logits).max() < 0.1 * np.abs(full.logits).max()


def test_a_runner_shows_what_it_is(torch_runner):
    want = "TorchRunner(random, 3 layers, 3 heads, d_model 24, float32 on cpu)"
    assert repr(torch_runner) == want


def test_a_run_leaves_the_weights_alone(torch_runner):
    before = {k: x.clone() for k, x in torch_runner.model.state_dict().items()}
    torch_runner.run(random_ids(2, 5), taps="*", edits=[("embed", torch.zero_)])
    assert all(torch.equal(x, before[k]) for k, x in torch_runner.model.state_dict().items())


def test_readout_refuses_vectors_of_another_width(runner):
    for read in (runner.readout, runner.unembed):
        with pytest.raises(InputError, match=r"shape \(2, 7\) given, the model's are 24 wide"):
            read(np.zeros((2, 7), np.float32))
