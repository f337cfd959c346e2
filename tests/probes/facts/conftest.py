"""A small model on both engines."""

import pytest

from exporters import export_onnx, open_onnx
from gpt2kit import TorchRunner
from tests.probes.facts.support import HEADS, LAYERS, small


@pytest.fixture(scope="module")
def by_torch() -> TorchRunner:
    return small(n_embd=24, n_layer=LAYERS, n_head=HEADS)


@pytest.fixture(scope="module")
def by_onnx(by_torch, tmp_path_factory):
    path = tmp_path_factory.mktemp("facts") / "small.onnx"
    export_onnx(by_torch, path, taps="*", edits="*")
    return open_onnx(path, device="cpu")


@pytest.fixture(params=["torch", "onnx"])
def runner(request):
    return request.getfixturevalue(f"by_{request.param}")
