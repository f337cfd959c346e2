"""Weights mapped from the file instead of read: the same model, and the same errors."""

import os
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from exporters import export_onnx, open_onnx
from exporters.engine.sessions import costly
from exporters.file import mapped, wire
from exporters.file.wire import without_weights
from gpt2kit.errors import EngineError
from tests.conftest import random_ids


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(wire, "LARGE", 64)


def test_the_graph_is_the_same_but_for_where_weights_lie(fused_runner):
    whole, graph = onnx.load(fused_runner.path), onnx.load_from_string(
        without_weights(fused_runner.path)
    )  # fmt: skip
    data = fused_runner.path.read_bytes()
    moved = 0
    for want, got in zip(whole.graph.initializer, graph.graph.initializer, strict=True):
        place = {entry.key: entry.value for entry in got.external_data}
        if place:
            moved += 1
            start = int(place["offset"])
            assert place["location"] == fused_runner.path.name
            assert data[start : start + int(place["length"])] == want.raw_data
            assert not got.raw_data
            del got.external_data[:]
            got.ClearField("data_location")
            got.raw_data = want.raw_data
        assert got == want
    assert moved > 20
    assert graph == whole


def test_results_are_the_same(fused_runner):
    ids = random_ids(2, 6)
    want = fused_runner.run(ids)  # opened with weights this small in the graph
    got = open_onnx(fused_runner.path, device="cpu").run(ids)
    assert (got.logits == want.logits).all()


def test_nodes_that_serve_a_dropped_output_alone_are_dropped(torch_runner, tmp_path):
    path = tmp_path / "x.onnx"
    export_onnx(torch_runner, path, profile="fused", taps=["*.pattern", "*.head_out", "*.resid_*"])
    lean = onnx.load_from_string(mapped.without_outputs(path, None, costly))
    operators = {node.op_type for node in lean.graph.node}
    assert "GroupQueryAttention" in operators
    assert not operators & {"Softmax", "Einsum"}
    assert {"Softmax", "Einsum"} <= {node.op_type for node in onnx.load(path).graph.node}
    assert mapped.without_outputs(path, lean.SerializeToString(), costly) is None


def test_a_path_from_another_folder(file_of, tmp_path, monkeypatch):
    folder = tmp_path / "with a space"
    folder.mkdir()
    shutil.copy(file_of(), folder / "ä.onnx")
    monkeypatch.chdir(tmp_path)
    runner = open_onnx("with a space/ä.onnx", device="cpu")
    assert runner.readout(np.zeros((1, 24), np.float32)).top_ids.shape == (1, 5)


def test_external_weights_stay_where_they_are(torch_runner, tmp_path):
    export_onnx(torch_runner, tmp_path / "x.onnx", external_data=True)
    assert open_onnx(tmp_path / "x.onnx", device="cpu").run([[1, 2]]).logits.shape == (1, 2, 261)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_an_engine_error(fused_runner, tmp_path, share):
    data = fused_runner.path.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(EngineError, match=r"cut\.onnx"):
        open_onnx(path, device="cpu")


@pytest.mark.parametrize("content", [b"", b"text, not a model", b"\xff" * 40, os.urandom(999)])
def test_a_file_that_is_not_protobuf_is_left_to_onnxruntime(tmp_path, content):
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    assert without_weights(path) is None
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever onnxruntime says
        mapped.session(path, ort.SessionOptions(), providers=["CPUExecutionProvider"])
