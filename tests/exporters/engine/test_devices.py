"""Devices: what keeps onnxruntime from CUDA, and where the nodes of a session run."""

from types import SimpleNamespace

import onnxruntime as ort
import pytest

import exporters.engine.file_sessions
from exporters import open_onnx
from exporters.engine import devices, sessions
from gpt2kit.errors import EngineError, InputError
from tests.conftest import close, no_gpu


def test_an_unknown_device_is_refused(onnx_runner):
    with pytest.raises(EngineError, match="'tpu' is not one of auto, cpu, cuda"):
        open_onnx(onnx_runner.path, device="tpu")
    with pytest.raises(InputError, match=r"device = 5 must be text, got int"):
        open_onnx(onnx_runner.path, device=5)


@pytest.mark.skipif(not no_gpu(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_says_what_is_missing(onnx_runner):
    with pytest.raises(EngineError, match=r"device 'cuda' cannot be used: .*(driver|GPU|CPU-only)"):
        open_onnx(onnx_runner.path, device="cuda")
    assert open_onnx(onnx_runner.path, device="auto").device == "cpu"


@pytest.fixture
def healthy(monkeypatch):
    """A machine where onnxruntime can use CUDA."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [devices.CUDA, devices.CPU])
    monkeypatch.setattr(devices, "installed_wheels", lambda: {"onnxruntime-gpu": "1"})
    monkeypatch.setattr(devices, "_driver_problem", lambda: None)
    monkeypatch.setattr(devices, "_loads", lambda *_: True)
    return monkeypatch


def test_auto_takes_cuda_where_it_works(healthy):
    assert devices.cuda_problems() == []
    assert devices.choose("auto") == devices.choose("cuda") == "cuda"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("installed_wheels", lambda: {"onnxruntime": "1", "onnxruntime-gpu": "1"}),
            "overwrite each other's files; run `pip uninstall",
        ),
        (("_driver_problem", lambda: "no NVIDIA driver"), "no NVIDIA driver"),
        (("_loads", lambda name, _: "rand" not in name), r"not found: libcurand\.so\.10; install"),
    ],
)
def test_each_thing_that_cuda_lacks_is_named(healthy, change, message):
    healthy.setattr(devices, *change)
    with pytest.raises(EngineError, match=f"device 'cuda' cannot be used: .*{message}"):
        devices.choose("cuda")
    assert devices.choose("auto") == "cpu"


def test_cuda_is_taken_without_cudnn(healthy):
    """The CUDA provider of onnxruntime 1.28 and later does not link to cuDNN."""
    healthy.setattr(devices, "_loads", lambda name, _: "cudnn" not in name)
    assert devices.choose("auto") == devices.choose("cuda") == "cuda"


def test_the_cpu_only_wheel_is_named(healthy):
    healthy.setattr(ort, "get_available_providers", lambda: [devices.CPU])
    with pytest.raises(EngineError, match=r"CPU-only wheel; run .* `pip install onnxruntime-gpu`"):
        devices.choose("cuda")


@pytest.mark.parametrize("given", ["auto", "cuda"])
def test_a_file_that_cuda_cannot_run_goes_to_the_cpu_if_it_may(onnx_runner, healthy, given):
    """As with a fused file in float32: on CUDA, GroupQueryAttention has no float32 kernel."""
    tried, really = [], sessions.open_session

    def opening(file, device, threads, *, lean):
        tried.append(device)
        if device == "cuda":
            devices.check_placement(placed(GroupQueryAttention=devices.CPU))
        return really(file, device, threads, lean=lean)

    healthy.setattr(ort, "preload_dlls", lambda: None)
    healthy.setattr(exporters.engine.file_sessions, "open_session", opening)
    if given == "cuda":
        with pytest.raises(EngineError, match="fall back to the CPU: GroupQueryAttention"):
            open_onnx(onnx_runner.path, device="cuda")
        assert tried == ["cuda"]
        return
    runner = open_onnx(onnx_runner.path)
    assert tried == ["cuda", "cpu"]
    assert runner.device == "cpu"
    assert not runner.cuda_graphs
    close(runner.run([1, 2]).logits, onnx_runner.run([1, 2]).logits)


def placed(**nodes: str) -> SimpleNamespace:
    """A fake session: operator type -> the provider that its nodes run on."""
    parts = [
        SimpleNamespace(ep_name=ep, get_nodes=lambda kind=kind: [SimpleNamespace(op_type=kind)])
        for kind, ep in nodes.items()
    ]
    return SimpleNamespace(
        get_providers=lambda: [devices.CUDA, devices.CPU],
        get_provider_graph_assignment_info=lambda: parts,
    )


def test_nodes_on_the_cpu_are_refused_unless_they_only_count():
    devices.check_placement(placed(Gemm=devices.CUDA, Shape=devices.CPU, Range=devices.CPU))
    with pytest.raises(EngineError, match="fall back to the CPU: Gelu, Gemm; use --device cpu"):
        devices.check_placement(placed(Gemm=devices.CPU, Gelu=devices.CPU, Shape=devices.CPU))


def test_a_session_that_fell_back_is_refused():
    session = SimpleNamespace(get_providers=lambda: [devices.CPU])
    with pytest.raises(EngineError, match="fell back to the CPU; `gpt2kit doctor` says"):
        devices.check_placement(session)
