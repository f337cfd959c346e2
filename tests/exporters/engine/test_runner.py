"""The onnxruntime engine against the torch engine, through nothing but the Runner protocol."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import exporters.engine.file_sessions
from exporters import OnnxRunner, export_onnx, open_onnx
from exporters.engine import devices, sessions
from exporters.engine.sessions import reason
from exporters.parity.compare import compare
from gpt2kit import TorchRunner, generate
from gpt2kit.errors import CheckpointError, EngineError, InputError, TapError
from gpt2kit.runner import LayerRunner, Run, Runner
from gpt2kit.taps import axes_of, tap_axes
from tests.conftest import CONFIG, close, no_gpu, random_ids, random_model

EVERY = list(tap_axes(CONFIG.n_layer))


# Both engines agree


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
    """Lengths of every row, chunk by chunk, within the context."""
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
    """Logits, and every tap with keys at absolute positions, in ragged batches with a past."""
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


# What it refuses


@pytest.fixture(scope="module")
def bare(onnx_runner) -> OnnxRunner:
    """As if exported with one tap alone."""
    runner = OnnxRunner(onnx_runner.sessions)
    runner.taps = ("blocks.1.z",)
    return runner


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ("blocks.1.q", r"'blocks\.1\.q'; export it with .* --taps 'blocks\.1\.q'`$"),
        ("blocks.*.z", r"'blocks\.0\.z' \(and 1 more\); .* --taps 'blocks\.\*\.z'`$"),
        (
            ["blocks.0.resid_pre", "blocks.*.resid_post", "ln_f"],
            r"'blocks\.0\.resid_pre' \(and 4 more\); .* "
            r"--taps 'blocks\.0\.resid_pre' --taps 'blocks\.\*\.resid_post' --taps 'ln_f'`$",
        ),
    ],
)
def test_a_missing_tap_says_how_to_export_it(bare, taps, message):
    with pytest.raises(TapError, match=message):
        bare.run([1, 2], taps=taps)
    assert bare.run([1, 2], taps="blocks.1.z").taps["blocks.1.z"].shape == (1, 2, 3, 8)


def test_an_unknown_tap_is_named(onnx_runner):
    with pytest.raises(TapError, match=r"did you mean 'blocks\.1\.pattern'"):
        onnx_runner.run([1], taps="blocks.1.patern")


def test_each_engine_refuses_the_cache_of_the_other(torch_runner, onnx_runner):
    for runner, other in ((torch_runner, onnx_runner), (onnx_runner, torch_runner)):
        with pytest.raises(InputError, match="needs a cache of its own"):
            runner.run([1], cache=other.new_cache())


def test_a_spent_cache_is_refused_and_a_copy_is_not(onnx_runner):
    first = onnx_runner.run([1, 2, 3], cache=onnx_runner.new_cache()).cache
    kept = first.copy()
    one = onnx_runner.run([4], cache=first)
    with pytest.raises(InputError, match="was advanced by a later run"):
        onnx_runner.run([4], cache=first)
    two = onnx_runner.run([4], cache=kept)
    np.testing.assert_array_equal(one.logits, two.logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": []}, "no tokens"),
        ({"ids": [CONFIG.vocab_size]}, "outside the vocabulary"),
        ({"ids": [-1]}, "outside the vocabulary"),
        ({"ids": [1] * (CONFIG.n_positions + 1)}, "do not fit the context"),
        ({"ids": [[1, 2]], "lengths": [3]}, "do not fit ids"),
    ],
)
def test_bad_ids_are_refused(onnx_runner, arguments, message):
    with pytest.raises(InputError, match=message):
        onnx_runner.run(**arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((-1,), "batch_size = -1 must be at least 1"),
        ((0,), "batch_size = 0 must be at least 1"),
        ((1.5,), "batch_size = 1.5 must be an integer, got float"),
        ((1, 0), f"max_length = 0 must be from 1 to {CONFIG.n_positions}"),
        ((1, 2.5), "max_length = 2.5 must be an integer, got float"),
        ((1, CONFIG.n_positions + 1), f"max_length = 41 must be from 1 to {CONFIG.n_positions}"),
    ],
)
def test_a_cache_of_no_size_is_refused_on_every_engine(runner, given, message):
    with pytest.raises(InputError, match=message):
        runner.new_cache(*given)


@pytest.mark.parametrize("cache", [5, [], "cache"])
def test_what_is_no_cache_is_refused_on_every_engine(runner, cache):
    with pytest.raises(InputError, match=r"needs a cache of its own, got (int|list|str)$"):
        runner.run([1], cache=cache)


@pytest.mark.parametrize("threads", [0, -1, 2.5, True, "2"])
def test_threads_that_cannot_be_are_refused(onnx_runner, threads):
    wanted = "at least 1" if type(threads) is int else "an integer, got"
    with pytest.raises(InputError, match=f"threads = {threads!r} must be {wanted}"):
        open_onnx(onnx_runner.path, device="cpu", threads=threads)


def test_a_cache_that_is_too_short_is_refused(onnx_runner):
    with pytest.raises(InputError, match="3 positions do not fit the cache of 2"):
        onnx_runner.run([1, 2, 3], cache=onnx_runner.new_cache(1, 2))


# No torch

NO_TORCH = """
import sys
from exporters import open_onnx
from gpt2kit import generate
runner = open_onnx({path!r}, device="cpu")
run = runner.run([[1, 2, 3]], taps="blocks.*.resid_post")
runner.readout(run.taps["blocks.1.resid_post"], top_k=2)
generate(runner, "the ", max_new_tokens=2)
assert "torch" not in sys.modules, "torch was imported"
"""


def test_running_a_file_does_not_import_torch(onnx_runner):
    script = NO_TORCH.format(path=str(onnx_runner.path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# Files that cannot be run


def foreign(location: str | None = None, length: int = 1024) -> onnx.ModelProto:
    """A small valid graph that gpt2kit did not make."""
    weight = numpy_helper.from_array(np.ones((16, 16), np.float32), "w")
    if location is not None:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
        weight.external_data.add(key="length", value=str(length))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight]
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def unknown_operator() -> onnx.ModelProto:
    model = foreign()
    model.graph.node[0].op_type = "Nonsense"
    return model


def from_the_future() -> onnx.ModelProto:
    model = foreign()
    model.ir_version = 99
    return model


def half_described() -> onnx.ModelProto:
    model = foreign()
    onnx.helper.set_model_props(model, {"gpt2kit.config": '{"model_type": "gpt2"}'})
    return model


def badly_described() -> onnx.ModelProto:
    model = foreign()
    onnx.helper.set_model_props(model, {"gpt2kit.config": "{"})
    return model


NOT_ONNX, OUTSIDE = "not an ONNX file, or a damaged one", "refused: .* outside its folder"
MISSING, LENGTH = r"weights\.bin is missing; keep that file beside it", "not of the right length"
BAD_FILES = {
    "empty": (lambda: b"", NOT_ONNX),
    "text": (lambda: b"hello, this is not ONNX\n" * 9, NOT_ONNX),
    "zeros": (lambda: bytes(999), NOT_ONNX),
    "elsewhere": (foreign, "not made by gpt2kit; make it with"),
    "half": (half_described, "not made by gpt2kit"),
    "bad config": (badly_described, "not made by gpt2kit"),
    "operator": (unknown_operator, "cannot load it: .*No Op registered for Nonsense"),
    "future": (from_the_future, r"cannot load it: Unsupported model IR version: 99"),
    "missing": (lambda: foreign("weights.bin"), MISSING),
    "short": (lambda: foreign("short.bin"), LENGTH),
    "long": (lambda: foreign("whole.bin", 4096), LENGTH),
    "parent": (lambda: foreign("../outside.bin"), OUTSIDE),
    "parent-missing": (lambda: foreign("../nowhere.bin"), OUTSIDE),
    "absolute": (lambda: foreign("/etc/hostname"), OUTSIDE),
    "link": (lambda: foreign("link.bin"), OUTSIDE),
}


def assert_refused(path: Path, message: str, capfd) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        open_onnx(path, device="cpu")
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert "onnxruntime::" not in text
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_cannot_be_run_is_one_clear_line(tmp_path, capfd, kind):
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(1024))
    (folder / "whole.bin").write_bytes(bytes(1024))
    (folder / "short.bin").write_bytes(bytes(100))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    make, message = BAD_FILES[kind]
    made = make()
    (folder / "bad.onnx").write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    assert_refused(folder / "bad.onnx", message, capfd)


@pytest.mark.parametrize("part", [100, 0.5, -7])
def test_a_truncated_file_is_refused(onnx_runner, tmp_path, capfd, part):
    content = onnx_runner.path.read_bytes()
    cut = int(part * len(content)) if isinstance(part, float) else part
    (tmp_path / "cut.onnx").write_bytes(content[:cut])
    assert_refused(tmp_path / "cut.onnx", NOT_ONNX, capfd)


def test_a_missing_file_and_a_folder_are_refused(tmp_path, capfd):
    assert_refused(tmp_path / "none.onnx", "no such file", capfd)
    assert_refused(tmp_path, "is a folder", capfd)


RESID = np.zeros((1, CONFIG.n_embd), np.float32)
LATER = {
    "tap": lambda runner: runner.run([1, 2], taps="blocks.0.z"),
    "readout": lambda runner: runner.readout(RESID),
    "unembed": lambda runner: runner.unembed(RESID),
    "weight": lambda runner: runner.weight("h.0.mlp.c_fc.weight"),
}


@pytest.fixture(scope="module")
def outside(tmp_path_factory, torch_runner) -> Path:
    """A folder with a file whose weights lie beside it."""
    folder = tmp_path_factory.mktemp("outside")
    export_onnx(torch_runner, folder / "x.onnx", taps="blocks.0.z", external_data=True)
    return folder


@pytest.mark.parametrize("part", ["x.onnx", "x.onnx.data"])
@pytest.mark.parametrize("later", LATER)
def test_a_file_that_changed_since_it_was_opened_is_not_read_again(outside, tmp_path, part, later):
    for name in ("x.onnx", "x.onnx.data"):
        shutil.copyfile(outside / name, tmp_path / name)
    runner, again = (open_onnx(tmp_path / "x.onnx", device="cpu") for _ in range(2))
    LATER[later](again)
    want = runner.run([1, 2]).logits
    (tmp_path / "new").write_bytes((outside / part).read_bytes())
    (tmp_path / "new").replace(tmp_path / part)
    with pytest.raises(EngineError, match=rf"{part}: changed since it was opened; open it again$"):
        LATER[later](runner)
    LATER[later](open_onnx(tmp_path / "x.onnx", device="cpu"))
    (tmp_path / part).unlink()
    with pytest.raises(EngineError, match=rf"{part}: was removed since it was opened; "):
        LATER[later](runner)
    np.testing.assert_array_equal(runner.run([1, 2]).logits, want)  # this needs no file any more


def test_a_damaged_tokenizer_beside_the_file_is_named(onnx_runner, tmp_path):
    (tmp_path / "copy.onnx").write_bytes(onnx_runner.path.read_bytes())
    assert open_onnx(tmp_path / "copy.onnx", device="cpu").tokenizer is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer files cannot be read"):
        open_onnx(tmp_path / "copy.onnx", device="cpu")


def test_an_unknown_message_stays_one_line():
    assert reason("[ONNXRuntimeError] : 1 : FAIL : one\n : two\n").endswith("it: one : two")


# Devices


def test_an_unknown_device_is_refused(onnx_runner):
    with pytest.raises(EngineError, match="'tpu' is not one of auto, cpu, cuda"):
        open_onnx(onnx_runner.path, device="tpu")


@pytest.mark.skipif(not no_gpu(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_says_what_is_missing(onnx_runner):
    with pytest.raises(EngineError, match=r"device 'cuda' cannot be used: .*(driver|GPU|CPU-only)"):
        open_onnx(onnx_runner.path, device="cuda")
    assert open_onnx(onnx_runner.path, device="auto").device == "cpu"


@pytest.fixture
def healthy(monkeypatch):
    """A machine where nothing keeps onnxruntime from CUDA."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [devices.CUDA, devices.CPU])
    monkeypatch.setattr(devices, "installed_wheels", lambda: {"onnxruntime-gpu": "1"})
    monkeypatch.setattr(devices, "_driver_problem", lambda: None)
    monkeypatch.setattr(devices, "_loads", lambda *_: True)
    return monkeypatch


def test_auto_takes_cuda_where_it_works(healthy):
    assert devices.cuda_problems() == []
    assert devices.choose("auto") == devices.choose("cuda") == "cuda"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("installed_wheels", lambda: {"onnxruntime": "1", "onnxruntime-gpu": "1"}),
            "overwrite each other's files; run `pip uninstall",
        ),
        (("_driver_problem", lambda: "no NVIDIA driver"), "no NVIDIA driver"),
        (("_loads", lambda name, _: "rand" not in name), r"not found: libcurand\.so\.10; install"),
    ],
)
def test_each_thing_that_cuda_lacks_is_named(healthy, change, message):
    healthy.setattr(devices, *change)
    with pytest.raises(EngineError, match=f"device 'cuda' cannot be used: .*{message}"):
        devices.choose("cuda")
    assert devices.choose("auto") == "cpu"


def test_cuda_is_taken_without_cudnn(healthy):
    """The CUDA provider of onnxruntime 1.28 and later does not link to it."""
    healthy.setattr(devices, "_loads", lambda name, _: "cudnn" not in name)
    assert devices.choose("auto") == devices.choose("cuda") == "cuda"


def test_the_cpu_only_wheel_is_named(healthy):
    healthy.setattr(ort, "get_available_providers", lambda: [devices.CPU])
    with pytest.raises(EngineError, match=r"CPU-only wheel; run .* `pip install onnxruntime-gpu`"):
        devices.choose("cuda")


@pytest.mark.parametrize("given", ["auto", "cuda"])
def test_a_file_that_cuda_cannot_run_goes_to_the_cpu_if_it_may(onnx_runner, healthy, given):
    """As with float32 in the fused profile, which CUDA's GroupQueryAttention does not have."""
    tried, really = [], sessions.open_session

    def opening(file, device, threads, *, lean):
        tried.append(device)
        if device == "cuda":
            devices.check_placement(placed(GroupQueryAttention=devices.CPU))
        return really(file, device, threads, lean=lean)

    healthy.setattr(ort, "preload_dlls", lambda: None)
    healthy.setattr(exporters.engine.file_sessions, "open_session", opening)
    if given == "cuda":
        with pytest.raises(EngineError, match="fall back to the CPU: GroupQueryAttention"):
            open_onnx(onnx_runner.path, device="cuda")
        assert tried == ["cuda"]
        return
    runner = open_onnx(onnx_runner.path)
    assert tried == ["cuda", "cpu"]
    assert runner.device == "cpu"
    assert not runner.cuda_graphs
    close(runner.run([1, 2]).logits, onnx_runner.run([1, 2]).logits)


def placed(**nodes: str) -> SimpleNamespace:
    """A session whose nodes of each type lie on a provider."""
    parts = [
        SimpleNamespace(ep_name=ep, get_nodes=lambda kind=kind: [SimpleNamespace(op_type=kind)])
        for kind, ep in nodes.items()
    ]
    return SimpleNamespace(
        get_providers=lambda: [devices.CUDA, devices.CPU],
        get_provider_graph_assignment_info=lambda: parts,
    )


def test_nodes_on_the_cpu_are_refused_unless_they_only_count():
    devices.check_placement(placed(Gemm=devices.CUDA, Shape=devices.CPU, Range=devices.CPU))
    with pytest.raises(EngineError, match="fall back to the CPU: Gelu, Gemm; use --device cpu"):
        devices.check_placement(placed(Gemm=devices.CPU, Gelu=devices.CPU, Shape=devices.CPU))


def test_a_session_that_fell_back_is_refused():
    session = SimpleNamespace(get_providers=lambda: [devices.CPU])
    with pytest.raises(EngineError, match="fell back to the CPU; `gpt2kit doctor` says"):
        devices.check_placement(session)


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
