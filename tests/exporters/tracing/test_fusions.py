"""The traced graph is simplified, and taps keep their values."""

from collections import Counter

import onnx
import pytest

from exporters import export_onnx, open_onnx
from tests.conftest import CONFIG, close, random_ids

LAYERS = CONFIG.n_layer


def ops(path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def attention(path) -> list[onnx.NodeProto]:
    return [n for n in onnx.load(path).graph.node if n.op_type == "GroupQueryAttention"]


@pytest.fixture(scope="module")
def plain(torch_runner, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "x.onnx"
    assert export_onnx(torch_runner, path, profile="fused").passed
    return path


def test_without_taps_no_split_and_few_reshapes_remain(plain):
    found = ops(plain)
    assert found["Reshape"] <= 5  # one of them a size, where a slice begins
    assert found["Split"] == 0
    assert found["FastGelu"] == LAYERS
    assert found["Gelu"] == 0
    assert found["SkipLayerNormalization"] == 0  # slower than its parts on the CPU
    assert all(list(node.input[1:3]) == ["", ""] for node in attention(plain))


@pytest.mark.parametrize(
    "tap", ["blocks.1.q", "blocks.1.v", "blocks.1.z", "blocks.1.mlp_pre", "blocks.1.resid_mid"]
)
def test_a_tap_adds_few_nodes(torch_runner, plain, tmp_path, tap):
    path = tmp_path / "x.onnx"
    assert export_onnx(torch_runner, path, profile="fused", taps=tap).passed
    ids = random_ids(1, 7)
    got = open_onnx(path, device="cpu").run(ids, taps=tap).taps[tap]
    close(got, torch_runner.run(ids, taps=tap).taps[tap])
    assert all(list(node.input[1:3]) == ["", ""] for node in attention(path))
    assert ops(path)["Gelu"] == ("mlp_pre" in tap)
    assert sum(ops(path).values()) <= sum(ops(plain).values()) + 8


# Inputs that the CUDA kernels read on the host.
ON_HOST = {
    "Expand": {1},
    "GroupQueryAttention": {6},
    "Range": {0, 1, 2},
    "Reshape": {1},
    "Slice": {1, 2, 3, 4},
    "Unsqueeze": {1},
}


@pytest.mark.parametrize("taps", [(), "*"], ids=["plain", "every tap and edit"])
def test_no_size_has_to_be_copied_to_a_gpu(file_of, taps):
    """A copy at each step costs time, and a step with one cannot be captured as a CUDA graph.

    onnxruntime keeps on the host what is computed from sizes alone, and what kernels read there.
    """
    model = onnx.load(file_of(profile="fused", taps=taps, edits=taps))
    constant = {weight.name for weight in model.graph.initializer} | {""}
    host: set[str] = set()
    for node in model.graph.node:
        sizes = {i for i, name in enumerate(node.input) if name in host}
        taken = ON_HOST.get(node.op_type, set())
        if node.op_type == "Shape":
            host.update(node.output)
        elif sizes - taken:
            assert not sizes & taken, node
            assert set(node.input) <= host | constant, node
            host.update(node.output)
    assert len(host) > 3


def test_for_cuda_sums_join_their_norms(torch_runner, tmp_path):
    taps = ["blocks.*.resid_*", "blocks.0.attn_out", "ln_f"]
    report = export_onnx(
        torch_runner, tmp_path / "x.onnx", profile="fused", dtype="float16", taps=taps
    )
    assert report.passed
    assert ops(tmp_path / "x.onnx")["SkipLayerNormalization"] == 2 * LAYERS + 1
    assert ops(tmp_path / "x.onnx")["LayerNormalization"] == 0


def test_the_portable_profile_has_standard_operators_only(torch_runner, tmp_path):
    export_onnx(torch_runner, tmp_path / "x.onnx")
    model = onnx.load(tmp_path / "x.onnx")
    assert {node.domain for node in model.graph.node} == {""}


@pytest.mark.parametrize("profile", ["portable", "fused"])
@pytest.mark.parametrize("taps", [(), "*"])
def test_every_constant_is_read(file_of, profile, taps):
    """Some runtimes warn of a constant that nothing reads."""
    graph = onnx.load(file_of(profile, taps=taps, edits=taps)).graph
    read = {name for node in graph.node for name in node.input}
    read |= {output.name for output in graph.output}
    assert [weight.name for weight in graph.initializer if weight.name not in read] == []
