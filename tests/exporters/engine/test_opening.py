"""Opening files: without torch, and with one clear line for a file that cannot be run."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters import export_onnx, open_onnx
from exporters.engine.runner import graph_of
from exporters.engine.sessions import reason
from gpt2kit.errors import CheckpointError, EngineError
from tests.conftest import CONFIG

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
    """A folder with a file whose weights are in an external file."""
    folder = tmp_path_factory.mktemp("outside")
    export_onnx(torch_runner, folder / "x.onnx", taps="blocks.0.z", external_data=True)
    return folder


@pytest.mark.parametrize("part", ["x.onnx", "x.onnx_data"])
@pytest.mark.parametrize("later", LATER)
def test_a_file_that_changed_since_it_was_opened_is_not_read_again(outside, tmp_path, part, later):
    for name in ("x.onnx", "x.onnx_data"):
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


@pytest.mark.parametrize("change", [{"profile": "other"}, {"dtype": "float8"}])
def test_a_profile_or_dtype_of_a_later_version_is_refused(onnx_runner, change):
    meta = replace(onnx_runner.metadata, **change)
    with pytest.raises(EngineError, match=r"random\.onnx: profile .* export it again$"):
        graph_of(onnx_runner.sessions, meta)


def test_an_unknown_message_stays_one_line():
    assert reason("[ONNXRuntimeError] : 1 : FAIL : one\n : two\n").endswith("it: one : two")
