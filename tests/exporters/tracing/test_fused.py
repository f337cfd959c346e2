"""The fused profile: what it requires of callers, and that its cache is one buffer."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import exporters.engine.fused
from exporters import export_onnx, open_onnx, verify
from exporters.engine.fused import FusedGraph
from gpt2kit import GPT2, Edit, TorchRunner
from gpt2kit.config import PRESETS
from gpt2kit.errors import EditError, ExportError
from gpt2kit.generation import steps
from gpt2kit.runner import Source
from gpt2kit.sampling import Sampler
from tests.conftest import CONFIG, byte_tokenizer, carried, close, random_ids

LAYERS = range(CONFIG.n_layer)


def feeds(ids, mask, positions=None) -> dict[str, np.ndarray]:
    """The inputs that another client gives at the first step, for logits of every column."""
    width = ids.shape[1]
    given = np.arange(width)[None].repeat(len(ids), 0) if positions is None else positions
    out = {"input_ids": ids, "attention_mask": np.asarray(mask), "position_ids": given}
    out["logits_positions"] = np.arange(width)[None]
    empty = np.zeros((len(ids), CONFIG.n_head, 0, CONFIG.d_head), np.float32)
    return out | {f"past_key_values.{i}.{part}": empty for i in LAYERS for part in ("key", "value")}


def raw(runner, given) -> dict[str, np.ndarray]:
    session = runner.carrying(runner.taps)
    names = [x.name for x in session.get_outputs()]
    quiet = ort.RunOptions()
    quiet.log_severity_level = 4
    return dict(zip(names, session.run(names, given, quiet), strict=True))


def test_attention_is_one_operator_and_the_rest_is_standard(fused_runner):
    nodes = onnx.load(fused_runner.path).graph.node
    assert {n.op_type for n in nodes if n.domain} == {"GroupQueryAttention"}
    assert sum(n.op_type == "GroupQueryAttention" for n in nodes) == CONFIG.n_layer
    assert fused_runner.metadata.profile == "fused"
    assert fused_runner.metadata.parity["passed"]


@pytest.mark.parametrize(
    "mask", [[[0, 1, 1, 1]], [[1, 0, 1, 1]], [[0, 0, 0, 1]]], ids=["left", "hole", "last"]
)
def test_the_graph_refuses_padding_that_it_would_compute_wrongly(fused_runner, mask):
    with pytest.raises(Exception, match="out of data bounds"):
        raw(fused_runner, feeds(random_ids(1, 4), mask))


def test_one_wrong_row_of_a_batch_is_enough(fused_runner):
    with pytest.raises(Exception, match="out of data bounds"):
        raw(fused_runner, feeds(random_ids(2, 3), [[1, 1, 1], [0, 1, 1]]))


def test_padding_on_the_right_changes_nothing(fused_runner, torch_runner):
    ids = random_ids(2, 6)
    got = raw(fused_runner, feeds(ids, [[1, 1, 1, 1, 0, 0], [1] * 6]))["logits"]
    want = torch_runner.run(ids).logits
    close(got[0, :4], want[0, :4])
    close(got[1], want[1])


def test_logits_positions_choose_the_columns(fused_runner, torch_runner):
    ids, want = random_ids(2, 6), torch_runner.run(random_ids(2, 6)).logits
    given = feeds(ids, [[1, 1, 1, 1, 0, 0], [1] * 6])
    last = raw(fused_runner, given | {"logits_positions": np.array([[-1]])})["logits"]
    close(last, np.stack([want[0, 3:4], want[1, 5:6]]))
    some = raw(fused_runner, given | {"logits_positions": np.array([[2, 0], [5, 1]])})["logits"]
    close(some, np.stack([want[0, [2, 0]], want[1, [5, 1]]]))
    beyond = raw(fused_runner, given | {"logits_positions": np.array([[7, 1], [0, 5]])})["logits"]
    assert np.isnan(beyond[0, 0]).all()  # not what the next row has in that place
    close(beyond[0, 1], want[0, 1])
    close(beyond[1], want[1, [0, 5]])


def test_the_cache_is_written_in_place(fused_runner):
    cache = fused_runner.new_cache(1, 12)
    buffers = [value.data_ptr() for value in cache.past]
    for ids in ([1, 2, 3], [4], [5, 6]):
        cache = fused_runner.run(ids, cache=cache).cache
    assert [value.data_ptr() for value in cache.past] == buffers
    assert all(value.shape()[2] == 12 for value in cache.past)


def test_an_unknown_profile_is_refused(torch_runner, tmp_path):
    with pytest.raises(ExportError, match="profile 'fast' is not one of portable, fused"):
        export_onnx(torch_runner, tmp_path / "x.onnx", profile="fast")


@pytest.mark.slow
def test_half_precision_passes_its_gate(torch_runner, tmp_path):
    report = export_onnx(torch_runner, tmp_path / "x.onnx", profile="fused", dtype="float16")
    assert report.passed
    assert "cache not shared" in report.cases


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["portable", "fused"])
def test_half_precision_of_the_shape_of_gpt2_xl_stays_finite(profile, tmp_path):
    config = replace(PRESETS["gpt2-xl"], n_layer=2, vocab_size=300, eos_token_id=299)
    model = GPT2(config).eval().requires_grad_(False)
    # As in the real model, a few dimensions of the residual stream are hundreds of times the rest:
    # their squares and sums are beyond the range of float16.
    model.wte.weight.data[:, [138, 378, 447]] += 400
    runner = TorchRunner(model, byte_tokenizer(), Source("random"))
    path = tmp_path / "xl.onnx"
    assert export_onnx(runner, path, profile=profile, dtype="float16").passed
    logits = open_onnx(path, device="cpu").run(random_ids(1, 200)).logits
    assert np.isfinite(logits).all()
    assert np.abs(logits).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["portable", "fused"])
def test_a_long_greedy_generation_equals_torch_token_for_token(profile, bundled, bundled_file):
    runner, path = bundled, bundled_file(profile, taps="blocks.*.pattern")
    ids = [runner.tokenizer.encode("Once upon a time, there was")]
    room = runner.config.n_positions - len(ids[0])
    assert room > 200
    tokens = [
        list(steps(engine, ids, max_new_tokens=room, sampler=Sampler(greedy=True)))
        for engine in (runner, open_onnx(path, device="cpu"))
    ]
    assert tokens[0] == tokens[1]
    assert verify(path).passed


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("edited", [False, True])
def test_a_long_row_that_runs_in_parts_gives_the_same(
    fused_runner, monkeypatch, last_only, cached, edited
):
    ids = random_ids(1, 23)
    taps = [tap for tap in carried(fused_runner) if not tap.endswith(("attn_scores", "pattern"))]
    options = {"taps": taps, "last_only": last_only}
    options["edits"] = [Edit.zero("blocks.1.z", head=1, pos=9)] if edited else []

    def run():
        cache = fused_runner.new_cache() if cached else None
        first = fused_runner.run(ids[:, :17], cache=cache, **options)
        if not cached:
            return [first]
        return [first, fused_runner.run(ids[:, 17:], cache=first.cache, **options)]

    want = run()
    runs, execute = [], FusedGraph.execute
    monkeypatch.setattr(exporters.engine.fused, "CHUNK", 7)
    monkeypatch.setattr(FusedGraph, "execute", lambda *given: runs.append(1) or execute(*given))
    got = run()
    assert len(runs) == (1 if edited and not cached else 3 + cached)
    for one, other in zip(got, want, strict=True):
        close(one.logits, other.logits)
        for tap, value in other.taps.items():
            close(one.taps[tap], value)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(("pos", "fits"), [(7, False), (14, False), (22, False), (23, True)])
def test_an_edit_that_does_not_fit_a_long_row_is_refused_before_any_part_has_run(
    fused_runner, torch_runner, monkeypatch, cached, pos, fits
):
    ids, edit = random_ids(1, 23), Edit.steer("blocks.1.resid_post", np.ones((pos, 1)))
    monkeypatch.setattr(exporters.engine.fused, "CHUNK", 7)
    messages, caches = [], []
    for runner in (fused_runner, torch_runner):
        caches.append(runner.new_cache() if cached else None)
        if fits:
            runner.run(ids, cache=caches[-1], edits=[edit])
            continue
        with pytest.raises(EditError) as caught:
            runner.run(ids, cache=caches[-1], edits=[edit])
        messages.append(str(caught.value))
    if not fits:
        assert messages[0] == messages[1]
        assert "pos 23" in messages[0]
        if cached:
            assert not any(value.numpy().any() for value in caches[0].past)
