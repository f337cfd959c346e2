"""bfloat16 runs on CUDA only: tests of the graph on a CPU, and of results on a GPU."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto

from exporters import export_onnx, open_onnx
from exporters.engine.ort_values import zeros
from exporters.tracing.plan import Plan
from exporters.tracing.trace import trace
from gpt2kit.errors import ExportError
from gpt2kit.torch_engine.dtypes import on_cpu
from tests.conftest import random_ids


@pytest.mark.parametrize("profile", ["portable", "fused"])
def test_weights_and_cache_are_bfloat16_and_the_rest_is_readable(torch_runner, profile):
    taps = ("blocks.1.resid_post", "ln_f_scale")
    model = on_cpu(torch_runner.model, torch.bfloat16)
    plan = Plan(taps, profile=profile, dtype="bfloat16")
    graph = trace(model, plan).model_proto.graph
    kinds = {x.name: x.type.tensor_type.elem_type for x in [*graph.input, *graph.output]}
    for name, kind in kinds.items():
        cached = name.startswith(("present", "past_key_values"))
        want = TensorProto.BFLOAT16 if cached else TensorProto.FLOAT
        assert kind == (TensorProto.INT64 if name.endswith(("ids", "mask", "positions")) else want)
    weights = [x for x in graph.initializer if len(x.dims) == 2 and x.name not in kinds]
    assert {x.data_type for x in weights} == {TensorProto.BFLOAT16}


def test_bfloat16_values_are_read_as_float32(onnx_runner):
    bits = np.array([0x3F80, 0xC000, 0x4049, 0], np.uint16).reshape(1, 1, 2, 2)
    value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)
    assert onnx_runner.read(value).ravel().tolist() == [1, -2, 3.140625, 0]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_caches_start_empty_and_are_copied_as_they_are(onnx_runner, kind):
    one, two = zeros((1, 2, 3, 4), kind, "cpu"), zeros((1, 2, 3, 4), kind, "cpu")
    assert one.shape() == [1, 2, 3, 4]
    assert not onnx_runner.read(one).any()
    size = np.float32 if kind == TensorProto.FLOAT else np.uint16
    ones = np.full((1, 2, 3, 4), {1: 1.0, 10: 0x3C00, 16: 0x3F80}[kind], size)
    two.update_inplace(ort.OrtValue.ortvalue_from_numpy_with_onnx_type(ones, kind))
    one.update_inplace(two)
    assert (onnx_runner.read(one) == 1).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to check it on")
def test_without_a_gpu_it_is_not_written_unchecked(torch_runner, tmp_path):
    with pytest.raises(ExportError, match=r"bfloat16 runs on CUDA alone .* export float16, or"):
        export_onnx(torch_runner, tmp_path / "x.onnx", dtype="bfloat16")
    assert not list(tmp_path.iterdir())


@pytest.mark.cuda
@pytest.mark.parametrize("profile", ["portable", "fused"])
def test_it_passes_its_gate_on_cuda(torch_runner, tmp_path, profile):
    path = tmp_path / "x.onnx"
    report = export_onnx(torch_runner, path, profile=profile, dtype="bfloat16", taps="*.resid_*")
    assert report.passed
    runner = open_onnx(path, device="cuda")
    cache = runner.new_cache(1)
    run = runner.run(random_ids(1, 5), cache=cache, taps="blocks.0.resid_post")
    assert run.taps["blocks.0.resid_post"].dtype == np.float32
    assert runner.run([[3]], cache=run.cache, top_k=3).top_ids.shape == (1, 1, 3)
