"""A small model on both engines."""

import pytest

from exporters import export_onnx, open_onnx
from gpt2kit import TorchRunner
from probes.facts.check import KNOWN_MODELS
from tests.probes.facts.support import HEADS, LAYERS, small

# What the measurements of `contrasts` and `measures` read that published facts do not.
TAPS = ("blocks.0.resid_pre", "blocks.*.resid_post", "blocks.1.ln_1_scale", "blocks.*.head_out")


@pytest.fixture(scope="package")
def by_torch() -> TorchRunner:
    return small(n_embd=24, n_layer=LAYERS, n_head=HEADS)


@pytest.fixture(scope="package")
def by_onnx(by_torch, tmp_path_factory):
    path = tmp_path_factory.mktemp("facts") / "small.onnx"
    edits = ("blocks.*.z", "blocks.*.mlp_out", "blocks.0.resid_post", "blocks.1.q", "blocks.1.k")
    export_onnx(by_torch, path, taps=(*KNOWN_MODELS[0].taps, *TAPS, *edits), edits=edits)
    return open_onnx(path, device="cpu")


@pytest.fixture(params=["torch", "onnx"])
def runner(request):
    return request.getfixturevalue(f"by_{request.param}")
