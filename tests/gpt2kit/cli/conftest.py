"""What tests of the command line share: an empty folder, and a tiny model in both forms."""

import pytest

import gpt2kit
from exporters import open_onnx
from tests.conftest import byte_tokenizer, write_checkpoint


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Every command runs in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> str:
    """A checkpoint in Hugging Face layout: the weights of `torch_runner`."""
    path = tmp_path_factory.mktemp("cli") / "tiny"
    write_checkpoint(path)
    (path / "tokenizer.json").write_text(byte_tokenizer().to_json())
    return str(path)


@pytest.fixture
def onnx_file(onnx_runner) -> str:
    return str(onnx_runner.path)


@pytest.fixture(params=["torch", "onnx"])
def engine(request, folder, onnx_file):
    """The options that name an engine, and its runner."""
    if request.param == "torch":
        return ["--model", folder], gpt2kit.load(folder)
    return ["--onnx", onnx_file], open_onnx(onnx_file)
