"""`export_onnx`: what it writes, that other libraries run it, that a failure leaves no file."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
import torch
import transformers
from onnx import TensorProto

import exporters.export
import gpt2kit
from exporters import export_onnx, inspect_onnx, open_onnx
from exporters.parity.report import Report
from exporters.tracing.description import describe
from exporters.tracing.plan import OPSETS as ALL_OPSETS
from exporters.tracing.plan import Plan
from exporters.tracing.trace import lowest_ir_version, trace
from gpt2kit import GPT2Config, TorchRunner
from gpt2kit.errors import ExportError, InputError, ParityError, TapError
from gpt2kit.runner import Source
from gpt2kit.taps import tap_axes
from tests.conftest import CONFIG, byte_tokenizer, close, random_ids, random_model

SMALL = replace(CONFIG, n_layer=2, n_positions=20)
# Every opset, and with it every config flag: each export takes seconds.
OPSETS = {
    18: {
        "scale_attn_by_inverse_layer_idx": True,
        "n_inner": 40,
        "tie_word_embeddings": False,
        "activation_function": "gelu",
    },
    20: {"scale_attn_weights": False, "activation_function": "relu", "layer_norm_epsilon": 1e-3},
    23: {},
    24: {"reorder_and_upcast_attn": True, "activation_function": "quick_gelu", "n_head": 1},
}
KV = [f"{layer}.{part}" for layer in range(SMALL.n_layer) for part in ("key", "value")]


def tiny_runner(**config) -> TorchRunner:
    return TorchRunner(random_model(replace(SMALL, **config)), byte_tokenizer(), Source("tiny"))


# ONNX's own table of its releases: the oldest file format that may hold an opset.
LOWEST_IR = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(options of export_onnx, changes of the config) -> runner and file, each made once."""
    made = {}

    def make(opset=23, dtype="float32", taps="*", **config):
        key = (dtype, taps, opset, *sorted(config.items()))
        if key not in made:
            config = OPSETS[opset] | config
            runner, path = tiny_runner(**config), tmp_path_factory.mktemp("export") / "tiny.onnx"
            report = export_onnx(runner, path, dtype=dtype, taps=taps, opset=opset)
            assert report.passed
            made[key] = runner, path
        return made[key]

    return make


def session_of(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])


def feed(session: ort.InferenceSession, ids, mask, past=None) -> dict[str, np.ndarray]:
    """Run a file as another client would, which knows only the usual names."""
    ids, mask = np.asarray(ids, np.int64), np.asarray(mask, np.int64)
    positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    for given in session.get_inputs():
        if given.name.startswith("past_key_values."):
            _, heads, _, width = given.shape
            kind = np.float16 if "float16" in given.type else np.float32
            empty = np.zeros((len(ids), heads, 0, width), kind)
            name = given.name.replace("past_key_values", "present")
            feeds[given.name] = empty if past is None else past[name]
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


# What is in the file


def test_inputs_and_outputs_have_the_usual_names(exported):
    _, path = exported()
    graph = onnx.load(path).graph
    assert [x.name for x in graph.input] == [
        *("input_ids", "attention_mask", "position_ids"),
        *(f"past_key_values.{place}" for place in KV),
    ]
    assert [x.name for x in graph.output] == [
        *("logits", *(f"present.{place}" for place in KV), *tap_axes(SMALL.n_layer))
    ]


def test_batch_sequence_and_past_are_dynamic_and_nothing_else_is(exported):
    _, path = exported()
    graph = onnx.load(path).graph
    fixed = {"head": SMALL.n_head, "d_head": SMALL.d_head, "vocab": SMALL.vocab_size, "one": 1}
    fixed |= {"d_model": SMALL.n_embd, "d_mlp": SMALL.d_mlp}
    axes = {
        "input_ids": ("batch", "pos"),
        "attention_mask": ("batch", "key"),
        "position_ids": ("batch", "pos"),
        "logits": ("batch", "pos", "vocab"),
    } | tap_axes(SMALL.n_layer)
    for value in [*graph.input, *graph.output]:
        for axis, dim in zip(
            axes.get(value.name, ("batch", "head", "key", "d_head")),
            value.type.tensor_type.shape.dim,
            strict=True,
        ):
            if axis in fixed:
                assert dim.dim_value == fixed[axis], (value.name, axis)
            else:
                assert dim.dim_param, (value.name, axis)


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_gives_a_valid_file_of_standard_operators(exported, opset):
    _, path = exported(opset)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == LOWEST_IR[opset]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions


def test_every_opset_has_its_lowest_ir_version():
    assert {opset: lowest_ir_version(opset) for opset in ALL_OPSETS} == LOWEST_IR


def test_weights_have_the_names_and_values_of_the_checkpoint(exported):
    runner, path = exported()
    weights = {x.name: onnx.numpy_helper.to_array(x) for x in onnx.load(path).graph.initializer}
    for name, x in runner.model.state_dict().items():
        np.testing.assert_array_equal(weights[name], x.numpy(), err_msg=name)


@pytest.mark.parametrize("opset", OPSETS)
def test_a_tied_embedding_is_one_initializer(exported, opset):
    runner, path = exported(opset)
    size = SMALL.vocab_size * SMALL.n_embd
    found = [x.name for x in onnx.load(path).graph.initializer if np.prod(x.dims) == size]
    tied = runner.config.tie_word_embeddings
    assert sorted(found) == (["wte.weight"] if tied else ["lm_head.weight", "wte.weight"])


def assert_small(path: Path, weights: int) -> None:
    assert 0.99 * weights < path.stat().st_size <= 1.01 * weights


def test_the_file_is_as_large_as_the_unique_weights(published):
    reference, path = published
    assert_small(path, sum(x.nbytes for x in reference.parameters()))  # tied ones count once


@pytest.mark.slow
def test_a_model_of_the_size_of_gpt2_exports(tmp_path):
    runner = TorchRunner(gpt2kit.GPT2(GPT2Config()).eval().requires_grad_(False))
    assert export_onnx(runner, tmp_path / "gpt2.onnx").passed
    assert_small(tmp_path / "gpt2.onnx", sum(x.nbytes for x in runner.model.parameters()))


@pytest.mark.parametrize("opset", [18, 23])
def test_no_path_of_this_machine_is_in_the_file(exported, opset):
    _, path = exported(opset)
    content = path.read_bytes()
    for local in (Path(gpt2kit.__file__).parents[1], Path.home(), Path.cwd(), sys.prefix):
        assert os.fsencode(local) not in content
    model = onnx.load(path)
    for weight in model.graph.initializer:  # random bytes could spell anything
        weight.raw_data = b""
    text = model.SerializeToString()
    for remains in (b".py", b"site-packages", b"stack_trace", b"/usr", b"/tmp", b"torch"):
        assert remains not in text, remains


def test_metadata_says_what_the_file_is(exported):
    _, path = exported()
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata.pop("gpt2kit.format") == "1"
    assert metadata.pop("gpt2kit.version") == model.producer_version == gpt2kit.__version__
    assert len(metadata.pop("gpt2kit.weights_sha256")) == 64
    assert GPT2Config.from_hf(json.loads(metadata.pop("gpt2kit.config"))) == SMALL
    assert json.loads(metadata.pop("gpt2kit.taps")) == list(tap_axes(SMALL.n_layer))
    parity = json.loads(metadata.pop("gpt2kit.parity"))
    assert parity["passed"] is True
    proof = (path.parent / "tiny.onnx.parity.json").read_bytes()
    assert metadata.pop("gpt2kit.parity_sha256") == hashlib.sha256(proof).hexdigest()
    worst = json.loads(proof)["worst"]
    assert worst.keys() >= {"logits", "present.1.key", "blocks.1.z"}
    assert parity["worst"][0] in worst
    assert metadata == {
        "gpt2kit.model": "tiny",
        "gpt2kit.revision": "",
        "gpt2kit.dtype": "float32",
        "gpt2kit.profile": "portable",
        "gpt2kit.opset": "23",
        "gpt2kit.edits": "[]",
        "gpt2kit.quantize": "",
        "gpt2kit.weights": "{}",
    }


def test_files_beside_the_model_are_read_by_other_libraries(exported):
    runner, path = exported()
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "config.json",
        "genai_config.json",
        "generation_config.json",
        "tiny.onnx",
        "tiny.onnx.parity.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = transformers.GPT2Config.from_pretrained(path.parent)
    assert GPT2Config.from_hf(config.to_dict()) == runner.config
    generation = transformers.GenerationConfig.from_pretrained(path.parent)
    assert generation.eos_token_id == runner.config.eos_token_id
    assert gpt2kit.Tokenizer.from_folder(path.parent).encode("the  é") == (
        runner.tokenizer.encode("the  é")
    )


def test_a_model_without_a_tokenizer_exports_without_one(tmp_path, traced, monkeypatch):
    runner, program = traced
    monkeypatch.setattr(exporters.export, "trace", lambda *_: program)
    export_onnx(TorchRunner(runner.model), tmp_path / "bare.onnx")
    assert not (tmp_path / "tokenizer.json").exists()


# Every kind of model, dtype and tap


@pytest.mark.slow
@pytest.mark.parametrize(
    ("opset", "change"),
    [
        (18, {"activation_function": "gelu_new", "tie_word_embeddings": True}),
        (23, {"activation_function": "silu", "n_layer": 1, "n_positions": 1}),
        (24, {"activation_function": "tanh", "n_layer": 1, "n_positions": 4, "n_head": 3}),
    ],
)
def test_other_shapes_and_activations_export(exported, opset, change):
    runner, path = exported(opset, taps="blocks.*.z", **change)
    ids = random_ids(2, min(7, runner.config.n_positions))
    close(open_onnx(path, device="cpu").run(ids).logits, runner.run(ids).logits)


@pytest.mark.parametrize("opset", OPSETS)
def test_every_tap_is_an_output_at_every_opset(exported, opset):
    runner, path = exported(opset)
    names = {output.name for output in session_of(path).get_outputs()}
    assert names >= set(tap_axes(SMALL.n_layer))
    ids = random_ids(2, 9)
    got, want = open_onnx(path, device="cpu").run(ids, taps="*"), runner.run(ids, taps="*")
    for tap, value in want.taps.items():
        close(got.taps[tap], value)


@pytest.mark.parametrize(
    ("opset", "dtype"),
    [
        *((opset, "float32") for opset in OPSETS),
        (23, "float16"),
        pytest.param(18, "float16", marks=pytest.mark.slow),
    ],
)
def test_rows_that_are_all_padding_stay_finite(exported, opset, dtype):
    """A query without any key must not give NaN, which would spread to later layers."""
    runner, path = exported(opset, dtype)
    ids = random_ids(3, 8)
    mask = np.arange(8) >= [[0], [6], [8]]  # the last row has no token at all
    outputs = feed(session_of(path), ids, mask)
    for name, value in outputs.items():
        assert np.isfinite(value).all(), name
    close(outputs["logits"][1, 6:], runner.run(ids[1, 6:]).logits[0], 0.05)


def test_float16_holds_half_precision_and_gives_float32_logits(exported):
    _, path = exported(dtype="float16")
    model = onnx.load(path)
    weights = {x.data_type for x in model.graph.initializer if len(x.dims) == 2}
    assert weights == {TensorProto.FLOAT16}
    kinds = {x.name: x.type.tensor_type.elem_type for x in model.graph.output}
    assert kinds.pop("logits") == TensorProto.FLOAT
    assert kinds.pop("present.0.key") == kinds["blocks.0.z"] == TensorProto.FLOAT16


@pytest.mark.slow
def test_a_float64_model_exports_as_float32(tmp_path):
    runner = TorchRunner(random_model(replace(SMALL, n_layer=1), dtype=torch.float64))
    assert export_onnx(runner, tmp_path / "wide.onnx").passed
    assert runner.dtype == "float64"


# The file as others run it


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint as transformers initialises and writes it, and its export."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=5000, n_positions=32, n_embd=192, n_layer=2, n_head=4, initializer_range=0.1,
        bos_token_id=98, eos_token_id=98,
    )  # fmt: skip
    reference = transformers.GPT2LMHeadModel(config).eval()
    reference.save_pretrained(folder / "checkpoint")
    path = folder / "published.onnx"
    export_onnx(gpt2kit.load(folder / "checkpoint", device="cpu"), path)
    return reference, path


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_equal_transformers(published, side):
    reference, path = published
    ids, lengths = random_ids(3, 10, vocab=5000), np.array([[10], [3], [1]])
    mask = np.arange(10) >= 10 - lengths if side == "left" else np.arange(10) < lengths
    got = feed(session_of(path), ids, mask)
    want = reference(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask).long(),
        position_ids=torch.from_numpy(np.maximum(mask.cumsum(1) - 1, 0)),
        use_cache=True,
    )
    close(got["logits"][mask], want.logits.numpy()[mask])
    for layer, (key, value, *_) in enumerate(want.past_key_values):
        for part, x in (("key", key), ("value", value)):
            held = got[f"present.{layer}.{part}"].transpose(0, 2, 1, 3)[mask]
            close(held, x.numpy().transpose(0, 2, 1, 3)[mask])


@torch.no_grad()
def test_left_padded_steps_with_a_cache_equal_transformers(published):
    reference, path = published
    session, ids = session_of(path), random_ids(2, 12, seed=1, vocab=5000)
    mask = np.arange(12) >= np.array([[0], [4]])
    full = reference(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask).long(),
        position_ids=torch.from_numpy(np.maximum(mask.cumsum(1) - 1, 0)),
    ).logits.numpy()
    outputs, start = None, 0
    for end in (6, 9, 10, 11, 12):
        outputs = feed(session, ids[:, start:end], mask[:, :end], outputs)
        valid = mask[:, start:end]
        close(outputs["logits"][valid], full[:, start:end][valid])
        start = end


def test_weights_that_are_equal_keep_their_names(published):
    """New layer norms all hold ones and zeros; the readout must find those of ln_f."""
    reference, path = published
    runner = open_onnx(path, device="cpu")
    resid = np.random.default_rng(0).normal(size=(4, 192)).astype(np.float32)
    with torch.no_grad():
        hidden = reference.transformer.ln_f(torch.from_numpy(resid))
        want = reference.lm_head(hidden).log_softmax(-1).topk(3)
    got = runner.readout(resid, top_k=3)
    np.testing.assert_array_equal(got.top_ids, want.indices)
    close(got.top_logprobs, want.values.detach())


# External data


def test_external_data_lies_beside_the_graph(traced, tmp_path, monkeypatch):
    runner, program = traced
    monkeypatch.setattr(exporters.export, "trace", lambda *_: program)
    export_onnx(runner, tmp_path / "out.onnx", external_data=True)
    weights = sum(x.nbytes for x in runner.model.parameters())
    outside = (tmp_path / "out.onnx_data").stat().st_size
    assert 0.9 * weights < outside <= 1.01 * weights  # the smallest stay in the graph
    assert (tmp_path / "out.onnx").stat().st_size < 0.3 * weights
    onnx.checker.check_model(os.fspath(tmp_path / "out.onnx"))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("out.onnx", "out.onnx_data"):
        (tmp_path / name).rename(moved / name)
    ids = random_ids(1, 5)
    close(open_onnx(moved / "out.onnx", device="cpu").run(ids).logits, runner.run(ids).logits)


def test_a_file_whose_data_has_the_older_name_opens(traced, tmp_path, monkeypatch):
    runner, program = traced
    monkeypatch.setattr(exporters.export, "trace", lambda *_: program)
    path, older = tmp_path / "out.onnx", tmp_path / "out.onnx.data"
    with monkeypatch.context() as patch:
        patch.setattr(exporters.export, "data_file", lambda path: path.with_name("out.onnx.data"))
        export_onnx(runner, path, external_data=True)
    assert older.exists()
    ids = random_ids(1, 5)
    close(open_onnx(path, device="cpu").run(ids).logits, runner.run(ids).logits)
    assert inspect_onnx(path).size == path.stat().st_size + older.stat().st_size


# A folder called `onnx`


@pytest.mark.parametrize("given", ["out/onnx/model.onnx", "model.onnx"])
def test_json_files_lie_above_a_folder_called_onnx(traced, tmp_path, monkeypatch, given):
    runner, program = traced
    monkeypatch.setattr(exporters.export, "trace", lambda *_: program)
    folder = tmp_path / "out" / "onnx"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder if given == "model.onnx" else tmp_path)
    for _ in range(2):  # the second export finds the files of the first
        export_onnx(runner, given, external_data=True)
    beside = {file.name for file in folder.iterdir()}
    assert beside == {"model.onnx", "model.onnx_data", "model.onnx.parity.json"}
    above = {file.name for file in folder.parent.iterdir()} - {"onnx"}
    names = ("config", "generation_config", "genai_config", "tokenizer", "tokenizer_config")
    assert above == {f"{name}.json" for name in names}
    assert open_onnx(given, device="cpu").tokenizer.to_json() == runner.tokenizer.to_json()
    assert inspect_onnx(given).proof == "as written"
    (folder.parent / "tokenizer.json").rename(folder / "tokenizer.json")  # as older exports have it
    assert open_onnx(given, device="cpu").tokenizer is not None
    (folder.parent / "config.json").write_text('{"model_type": "gpt2", "n_layer": 7}')
    with pytest.raises(ExportError, match=r"out/config\.json belongs to another model"):
        export_onnx(runner, given)


@pytest.mark.parametrize("above", [True, False])
def test_weights_too_large_for_protobuf_go_outside(traced, tmp_path, monkeypatch, above):
    runner, program = traced
    size = sum(x.nbytes for x in runner.model.parameters())
    monkeypatch.setattr(exporters.export, "trace", lambda *_: program)
    limit = size // 2 if above else 2 * size
    monkeypatch.setattr(exporters.export, "EXTERNAL_DATA_ABOVE", limit)
    export_onnx(runner, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx_data").exists() == above


# Nothing is left behind


@pytest.fixture(scope="module")
def traced():
    """A runner and its trace, for tests of what comes after tracing."""
    runner = tiny_runner(n_layer=1)
    return runner, trace(runner.model, Plan())


@pytest.fixture
def folder(tmp_path, traced, monkeypatch):
    """A folder with an older file of the same name; tracing takes no time."""
    monkeypatch.setattr(exporters.export, "trace", lambda *_: traced[1])
    (tmp_path / "out.onnx").write_bytes(b"older")
    return tmp_path


def assert_untouched(folder: Path) -> None:
    assert [file.name for file in folder.iterdir()] == ["out.onnx"]
    assert (folder / "out.onnx").read_bytes() == b"older"


def stop(error):
    def raise_it(*_, **__):
        raise error

    return raise_it


@pytest.mark.parametrize("stage", ["trace", "describe", "_save", "check", "_append_metadata"])
def test_an_interrupt_leaves_nothing(folder, traced, monkeypatch, stage):
    monkeypatch.setattr(exporters.export, stage, stop(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        export_onnx(traced[0], folder / "out.onnx", overwrite=True)
    assert_untouched(folder)


@pytest.mark.parametrize("external", [True, False])
def test_a_full_disk_leaves_nothing_and_is_named(folder, traced, monkeypatch, external):
    real = onnx_ir.save

    def save_then_fail(*args, **kwargs):
        real(*args, **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx_ir, "save", save_then_fail)
    with pytest.raises(ExportError, match=r"out\.onnx: not written: the disk is full"):
        export_onnx(traced[0], folder / "out.onnx", overwrite=True, external_data=external)
    assert_untouched(folder)


FULL = """
import resource, sys
sys.path[:0] = [{tests!r}]
from tests.conftest import CONFIG, random_model, replace
from exporters import export_onnx
from gpt2kit import TorchRunner
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
model = random_model(replace(CONFIG, n_layer=1))
export_onnx(TorchRunner(model), {target!r}, external_data={external})
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("external", [True, False])
def test_a_real_write_that_fails_leaves_nothing(tmp_path, external):
    script = FULL.format(
        tests=str(Path(__file__).parents[2]), target=str(tmp_path / "out.onnx"), external=external
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("gpt2kit.errors.ExportError: ")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_parity_check_leaves_nothing(folder, traced, monkeypatch):
    worst = {"present.0.key": (1.0, "decode"), "logits": (2.0, "prefill")}
    failed = Report(1e-4, ("prefill", "decode"), worst, 1, 1, 0, source="random", dtype="float32")
    monkeypatch.setattr(exporters.export, "check", lambda *_: failed)
    with pytest.raises(ParityError, match=r"part at present\.0\.key in 'decode'") as caught:
        export_onnx(traced[0], folder / "out.onnx", overwrite=True)
    assert caught.value.exit_code == 1
    assert_untouched(folder)


def test_the_parity_check_sees_a_wrong_trace(folder, traced, monkeypatch):
    runner, plan = traced[0], Plan(("blocks.0.mlp_pre",))
    program = trace(runner.model, plan)
    monkeypatch.setattr(exporters.export, "trace", lambda *_: program)
    describe(program, runner, plan, runner.model, runner.model)  # names the weights
    value = program.model.graph.initializers["h.0.mlp.c_fc.bias"]
    wrong = onnx_ir.tensor(value.const_value.numpy() + np.float32(0.1))
    monkeypatch.setattr(value, "const_value", wrong)
    with pytest.raises(ParityError, match=r"part at blocks\.0\.mlp_pre in"):
        export_onnx(runner, folder / "out.onnx", overwrite=True, taps=["blocks.0.mlp_pre"])
    assert_untouched(folder)


def test_success_replaces_an_older_file_and_sweeps_stale_drafts(folder, traced):
    stages = []
    (folder / ".other.onnx.abc.draft" / "beside").mkdir(parents=True)
    export_onnx(traced[0], folder / "out.onnx", overwrite=True, on_progress=stages.append)
    assert stages == ["tracing", "writing", "checking against torch"]
    assert open_onnx(folder / "out.onnx", device="cpu").source.model == "tiny"
    assert list(folder.glob(".*")) == []


# What is refused before any work


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("out.bin", {}, ExportError, r"out\.bin: give a file name that ends in \.onnx"),
        ("missing/out.onnx", {}, ExportError, "the folder .*missing does not exist"),
        ("file/out.onnx", {}, ExportError, "the folder .*file does not exist"),
        ("folder.onnx", {}, ExportError, "is a folder; give a file name"),
        ("out.onnx", {"dtype": "float64"}, ExportError, "not one of float32, float16, bfloat16"),
        ("out.onnx", {"opset": 17}, ExportError, "opset 17 is not from 18 to 24"),
        ("out.onnx", {"opset": 25}, ExportError, "opset 25 is not from 18 to 24"),
        ("out.onnx", {"profile": None}, ExportError, "profile None is not one of portable, fused"),
        ("out.onnx", {"dtype": ["float32"]}, ExportError, r"dtype \['float32'\] is not one of"),
        ("out.onnx", {"quantize": 8}, ExportError, "quantize 8 is not one of int8, int4, int4-all"),
        ("out.onnx", {"opset": "23"}, InputError, "opset = '23' must be an integer, got str"),
        ("out.onnx", {"external_data": 1}, InputError, "external_data = 1 must be True or False"),
        ("out.onnx", {"overwrite": "no"}, InputError, "overwrite = 'no' must be True or False"),
        ("out.onnx", {"on_progress": 3}, InputError, "on_progress = 3 must be a function, or None"),
        ("out.onnx", {"taps": None}, TapError, "taps = None must be a tap's name or a list"),
        ("out.onnx", {"taps": ["blocks.2.z"]}, TapError, "layers 0 to 1"),
        ("out.onnx", {"taps": "blocks.0.zz"}, TapError, r"did you mean 'blocks\.0\.z'"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    tmp_path, monkeypatch, name, options, error, message
):
    monkeypatch.setattr(exporters.export, "trace", stop(AssertionError("work was done")))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.onnx").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        export_onnx(tiny_runner(), tmp_path / name, **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_runner_or_path_of_a_wrong_type_is_named(onnx_runner, tmp_path):
    with pytest.raises(InputError, match=r"runner must be a torch model from gpt2kit\.load, got"):
        export_onnx(onnx_runner, tmp_path / "out.onnx")
    with pytest.raises(InputError, match="path = None must be text or a path"):
        export_onnx(tiny_runner(), None)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_write_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ExportError, match="cannot be written to"):
        export_onnx(tiny_runner(), tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_config_of_another_model_is_kept(folder, traced):
    other = folder / "config.json"
    other.write_text('{"model_type": "gpt2", "n_layer": 7}')
    with pytest.raises(ExportError, match=r"config\.json belongs to another model"):
        export_onnx(traced[0], folder / "first.onnx")
    assert json.loads(other.read_text())["n_layer"] == 7
    other.unlink()
    assert_untouched(folder)


def test_the_config_of_another_model_is_replaced_when_asked_to(folder, traced):
    (folder / "config.json").write_text('{"model_type": "gpt2", "n_layer": 7}')
    export_onnx(traced[0], folder / "out.onnx", overwrite=True)
    assert json.loads((folder / "config.json").read_text())["n_layer"] == 1


def test_a_second_export_of_the_same_model_finds_its_own_files(folder, traced):
    export_onnx(traced[0], folder / "first.onnx")
    export_onnx(traced[0], folder / "second.onnx")
    assert (folder / "second.onnx").exists()


def test_an_export_into_the_folder_of_its_checkpoint_keeps_the_config(folder, traced):
    config = json.dumps({**traced[0].config.to_hf(), "initializer_range": 0.5})
    (folder / "config.json").write_text(config)
    export_onnx(traced[0], folder / "first.onnx")
    assert (folder / "config.json").read_text() == config
    assert (folder / "tokenizer.json").exists()


def test_a_trace_that_fails_is_one_clear_error(traced, tmp_path, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("first line\nwhat went wrong")

    monkeypatch.setattr("torch.onnx.export", broken)
    with pytest.raises(ExportError, match="could not be traced at opset 23: what went wrong"):
        export_onnx(traced[0], tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


# What an export replaces


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_name_taken_by_a_folder_is_refused_before_anything_is_replaced(
    traced, tmp_path, monkeypatch, overwrite
):
    runner, program = traced
    monkeypatch.setattr(exporters.export, "trace", lambda *_: program)
    export_onnx(runner, tmp_path / "out.onnx", external_data=True)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert len(names) >= 6
    for name in names:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        before = {file.name: file.is_dir() or file.read_bytes() for file in tmp_path.iterdir()}
        with pytest.raises(ExportError) as caught:
            export_onnx(runner, tmp_path / "out.onnx", external_data=True, overwrite=overwrite)
        assert re.search(rf"{name}:? (is a folder|belongs to another model)", str(caught.value))
        assert before == {
            file.name: file.is_dir() or file.read_bytes() for file in tmp_path.iterdir()
        }
        (tmp_path / name).rmdir()
        (tmp_path / name).write_bytes(content)


def test_an_export_of_other_weights_is_replaced_only_when_asked_to(traced, tmp_path, monkeypatch):
    runner, program = traced
    monkeypatch.setattr(exporters.export, "trace", lambda *_: program)
    export_onnx(runner, tmp_path / "out.onnx", external_data=True)
    before = (tmp_path / "out.onnx").read_bytes()
    model = random_model(runner.config)
    model.h[0].mlp.c_fc.bias[0] += 1
    other = TorchRunner(model, byte_tokenizer(), Source("tiny"))
    with pytest.raises(ExportError, match=r"out\.onnx: an export of other weights, .* overwriting"):
        export_onnx(other, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == before
    export_onnx(runner, tmp_path / "out.onnx")  # the same weights in another form
    assert not (tmp_path / "out.onnx_data").exists()


@pytest.mark.parametrize("name", ["out.onnx", "out.onnx_data"])
@pytest.mark.parametrize("content", [b"", b"something else"])
def test_a_file_that_is_not_ours_is_replaced_only_when_asked_to(
    traced, tmp_path, monkeypatch, name, content
):
    runner, program = traced
    monkeypatch.setattr(exporters.export, "trace", lambda *_: program)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExportError, match=rf"{name}: .* gpt2kit did not make"):
        export_onnx(runner, tmp_path / "out.onnx", external_data=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {name: content}
    export_onnx(runner, tmp_path / "out.onnx", external_data=True, overwrite=True)
    assert inspect_onnx(tmp_path / "out.onnx").proof == "as written"


@pytest.mark.parametrize("name", ["out.onnx", "config.json"])
def test_another_model_that_came_first_is_not_replaced(traced, tmp_path, monkeypatch, name):
    """Its export ended while this one was running."""
    runner, program = traced
    check = exporters.export.check

    def check_late(*args):
        (tmp_path / name).write_bytes(b"{}")
        return check(*args)

    monkeypatch.setattr(exporters.export, "trace", lambda *_: program)
    monkeypatch.setattr(exporters.export, "check", check_late)
    with pytest.raises(ExportError, match=f"{name}.*(another model|other weights)"):
        export_onnx(runner, tmp_path / "out.onnx")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {name: b"{}"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_same_weights_are_known_in_any_dtype(dtype, tmp_path, monkeypatch, exported):
    runner, path = exported(dtype=dtype)
    copy = Path(shutil.copyfile(path, tmp_path / "out.onnx"))
    exporters.export._check_older(runner, copy)
    with pytest.raises(ExportError, match="an export of other weights"):
        exporters.export._check_older(tiny_runner(n_inner=40), copy)


def test_a_replaced_file_takes_its_data_along(traced, tmp_path, monkeypatch):
    runner, program = traced
    monkeypatch.setattr(exporters.export, "trace", lambda *_: program)
    for external in (True, False):
        export_onnx(runner, tmp_path / "out.onnx", external_data=external)
        assert (tmp_path / "out.onnx_data").exists() == external


def test_a_replaced_file_takes_data_of_the_older_name_along(traced, tmp_path, monkeypatch):
    runner, program = traced
    monkeypatch.setattr(exporters.export, "trace", lambda *_: program)
    with monkeypatch.context() as patch:
        patch.setattr(exporters.export, "data_file", lambda path: path.with_name("out.onnx.data"))
        export_onnx(runner, tmp_path / "out.onnx", external_data=True)
    (tmp_path / "other.onnx.data").write_bytes(b"of another file")
    export_onnx(runner, tmp_path / "out.onnx", external_data=True)
    names = {file.name for file in tmp_path.iterdir() if "data" in file.name}
    assert names == {"out.onnx_data", "other.onnx.data"}
