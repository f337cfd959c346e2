"""The parity check passes a correct file, and names what a wrong file gets wrong first."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.torch import save_file

import exporters.tracing.traced_module
import gpt2kit
from exporters import export_onnx, open_onnx, verify
from exporters.engine.decode_step import Decoder
from exporters.engine.graph import Graph
from exporters.parity import verify as verify_module
from exporters.parity.cases import DECODE_STEPS
from exporters.parity.compare import TOLERANCE, Tally, compare, relative_error
from exporters.parity.report import Report
from gpt2kit import TorchRunner, shipped
from gpt2kit.errors import CheckpointError, EngineError, ParityError
from gpt2kit.runner import Source
from gpt2kit.taps import tap_axes
from gpt2kit.torch_engine import find
from tests.conftest import CONFIG, random_model, write_checkpoint

CASES = ("prefill", "chunked prefill", "decode", "right padding", "left padding", "full context")
KV = {f"present.{layer}.{part}" for layer in range(CONFIG.n_layer) for part in ("key", "value")}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The checkpoint that the file of `onnx_runner` was made from."""
    folder = tmp_path_factory.mktemp("parity") / "source"
    write_checkpoint(folder)
    return folder


@pytest.fixture
def altered(onnx_runner, tmp_path):
    """altered(initializer, change) -> a copy of the exported file with that weight changed."""

    def make(name: str, change) -> Path:
        model = onnx.load(onnx_runner.path)
        (weight,) = (w for w in model.graph.initializer if w.name == name)
        array = numpy_helper.to_array(weight).copy()
        change(array)
        weight.CopyFrom(numpy_helper.from_array(array, name))
        path = tmp_path / "altered.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return make


def add(amount: float, *where):
    def change(array: np.ndarray) -> None:
        array[where or ...] += amount

    return change


def test_a_right_file_passes_in_every_case(onnx_runner, source):
    report = verify(onnx_runner.path, model=str(source), device="cpu")
    assert report.passed
    assert report.diverged is None
    report.raise_if_failed()
    assert report.cases[: len(CASES)] == CASES
    assert set(report.worst) == {"logits", *KV, *tap_axes(CONFIG.n_layer)}
    assert report.missed == 0
    assert report.top1 == report.positions > CONFIG.n_positions + DECODE_STEPS
    assert DECODE_STEPS >= 32


@pytest.mark.parametrize(
    ("weight", "change", "first"),
    [
        ("wte.weight", add(0.1), "embed"),
        ("wpe.weight", add(0.1, 5), "pos_embed"),
        ("wpe.weight", add(0.1, CONFIG.n_positions - 1), "pos_embed"),
        ("h.0.ln_1.bias", add(0.1), "blocks.0.q"),
        ("h.0.attn.c_attn.bias", add(0.1, slice(CONFIG.n_embd, None)), "blocks.0.k"),
        ("h.1.attn.c_attn.bias", add(0.1, slice(2 * CONFIG.n_embd, None)), "blocks.1.v"),
        ("h.2.attn.c_proj.bias", add(0.1), "blocks.2.attn_out"),
        ("h.1.mlp.c_fc.weight", add(0.1, 3), "blocks.1.mlp_pre"),
        ("h.2.mlp.c_proj.weight", add(0.1, 3, 3), "blocks.2.mlp_out"),
        ("ln_f.weight", add(0.1), "ln_f"),
        ("h.1.mlp.c_proj.bias", add(np.nan, 0), "blocks.1.mlp_out"),
        ("ln_f.bias", add(np.inf, 0), "ln_f"),
    ],
)
def test_one_wrong_weight_is_found_where_it_acts_first(altered, source, weight, change, first):
    report = verify(altered(weight, change), model=str(source), device="cpu")
    assert not report.passed
    assert report.diverged == first
    with pytest.raises(ParityError, match=f"part at {first} in ") as caught:
        report.raise_if_failed()
    assert caught.value.exit_code == 1


def test_the_last_position_is_proven_too(altered, torch_runner):
    runner = open_onnx(altered("wpe.weight", add(1.0, CONFIG.n_positions - 1, 0)), device="cpu")
    report = compare(torch_runner, runner)
    assert report.diverged == "pos_embed"
    assert report.worst["logits"][0] > 0.01


def test_without_taps_the_first_layer_that_diverges_is_named(altered, torch_runner):
    runner = open_onnx(altered("h.1.attn.c_attn.bias", add(0.1)), device="cpu")
    runner.taps = ()
    assert compare(torch_runner, runner).diverged in ("present.1.key", "present.1.value")


def test_the_tolerance_bites(altered, torch_runner, monkeypatch):
    runner = open_onnx(altered("ln_f.bias", add(1e-3, 0)), device="cpu")
    error = max(error for error, _ in compare(torch_runner, runner).worst.values())
    monkeypatch.setitem(TOLERANCE, "float32", 1.01 * error)
    assert compare(torch_runner, runner).passed
    monkeypatch.setitem(TOLERANCE, "float32", 0.99 * error)
    assert not compare(torch_runner, runner).passed


def test_a_change_of_a_thousandth_is_beyond_the_tolerance(altered, torch_runner):
    runner = open_onnx(altered("h.0.mlp.c_fc.weight", add(1e-2, 0, 0)), device="cpu")
    assert compare(torch_runner, runner).diverged == "blocks.0.mlp_pre"


def report_of(error: float, missed: int = 0) -> Report:
    worst = {"logits": (error, "decode")}
    return Report(1e-4, ("decode",), worst, 5, 6, missed, source="random", dtype="float32")


def test_an_error_just_above_the_tolerance_fails():
    assert report_of(1e-4).passed
    assert not report_of(float(np.nextafter(1e-4, 1))).passed
    assert not report_of(float("nan")).passed


def test_another_top_token_fails():
    with pytest.raises(ParityError, match="rank another token first at 1 positions"):
        report_of(0.0, missed=1).raise_if_failed()


def test_an_error_is_measured_against_the_size_of_its_vector():
    expected = np.array([[1.0, -10.0], [1.0, 1.0]])
    rms = np.sqrt(103 / 4)
    assert relative_error(expected, expected + np.array([[0.5, 0], [0, 0]])) == pytest.approx(0.05)
    assert relative_error(expected, expected + np.array([[0, 0], [0.5, 0]])) == pytest.approx(
        0.5 / rms
    )
    assert relative_error(expected, expected[:1]) == np.inf
    assert np.isnan(relative_error(expected, expected * np.nan))


def test_a_report_is_plain_json(altered, torch_runner, onnx_runner):
    for report in (
        compare(torch_runner, onnx_runner),
        compare(torch_runner, open_onnx(altered("ln_f.bias", add(np.nan, 0)), device="cpu")),
    ):
        plain = json.loads(report.to_json())
        assert plain == report.to_dict()
        assert Report.from_json(report.to_json()) == report
        assert plain["passed"] == report.passed
        assert plain["worst"].keys() == report.worst.keys()
        worst = plain["worst"]["logits"]
        assert worst == [pytest.approx(report.worst["logits"][0], rel=0.01), worst[1]] or (
            worst[0] is None and not report.passed
        )


def test_other_weights_are_refused(onnx_runner, tmp_path):
    write_checkpoint(tmp_path / "other")
    save_file(random_model(CONFIG, seed=9).state_dict(), tmp_path / "other" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"was made from other weights than .*other"):
        verify(onnx_runner.path, model=str(tmp_path / "other"), device="cpu")


def test_the_source_in_the_metadata_is_enough(onnx_runner, source, tmp_path, monkeypatch):
    model = onnx.load(onnx_runner.path)
    for entry in model.metadata_props:
        if entry.key == "gpt2kit.model":
            entry.value = "bundled"
    (tmp_path / "copy.onnx").write_bytes(model.SerializeToString())
    monkeypatch.setattr(shipped, "BUNDLED", source)
    assert verify(tmp_path / "copy.onnx", device="cpu").passed


def test_a_source_that_is_not_at_hand_asks_for_its_folder(onnx_runner, monkeypatch):
    def not_there(*_):
        raise CheckpointError("random: the hub cannot be reached")

    monkeypatch.setattr(find, "from_hub", not_there)
    monkeypatch.setattr(onnx_runner, "source", Source("you/random", "0123"))
    monkeypatch.setattr(verify_module, "open_onnx", lambda path, device: onnx_runner)
    with pytest.raises(CheckpointError, match=r"made from you/random@0123, .* name its folder"):
        verify(onnx_runner.path, device="cpu")


def test_a_graph_that_does_not_run_is_one_error(onnx_runner, torch_runner, tmp_path):
    model = onnx.load(onnx_runner.path)
    (table,) = (w for w in model.graph.initializer if w.name == "wpe.weight")
    # Under another name, so that opening does not compare its size with the metadata.
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table)[:4], "short table"))
    for node in model.graph.node:
        node.input[:] = ["short table" if name == "wpe.weight" else name for name in node.input]
    (tmp_path / "short.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match=r"short\.onnx: onnxruntime .* cannot run it: ") as caught:
        compare(torch_runner, open_onnx(tmp_path / "short.onnx", device="cpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loaded", "written"), [("float16", "float32"), ("float32", "float16"), ("float64", "float32")]
)
def test_a_model_loaded_in_another_dtype_verifies(tmp_path, loaded, written):
    """The digest is of the weights as the file holds them, however they were loaded."""
    write_checkpoint(tmp_path / "source", replace(CONFIG, n_layer=1))
    if loaded == "float16":  # nothing is lost
        rounded = random_model(replace(CONFIG, n_layer=1)).half().float().state_dict()
        save_file(rounded, tmp_path / "source" / "model.safetensors")
    runner = gpt2kit.load(tmp_path / "source", dtype=loaded, device="cpu")
    export_onnx(runner, tmp_path / "out.onnx", dtype=written)
    assert verify(tmp_path / "out.onnx", model=str(tmp_path / "source"), device="cpu").passed


@pytest.mark.slow
def test_a_float16_file_is_held_to_its_own_tolerance(tmp_path):
    runner = TorchRunner(random_model(replace(CONFIG, n_layer=1)))
    report = export_onnx(runner, tmp_path / "half.onnx", dtype="float16")
    assert (report.dtype, report.tolerance) == ("float16", TOLERANCE["float16"])
    assert 1e-4 < report.worst["logits"][0] < report.tolerance


def test_nan_in_a_later_row_is_seen():
    right, wrong = np.ones((3, 5), np.float32), np.full((3, 5), np.nan, np.float32)
    want = {"logits": [right, right], "embed": [right, right]}
    got = {"logits": [right, wrong], "embed": [right, wrong]}
    tally = Tally(1e-4)
    tally.add("prefill", want, got)
    assert all(np.isnan(error) for error, _ in tally.worst.values())


def test_a_file_from_the_hub_verifies_with_a_folder(tmp_path):
    write_checkpoint(tmp_path / "model", replace(CONFIG, n_layer=1))
    runner = gpt2kit.load(tmp_path / "model", device="cpu")
    runner.source = Source("you/your-gpt2", "0123456789abcdef")
    (tmp_path / "out").mkdir()
    export_onnx(runner, tmp_path / "out" / "out.onnx")
    assert verify(tmp_path / "out" / "out.onnx", model=str(tmp_path / "model")).passed


def test_a_file_made_from_a_folder_asks_for_it(onnx_runner):
    with pytest.raises(CheckpointError, match="made from the folder random; say with --model"):
        verify(onnx_runner.path)


# Edits


@pytest.mark.parametrize(
    "wrong",
    [lambda keep, add: (keep * 0 + 1, add), lambda keep, add: (keep, add * 0)],
    ids=["keep ignored", "add ignored"],
)
@pytest.mark.parametrize("tap", ["blocks.1.mlp_pre", "blocks.0.pattern"])
def test_an_edit_that_is_half_made_fails_the_gate(tmp_path, monkeypatch, tap, wrong):
    runner = TorchRunner(random_model(replace(CONFIG, n_layer=2)))
    right = exporters.tracing.traced_module.apply_edit
    broken = lambda keep, add, x: right(*wrong(keep, add), x)  # noqa: E731
    monkeypatch.setattr(exporters.tracing.traced_module, "apply_edit", broken)
    with pytest.raises(ParityError, match=rf"part at \S+ in 'edit of {tap}'"):
        export_onnx(runner, tmp_path / "x.onnx", taps="blocks.*.z", edits=tap, profile="fused")
    assert not list(tmp_path.iterdir())


# What runs without a tap is another session, and a step that is bound


@pytest.mark.parametrize(("taps", "edits"), [("*", "*"), ("*.resid_*", "blocks.1.z"), ((), ())])
def test_the_gate_runs_the_lean_session_and_the_bound_step(
    file_of, torch_runner, monkeypatch, taps, edits
):
    runner = open_onnx(file_of("fused", taps=taps, edits=edits), device="cpu")
    steps, lean = [], []
    step, execute = Decoder.__call__, Graph.execute

    def stepping(self, batch, edits):
        steps.append((len(batch.ids), bool(edits)))
        return step(self, batch, edits)

    def executing(self, call):
        if self.sessions.carrying(call.outputs) is self.sessions.lean:
            lean.append((len(call.batch.ids), bool(call.edits)))
        return execute(self, call)

    monkeypatch.setattr(Decoder, "__call__", stepping)
    monkeypatch.setattr(Graph, "execute", executing)
    compare(torch_runner, runner).raise_if_failed()
    edited = [(2, True)] if edits else []
    assert {(1, False), (3, False), *edited} <= set(steps)
    assert {(1, False), (3, False), *edited} <= set(lean)


@pytest.mark.parametrize("part", ["step", "edited step", "session"])
def test_a_fault_of_what_runs_without_taps_fails_the_gate(
    fused_runner, torch_runner, monkeypatch, part
):
    step, execute = Decoder.__call__, Graph.execute

    def stepping(self, batch, edits):
        logits = step(self, batch, edits)
        if part == ("edited step" if edits else "step"):
            logits.update_inplace(logits.numpy() + np.linspace(0, 1, logits.shape()[2], dtype="f"))
        return logits

    def executing(self, call):
        if part == "session" and self.sessions.carrying(call.outputs) is self.sessions.lean:
            other = replace(call.batch, ids=(call.batch.ids + 1) % CONFIG.vocab_size)
            call = replace(call, batch=other)
        return execute(self, call)

    monkeypatch.setattr(Decoder, "__call__", stepping)
    monkeypatch.setattr(Graph, "execute", executing)
    where = "edits but of scores" if part == "edited step" else "(decode|padding) without taps"
    with pytest.raises(ParityError, match=f"part at .* in '{where}'"):
        compare(torch_runner, fused_runner).raise_if_failed()
