"""The onnxruntime engine gives what the torch engine gives, through the Runner protocol."""

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from exporters import OnnxRunner, export_onnx, open_onnx
from exporters.parity.compare import compare
from gpt2kit import TorchRunner, generate
from gpt2kit.runner import LayerRunner, Run, Runner
from gpt2kit.taps import axes_of, tap_axes
from tests.conftest import CONFIG, close, random_ids, random_model

EVERY = list(tap_axes(CONFIG.n_layer))


def assert_equal_where_there_are_tokens(got: Run, want: Run, before) -> None:
    ends = want.cache.lengths
    np.testing.assert_array_equal(got.cache.lengths, ends)
    for row, (start, end) in enumerate(zip(before, ends, strict=True)):
        close(got.logits[row, : end - start], want.logits[row, : end - start])
        for tap, value in want.taps.items():
            limits = {"pos": end - start, "query": end - start, "key": end}
            cut = tuple(slice(limits.get(axis)) for axis in axes_of(tap)[1:])
            assert got.taps[tap].shape == value.shape, tap
            close(got.taps[tap][row][cut], value[row][cut])


@st.composite
def chunks(draw) -> list[tuple[int, list[int]]]:
    """For each chunk, the lengths of all rows; together they fit the context."""
    batch, left, out = draw(st.integers(1, 3)), CONFIG.n_positions, []
    for _ in range(draw(st.integers(1, 4))):
        longest = draw(st.integers(1, min(left, 12)))
        lengths = draw(st.lists(st.integers(1, longest), min_size=batch, max_size=batch))
        lengths[draw(st.integers(0, batch - 1))] = longest
        out.append(lengths)
        left -= longest
        if not left:
            break
    return out


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sizes=chunks(), seed=st.integers(0, 99), taps=st.sets(st.sampled_from(EVERY)))
@example(sizes=[[5, 1, 3], [1, 4, 2], [1, 1, 1]], seed=0, taps=set(EVERY))
@example(sizes=[[12], [12], [12], [4]], seed=1, taps=set(EVERY))  # to the last position
@example(sizes=[[1]], seed=2, taps=set())
def test_chunks_of_unequal_rows_equal_torch(torch_runner, onnx_runner, sizes, seed, taps):
    """Logits and all taps, with keys at absolute positions, for ragged batches with a cache."""
    caches = [runner.new_cache(len(sizes[0])) for runner in (torch_runner, onnx_runner)]
    for step, lengths in enumerate(sizes):
        ids = random_ids(len(lengths), max(lengths), seed=seed + step)
        before = caches[0].lengths
        want, got = (
            runner.run(ids, lengths=lengths, cache=cache, taps=taps)
            for runner, cache in zip((torch_runner, onnx_runner), caches, strict=True)
        )
        assert list(got.taps) == list(want.taps)
        assert_equal_where_there_are_tokens(got, want, before)
        caches = [want.cache, got.cache]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.lists(st.integers(0, 250), min_size=1, max_size=9), min_size=1, max_size=4))
def test_rows_without_a_cache_equal_torch(torch_runner, onnx_runner, rows):
    got, want = (runner.run(rows) for runner in (onnx_runner, torch_runner))
    assert got.cache is want.cache is None
    for row, ids in enumerate(rows):
        close(got.logits[row, : len(ids)], want.logits[row, : len(ids)])
    last = onnx_runner.run(rows, last_only=True).logits
    close(last, torch_runner.run(rows, last_only=True).logits)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.lists(st.integers(1, 4), max_size=2),
    top_k=st.sampled_from([1, 5, CONFIG.vocab_size]),
    n_targets=st.integers(0, 3),
    referred=st.booleans(),
    seed=st.integers(0, 99),
)
def test_readouts_agree(torch_runner, onnx_runner, shape, top_k, n_targets, referred, seed):
    rng = np.random.default_rng(seed)
    resid = rng.normal(size=(*shape, CONFIG.n_embd)).astype(np.float32)
    options = {"top_k": top_k}
    if n_targets:
        options["targets"] = rng.integers(0, CONFIG.vocab_size, (*shape, n_targets))
    if referred:
        options["reference"] = rng.normal(size=(*shape[1:], CONFIG.n_embd)).astype(np.float32)
    got, want = (runner.readout(resid, **options) for runner in (onnx_runner, torch_runner))
    for name, value in vars(want).items():
        if value is None:
            assert getattr(got, name) is None
        else:
            close(getattr(got, name), value)
            assert getattr(got, name).dtype == value.dtype, name


def test_greedy_generation_agrees(torch_runner, onnx_runner):
    prompts = ["the ", "a longer prompt", "é"]
    options = {"max_new_tokens": 20, "greedy": True}
    assert generate(onnx_runner, prompts, **options) == generate(torch_runner, prompts, **options)


def test_sampling_with_a_seed_agrees(torch_runner, onnx_runner):
    options = {"max_new_tokens": 20, "seed": 3, "top_p": 0.9, "temperature": 0.7}
    assert generate(onnx_runner, "the ", **options) == generate(torch_runner, "the ", **options)


def test_it_is_a_runner_that_says_what_it_is(onnx_runner):
    runner: Runner = onnx_runner
    assert isinstance(runner, OnnxRunner)
    assert runner.config == CONFIG
    assert runner.dtype == "float32"
    assert str(runner.source) == "random"
    assert runner.tokenizer.decode([CONFIG.vocab_size - 1]) == "<|endoftext|>"
    assert "random.onnx: random, 3 layers, 3 heads, d_model 24" in repr(runner)


def test_it_cannot_start_at_a_later_layer(onnx_runner, fused_runner, torch_runner):
    assert not isinstance(onnx_runner, LayerRunner)
    assert not isinstance(fused_runner, LayerRunner)
    assert isinstance(torch_runner, LayerRunner)


def test_threads_change_nothing(onnx_runner):
    ids = random_ids(2, 7)
    one = open_onnx(onnx_runner.path, device="cpu", threads=1)
    close(one.run(ids).logits, onnx_runner.run(ids).logits)


@pytest.mark.parametrize("profile", ["portable", "fused"])
def test_taps_beside_the_stream_cost_only_the_runs_that_ask_for_them(file_of, profile, monkeypatch):
    runner = open_onnx(file_of(profile, taps="*", edits="*"), device="cpu")
    lean, ids = runner.session, random_ids(2, 5)
    ran, plain = [], ort.InferenceSession.run_with_iobinding
    monkeypatch.setattr(
        ort.InferenceSession,
        "run_with_iobinding",
        lambda self, *given: ran.append(self) or plain(self, *given),
    )
    given = {output.name for output in lean.get_outputs()}
    assert {"logits", "present.2.value", "blocks.1.resid_post", "ln_f"} <= given
    taps = ["embed", "blocks.1.pattern", "blocks.0.head_out", "blocks.0.z", "ln_f_scale"]
    assert not given & set(taps)
    before = runner.run(ids, taps="*.resid_*", cache=runner.new_cache(2))
    assert set(ran) == {lean}
    ran.clear()
    assert set(runner.run(ids, taps=taps).taps) == set(taps)
    assert len(ran) == 1
    assert ran[0] is not lean
    ran.clear()
    after = runner.run(ids, taps="*.resid_*")
    runner.run(ids[:, :1], cache=before.cache)
    assert set(ran) == {lean, runner.session}
    close(after.logits, before.logits)


def test_taps_from_either_session_are_those_of_torch(file_of, torch_runner):
    runner, ids = open_onnx(file_of(taps="*", edits="*"), device="cpu"), random_ids(2, 8)
    whole = torch_runner.run(ids, taps=["blocks.1.z", "blocks.1.resid_post"])
    cache = runner.new_cache(2)
    for i, tap in enumerate(["blocks.1.resid_post", "blocks.1.z"] * 4):  # a cache goes on in both
        run = runner.run(ids[:, i : i + 1], taps=tap, cache=cache)
        close(run.taps[tap], whole.taps[tap][:, i : i + 1])
        close(run.logits, whole.logits[:, i : i + 1])
        cache = run.cache


def test_a_file_of_the_stream_alone_keeps_its_session(tmp_path, torch_runner):
    export_onnx(torch_runner, tmp_path / "x.onnx", taps=["blocks.*.resid_post"])
    runner = open_onnx(tmp_path / "x.onnx", device="cpu")
    assert runner.carrying(runner.taps) is runner.session


def test_a_run_may_want_nothing_but_its_cache_or_nothing_at_all(runner):
    ids = random_ids(2, 5)
    assert runner.run(ids, top_k=0).logits.shape == (2, 5, 0)
    cache = runner.run(ids[:, :3], cache=runner.new_cache(2), top_k=0).cache
    close(runner.run(ids[:, 3:], cache=cache).logits, runner.run(ids).logits[:, 3:])


@pytest.mark.cuda
def test_on_cuda_every_tap_equals_torch_on_the_cpu(torch_runner, onnx_runner):
    fast = open_onnx(onnx_runner.path, device="cuda")  # opening proves the placement
    ids = random_ids(3, 20)
    caches = fast.new_cache(3), torch_runner.new_cache(3)
    for part in np.split(ids, [12, 13, 14], axis=1):
        before = caches[1].lengths
        got, want = (
            runner.run(part, taps="*", cache=cache)
            for runner, cache in zip((fast, torch_runner), caches, strict=True)
        )
        assert_equal_where_there_are_tokens(got, want, before)
        caches = got.cache, want.cache
    assert {value.device_name() for value in caches[0].past} == {"cuda"}


@pytest.mark.cuda
@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_on_cuda_an_export_agrees(tmp_path, dtype, opset):
    runner = TorchRunner(random_model())
    export_onnx(runner, tmp_path / "out.onnx", dtype=dtype, opset=opset)
    compare(runner, open_onnx(tmp_path / "out.onnx", device="cuda")).raise_if_failed()


@pytest.mark.cuda
def test_on_cuda_the_readout_agrees(torch_runner, onnx_runner):
    resid = np.random.default_rng(0).normal(size=(3, 5, CONFIG.n_embd)).astype(np.float32)
    options = {"targets": [1, 2], "reference": resid[-1]}
    got = open_onnx(onnx_runner.path, device="cuda").readout(resid, **options)
    for name, value in vars(torch_runner.readout(resid, **options)).items():
        close(getattr(got, name), value)
