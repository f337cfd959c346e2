"""The commands about exported files: export, verify and inspect."""

import json
import os
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from rich.cells import cell_len

from exporters import export as onnx_export
from exporters.parity.report import Report
from gpt2kit.cli import main
from tests.conftest import CONFIG, write_checkpoint
from tests.gpt2kit.cli.support import assert_one_line, run, succeeded


@pytest.fixture
def no_trace(monkeypatch):
    """An export, without the seconds that it takes."""

    def export(runner, path, *, taps, on_progress, **options):
        assert taps == ("*",)
        on_progress("tracing")
        return report

    report = Report(
        1e-4, ("decode",), {"logits": (1e-6, "decode")}, 9, 9, 0, source="random", dtype="float32"
    )
    monkeypatch.setattr(onnx_export, "export_onnx", export)


def test_export_says_how_well_it_agrees_and_where_it_wrote(no_trace, folder):
    result = run("export", "--onnx", "a[red]b.onnx", "--model", folder, "--taps", "*")
    assert (result.exit_code, result.stderr) == (0, "tracing …\n")
    assert "torch and ONNX agree (tolerance 1e-04 for float32)" in result.stdout
    assert result.stdout.endswith("wrote a[red]b.onnx\n")


def test_verify_passes_and_fails(folder, onnx_file, tmp_path):
    assert "torch and ONNX agree" in succeeded(run("verify", onnx_file, "--model", folder))
    read = json.loads(succeeded(run("verify", onnx_file, "--model", folder, "--json")))
    assert read["passed"] is True
    model = onnx.load(onnx_file)
    (weight,) = (w for w in model.graph.initializer if w.name == "h.1.mlp.c_fc.bias")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 1, weight.name))
    Path("wrong.onnx").write_bytes(model.SerializeToString())
    result = run("verify", "wrong.onnx", "--model", folder)
    assert "they do not agree" in result.stdout
    assert "they part first at blocks.1.mlp_pre" in result.stdout
    assert_one_line(result.exit_code, "", result.stderr, "part at blocks.1.mlp_pre in", exit_code=1)
    result = run("verify", "wrong.onnx", "--model", folder, "--json")
    assert (result.exit_code, json.loads(result.stdout)["diverged"]) == (1, "blocks.1.mlp_pre")


def test_a_failed_gate_exits_1_and_leaves_nothing(folder, monkeypatch):
    failed = Report(
        1e-4, ("decode",), {"logits": (1.0, "decode")}, 0, 1, 0, source="random", dtype="float32"
    )
    monkeypatch.setattr(onnx_export, "trace", lambda *_: None)
    monkeypatch.setattr(onnx_export, "describe", lambda *_: None)
    monkeypatch.setattr(onnx_export, "_save", lambda _, path, __: path.write_bytes(b"x"))
    monkeypatch.setattr(onnx_export, "check", lambda *_: failed)
    result = run("export", "--onnx", "out.onnx", "--model", folder)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith(
        "gpt2kit: error: torch and ONNX part at logits"
    )
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["out.onnx", "--taps", "blocks.3.z"], "the model has layers 0 to 2"),
        (["out.onnx", "--taps", "blocks.0.zz"], r"did you mean 'blocks\.0\.z'"),
        (["out.onnx", "--dtype", "float64"], "not one of 'float32', 'float16', 'bfloat16'"),
        (["out.onnx", "--opset", "17"], "opset 17 is not from 18 to 24"),
        (["out.bin"], r"ends in \.onnx"),
        (["none/out.onnx"], "does not exist"),
        (["file/out.onnx"], "does not exist"),
        (["folder.onnx"], "is a folder"),
        ([f"{'z' * 300}.onnx"], "too long"),
    ],
)
def test_export_refuses_in_one_line(folder, args, message):
    Path("folder.onnx").mkdir()
    Path("file").touch()
    result = run("export", "--model", folder, "--onnx", *args)
    assert_one_line(result.exit_code, result.stdout, result.stderr, message)
    assert {entry.name for entry in Path().iterdir()} == {"file", "folder.onnx"}


def test_an_unwritable_folder_is_one_line(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    result = run("export", "--model", folder, "--onnx", "out.onnx")
    assert_one_line(result.exit_code, result.stdout, result.stderr, "cannot be written to")


@pytest.mark.parametrize("command", ["verify", "generate x --onnx", "lens x --onnx"])
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("none.onnx", "no such file"),
        (".", "is a folder"),
        ("text.onnx", "not an ONNX file"),
        ("empty.onnx", "not an ONNX file"),
        ("z" * 5000, "too long"),
    ],
)
def test_a_bad_onnx_file_is_one_line(command, file, message):
    Path("text.onnx").write_text("hello")
    Path("empty.onnx").touch()
    result = run(*command.split(), file)
    assert_one_line(result.exit_code, result.stdout, result.stderr, message)


@pytest.mark.parametrize(
    "option", [["--model", "bundled"], ["--revision", "x"], ["--dtype", "float32"]]
)
@pytest.mark.parametrize("command", ["generate", "lens"])
def test_a_file_and_a_model_do_not_go_together(onnx_file, command, option):
    result = run(command, "x", "--onnx", onnx_file, *option)
    assert_one_line(result.exit_code, result.stdout, result.stderr, f"{option[0]} does not go with")


def test_verify_refuses_other_weights(onnx_file, tmp_path):
    write_checkpoint(tmp_path / "other", replace(CONFIG, n_layer=2))
    result = run("verify", onnx_file, "--model", "./other")
    assert_one_line(result.exit_code, result.stdout, result.stderr, "made from other weights")


@pytest.mark.slow
def test_the_bundled_model_exports_verifies_and_runs():
    result = run("export", "--onnx", "b.onnx", "--model", "bundled", "--taps", "blocks.*.resid_p*")
    assert result.exit_code == 0, result.output
    assert [line for line in result.stderr.splitlines() if "…" not in line] == []
    assert "agree" in succeeded(run("verify", "b.onnx"))
    args = ["generate", "One day", "-n", "30", "--seed", "1"]
    assert succeeded(run(*args, "--onnx", "b.onnx")) == succeeded(run(*args, "--model", "bundled"))
    assert succeeded(run("lens", "One day", "--onnx", "b.onnx")) == (
        succeeded(run("lens", "One day", "--model", "bundled"))
    )


@pytest.mark.parametrize("columns", [80, 200])
def test_long_lines_wrap_at_words(onnx_file, columns):
    wide = CliRunner().invoke(main, ["inspect", onnx_file], env={"COLUMNS": "1000"}).stdout
    text = CliRunner().invoke(main, ["inspect", onnx_file], env={"COLUMNS": str(columns)}).stdout
    assert all(cell_len(line) <= columns for line in text.splitlines())
    words = {word for word in wide.split() if cell_len(word) <= 40}  # a long path may be broken
    assert words <= set(text.split())
