"""Decode steps: equal to one run of all tokens, alone or in a batch, in buffers bound once."""

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest

from exporters import export_onnx, open_onnx
from exporters.engine.sessions import providers
from exporters.engine.topk_graph import TopK
from exporters.parity.compare import compare
from gpt2kit import TorchRunner
from gpt2kit.generation import steps
from gpt2kit.logits import largest
from gpt2kit.runner import Source
from gpt2kit.sampling import Sampler
from gpt2kit.taps import axes_of
from tests.conftest import CONFIG, byte_tokenizer, close, random_ids, random_model


def test_steps_of_unequal_rows_equal_each_row_alone(fused_runner, torch_runner):
    ids, sizes = random_ids(3, 9), [9, 4, 1]
    run = fused_runner.run(ids, lengths=sizes, cache=fused_runner.new_cache(3))
    new = random_ids(3, 6, seed=1)
    for i in range(6):
        run = fused_runner.run(new[:, i : i + 1], cache=run.cache)
        for row, size in enumerate(sizes):
            alone = torch_runner.run([*ids[row][:size], *new[row][: i + 1]])
            close(run.logits[row, -1], alone.logits[0, -1])


def test_the_step_is_bound_once_and_its_results_are_the_callers(fused_runner):
    run = fused_runner.run(random_ids(1, 3), cache=fused_runner.new_cache(1))
    assert run.cache.decoder is None
    first = fused_runner.run([[5]], cache=run.cache)
    kept = first.logits.copy()
    second = fused_runner.run([[6]], cache=first.cache)
    assert second.cache.decoder is first.cache.decoder
    assert (first.logits == kept).all()  # not the buffer that the second step wrote


def test_a_copied_cache_goes_its_own_way(fused_runner, torch_runner):
    run = fused_runner.run(random_ids(1, 3), cache=fused_runner.new_cache(1))
    run = fused_runner.run([[5]], cache=run.cache)
    fork = run.cache.copy()
    fused_runner.run([[7]], cache=run.cache)
    ids = [*random_ids(1, 3)[0], 5, 8]
    close(fused_runner.run([[8]], cache=fork).logits[0, -1], torch_runner.run(ids).logits[0, -1])


@pytest.mark.parametrize("length", [1, 2, CONFIG.n_positions])
def test_caches_of_any_length_are_filled_to_the_last_place(fused_runner, torch_runner, length):
    ids, cache = random_ids(1, length), fused_runner.new_cache(1, length)
    for i in range(length):
        run = fused_runner.run(ids[:, i : i + 1], cache=cache)
        cache = run.cache
    close(run.logits[0, -1], torch_runner.run(ids).logits[0, -1])


@pytest.mark.parametrize("tap", ["blocks.1.resid_post", "blocks.1.pattern"])
def test_steps_with_and_without_taps_alternate_and_keep_their_decoder(
    fused_runner, torch_runner, tap
):
    ids, cache, decoders = random_ids(1, 8), fused_runner.new_cache(1), set()
    whole = torch_runner.run(ids, taps=tap)
    for i in range(8):
        run = fused_runner.run(ids[:, i : i + 1], cache=cache, taps=[tap] if i % 2 else [])
        close(run.logits[:, 0], whole.logits[:, i])
        if i % 2:
            axis = axes_of(tap).index("query") if "query" in axes_of(tap) else 1
            want = np.take(whole.taps[tap], [i], axis)
            close(run.taps[tap], want[..., : run.taps[tap].shape[-1]])
        cache = run.cache
        decoders.add(cache.decoder)
    assert len(decoders) == 1


def test_a_cache_from_another_runner_is_decoded_by_this_one(fused_runner):
    other = open_onnx(fused_runner.path, device="cpu")
    run = fused_runner.run(random_ids(1, 3), cache=fused_runner.new_cache(1))
    theirs = fused_runner.run([[5]], cache=run.cache).cache
    ours = other.run([[6]], cache=theirs).cache
    assert ours.decoder.session is other.session


def test_the_largest_are_chosen_where_the_logits_are():
    logits = np.random.default_rng(0).standard_normal((2, 1, 500)).astype(np.float32)
    values, ids = TopK(providers("cpu"))(ort.OrtValue.ortvalue_from_numpy(logits), 7)
    want_values, want_ids = largest(logits, 7)
    assert (values == want_values).all()
    assert (ids == want_ids).all()


# The order of float32 sums depends on the number of rows; nothing else may differ.
INVARIANCE = 1e-5


@pytest.mark.parametrize("pos", [1, 7, 24])
def test_batch_mates_change_nothing(runner, pos):
    ids = random_ids(6, pos)
    batch = runner.run(ids).logits
    scale = np.abs(batch).max()
    for row in range(6):
        alone = runner.run(ids[row]).logits[0]
        assert np.abs(batch[row] - alone).max() <= INVARIANCE * scale
    mates = runner.run(np.concatenate([ids[:1], random_ids(5, pos, seed=9)])).logits
    assert np.abs(mates[0] - batch[0]).max() <= INVARIANCE * scale


@pytest.mark.cuda
def test_on_cuda_steps_replay_a_graph_and_equal_the_whole(tmp_path):
    runner = TorchRunner(random_model(), byte_tokenizer(), Source("random"))
    path = tmp_path / "out.onnx"
    export_onnx(runner, path, profile="fused", dtype="float16")
    fast = open_onnx(path, device="cuda")
    assert fast.cuda_graphs
    compare(runner, fast).raise_if_failed()
    ids = random_ids(2, 12)
    run = fast.run(ids[:, :4], cache=fast.new_cache(2))
    for i in range(4, 12):
        run = fast.run(ids[:, i : i + 1], cache=run.cache, top_k=3)
    assert {value.device_name() for value in [*run.cache.past, run.cache.decoder.logits]} == {
        "cuda"
    }
    whole = fast.run(ids, last_only=True, top_k=3)
    assert (run.top_ids == whole.top_ids).all()
    close(run.logits, whole.logits, 2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["portable", "fused"])
def test_nine_hundred_greedy_tokens_equal_torchs(profile, tmp_path):
    config = replace(CONFIG, n_positions=1024, n_embd=64, n_head=4, n_layer=4, eos_token_id=None)
    model = random_model(config)
    model.wpe.weight.data *= 3  # so that the text does not fall into a loop
    runner = TorchRunner(model, byte_tokenizer(), Source("random"))
    export_onnx(runner, tmp_path / "out.onnx", profile=profile)
    texts = []
    for engine in (runner, open_onnx(tmp_path / "out.onnx", device="cpu")):
        tokens = steps(engine, [[1, 2, 3]], max_new_tokens=900, sampler=Sampler(greedy=True))
        texts.append([int(token[0]) for token in tokens])
    assert len(set(texts[0])) > 20
    assert texts[0] == texts[1]
