"""`gpt2kit doctor` names what is wrong, and survives it."""

import sys
from importlib import metadata

import pytest
from click.testing import CliRunner

from exporters.engine import devices
from exporters.engine.doctor import diagnose
from gpt2kit import shipped
from gpt2kit.cli import main


def bad_texts() -> list[str]:
    return [finding.text for finding in diagnose() if finding.level == "bad"]


def test_a_sound_installation_has_nothing_bad():
    texts = [finding.text for finding in diagnose()]
    assert bad_texts() == []
    for part in ("Python", "torch", "onnxruntime", "onnx ", "tokenizers", "bundled model", "gpt2"):
        assert any(part in text for text in texts), part
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 0


def test_what_keeps_cuda_away_is_a_note(monkeypatch):
    monkeypatch.setattr(devices, "cuda_problems", lambda: ["no NVIDIA driver", "no cublas"])
    notes = [finding.text for finding in diagnose() if finding.level == "note"]
    assert "onnxruntime has no CUDA here: no NVIDIA driver" in notes
    assert "onnxruntime has no CUDA here: no cublas" in notes


def test_cuda_that_works_is_named(monkeypatch):
    monkeypatch.setattr(devices, "cuda_problems", list)
    assert any(f.text.startswith("onnxruntime runs on CUDA") for f in diagnose())


def test_cudnn_is_a_remark_where_cuda_works_without(monkeypatch):
    monkeypatch.setattr(devices, "cuda_problems", list)
    monkeypatch.setattr(devices, "_loads", lambda name, _: "cudnn" not in name)
    found = list(diagnose())
    assert any(f.text.startswith("onnxruntime runs on CUDA") for f in found)
    notes = [f.text for f in found if f.level == "note" and "cudnn" in f.text]
    assert len(notes) == 1
    assert "runs on CUDA without, but refuses operators that need it" in notes[0]
    monkeypatch.setattr(devices, "_loads", lambda *_: True)
    assert not any("cudnn" in f.text for f in diagnose())


def test_two_wheels_of_onnxruntime_are_bad(monkeypatch):
    both = {"onnxruntime": "1", "onnxruntime-gpu": "1"}
    monkeypatch.setattr(devices, "installed_wheels", lambda: both)
    assert any("overwrite each other's files" in text for text in bad_texts())


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_an_engine_that_does_not_import_is_named_and_survived(monkeypatch, name):
    for module in list(sys.modules):  # as in a fresh process
        if module.split(".")[0] in ("exporters", "gpt2kit") or module == name:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    from exporters.engine.doctor import diagnose as fresh

    assert any(
        finding.level == "bad" and finding.text.startswith(f"{name} does not import")
        for finding in fresh()
    )


def test_a_package_that_is_missing_is_named(monkeypatch):
    real = metadata.version

    def version(name: str) -> str:
        if name == "onnxscript":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert bad_texts() == ["onnxscript is not installed; run `pip install onnxscript`"]


def test_a_missing_bundled_model_is_bad_and_exits_1(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "BUNDLED", tmp_path / "[gone]")
    monkeypatch.setenv("COLUMNS", "400")  # else a long path is folded at the edge
    assert any("bundled model is missing" in text for text in bad_texts())
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "[gone]" in result.stdout
    assert result.stdout.count("bad") == 1
