"""`inspect_onnx` reads what was exported, and notices a parity report that was changed."""

import json

import onnx
import pytest
from click.testing import CliRunner

from exporters import Inspection, export_onnx, inspect_onnx
from exporters.file.names import parity_file, present_names
from gpt2kit.cli import main
from gpt2kit.errors import EngineError, InputError
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


def test_an_inspection_holds_what_was_exported(file, torch_runner):
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
    columns = "int64 (logits_positions.batch, logits_positions.pos), optional"
    assert found.inputs["logits_positions"] == columns
    assert found.edits_required is False
    assert list(found.outputs) == ["logits", *present_names(CONFIG.n_layer)]
    assert not any(name.endswith((".keep", ".add")) for name in found.inputs)
    assert repr(found) == f"Inspection({file.name}: random, fused, float32, 3 taps, 2 edits)"
    assert json.loads(found.to_json())["edits"]["embed"] == ["batch", "pos", CONFIG.n_embd]


def test_the_report_beside_a_file_is_the_one_of_its_check(file):
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


def test_a_changed_or_missing_report_is_noticed(file, tmp_path):
    copy = tmp_path / "out.onnx"
    copy.write_bytes(file.read_bytes())
    assert inspect_onnx(copy).proof == "missing"
    parity_file(copy).write_text(parity_file(file).read_text().replace("true", "false"))
    assert inspect_onnx(copy).proof == "changed"


def test_the_command_prints_text_and_json(file):
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


def test_an_inspection_obeys_the_contract_of_results(file):
    found = inspect_onnx(file)
    assert found.to_dict()["kind"] == "inspection"
    assert Inspection.from_json(found.to_json()) == found
    assert "blocks.{0-2}.resid_post" in str(found)
    assert "blocks.{0-2}.resid_post" in found._repr_html_()
    rows = found.table()
    assert all(list(row) == ["section", "name", "value"] for row in rows)
    assert {row["section"] for row in rows} == {"file", "inputs", "outputs", "taps", "edits"}
    taps = {row["name"]: row["value"] for row in rows if row["section"] == "taps"}
    assert taps["blocks.1.resid_post"] == "(batch, pos, d_model)"
    assert found.to_csv().splitlines()[0] == "section,name,value"
    assert len(found.to_csv().splitlines()) == 1 + len(rows)


def test_a_file_without_a_parity_result_is_refused(file, tmp_path):
    model = onnx.load(file)
    kept = [entry for entry in model.metadata_props if entry.key != "gpt2kit.parity"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, tmp_path / "draft.onnx")
    with pytest.raises(EngineError, match=r"draft\.onnx: has no parity result; make it with"):
        inspect_onnx(tmp_path / "draft.onnx")


def test_a_path_of_a_wrong_type_is_named():
    with pytest.raises(InputError, match="path = None must be text or a path, got NoneType"):
        inspect_onnx(None)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"nonsense", "not an ONNX file"), (b"", "not made by")],
)
def test_a_file_that_gpt2kit_did_not_make_is_refused(tmp_path, content, words):
    path = tmp_path / "x.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=words):
        inspect_onnx(path)
