"""What a file says of itself, and that the report beside it is the one it was written with."""

import json

import pytest
from click.testing import CliRunner

from exporters import export_onnx, inspect_onnx
from exporters.file.names import parity_file, present_names
from gpt2kit.cli import main
from gpt2kit.errors import EngineError
from gpt2kit.taps import axes_of
from tests.conftest import CONFIG


@pytest.fixture(scope="module")
def file(torch_runner, tmp_path_factory):
    path = tmp_path_factory.mktemp("inspected") / "out.onnx"
    export_onnx(
        torch_runner,
        path,
        profile="fused",
        taps="blocks.*.resid_post",
        edits=["blocks.1.z", "embed"],
    )
    return path


def test_it_tells_what_was_asked_for(file, torch_runner):
    found = inspect_onnx(file)
    assert (found.model, found.profile, found.dtype, found.opset) == (
        "random", "fused", "float32", 23,
    )  # fmt: skip
    assert found.config == CONFIG.to_hf()
    assert list(found.taps) == [f"blocks.{i}.resid_post" for i in range(3)]
    assert found.edits == {
        "embed": ("batch", "pos", CONFIG.n_embd),
        "blocks.1.z": ("batch", "pos", CONFIG.n_head, CONFIG.d_head),
    }
    assert found.taps["blocks.0.resid_post"] == axes_of("blocks.0.resid_post")
    assert found.size == file.stat().st_size
    assert found.inputs["input_ids"].startswith("int64 (batch_size, sequence_length")
    assert list(found.outputs) == ["logits", *present_names(CONFIG.n_layer)]
    assert not any(name.endswith((".keep", ".add")) for name in found.inputs)
    assert json.loads(found.to_json())["edits"]["embed"] == ["batch", "pos", CONFIG.n_embd]


def test_the_report_beside_it_is_the_gates_own(file):
    report = json.loads(parity_file(file).read_text())
    assert report["passed"]
    assert "edit of blocks.1.z" in report["cases"]
    assert "edits through the cache" in report["cases"]
    found = inspect_onnx(file)
    assert found.proof == "as written"
    assert found.parity["passed"]
    assert found.parity["cases"] == len(report["cases"])
    quantity, error, case = found.parity["worst"]
    assert report["worst"][quantity] == [error, case]
    assert error == max(error for error, _ in report["worst"].values())


def test_a_report_that_was_changed_or_lost_is_noticed(file, tmp_path):
    copy = tmp_path / "out.onnx"
    copy.write_bytes(file.read_bytes())
    assert inspect_onnx(copy).proof == "missing"
    parity_file(copy).write_text(parity_file(file).read_text().replace("true", "false"))
    assert inspect_onnx(copy).proof == "changed"


def test_the_command_prints_it_as_text_and_as_json(file):
    shown = CliRunner().invoke(main, ["inspect", str(file)])
    assert shown.exit_code == 0, shown.output
    for words in (
        "passed",
        "blocks.{0-2}.resid_post",
        "blocks.1.z",
        "as written",
        "fused, float32",
    ):
        assert words in shown.stdout
    as_json = CliRunner().invoke(main, ["inspect", str(file), "--json"])
    assert json.loads(as_json.stdout) == json.loads(inspect_onnx(file).to_json())


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"nonsense", "not an ONNX file"), (b"", "not made by")],
)
def test_what_is_no_file_of_ours_is_refused(tmp_path, content, words):
    path = tmp_path / "x.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=words):
        inspect_onnx(path)
