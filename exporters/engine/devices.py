"""What onnxruntime can run on here, and why not on a GPU."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import onnxruntime as ort

from gpt2kit.errors import EngineError

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# Ops that onnxruntime puts on the CPU on purpose, for shapes and positions, beside a CUDA graph.
_SHAPE_OPS = (
    "Shape Size Gather Concat Unsqueeze Squeeze Slice Range Cast Constant ConstantOfShape Reshape "
    "Add Sub Mul Div Equal Where Expand Identity LessOrEqual"
)


def installed_wheels() -> dict[str, str]:
    """Which distributions of onnxruntime are installed -> their version."""
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def wheel_problem() -> str | None:
    """The two wheels hold the same files, so that one overwrites the other."""
    if len(installed_wheels()) > 1:
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "run `pip uninstall -y onnxruntime onnxruntime-gpu`, then `pip install onnxruntime-gpu`"
        )
    return None


def cuda_problems() -> list[str]:
    """Everything that keeps onnxruntime from CUDA here, each with its remedy; [] if nothing."""
    found = [problem] if (problem := wheel_problem()) else []
    if CUDA not in ort.get_available_providers():
        found.append(
            f"onnxruntime {ort.__version__} is the CPU-only wheel; run `pip uninstall -y "
            "onnxruntime`, then `pip install onnxruntime-gpu`"
        )
        return found
    if problem := _driver_problem():
        return [*found, problem]
    missing = _missing_libraries()
    if missing:
        found.append(
            f"CUDA {ort.cuda_version} libraries not found: {', '.join(missing)}; install a torch "
            f"built for CUDA {_cuda_major()}, whose wheels bring them, or the CUDA toolkit"
        )
    return found


def _driver_problem() -> str | None:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"no NVIDIA driver ({name} not found); install one, or use --device cpu"
    count = ctypes.c_int(0)
    if (
        driver.cuInit(0) != 0
        or driver.cuDeviceGetCount(ctypes.byref(count)) != 0
        or not count.value
    ):
        return "the NVIDIA driver finds no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    return None


def _cuda_major() -> int:
    return int(str(ort.cuda_version or "0").split(".")[0])


def _missing_libraries() -> list[str]:
    """The libraries that the CUDA provider links to, beside the driver's, and that do not load."""
    if sys.platform == "win32":
        return []
    major = _cuda_major()
    names = [f"lib{lib}.so.{major}" for lib in ("cudart", "cublasLt", "cublas")]
    return [name for name in (*names, "libcurand.so.10") if not _loads(name, _bundled())]


def cudnn_remark() -> str | None:
    """What may fail without cudnn, if it is not here: onnxruntime loads it when an operator asks
    for it, and goes without where it has a kernel of its own."""
    name = "libcudnn.so.9"
    if sys.platform == "win32" or _loads(name, _bundled()):
        return None
    return (
        f"{name} not found: onnxruntime runs on CUDA without, but refuses operators that need it "
        f"(some sums over an axis); install nvidia-cudnn-cu{_cuda_major()}, or a torch built for "
        "CUDA"
    )


def _bundled() -> list[Path]:
    """Where NVIDIA's wheels put their libraries."""
    return [Path(entry) / "nvidia" for entry in sys.path]


def _loads(name: str, folders: Iterable[Path]) -> bool:
    places = [str(file) for folder in folders for file in folder.glob(f"*/lib/{name}")]
    for place in [name, *places]:
        try:
            ctypes.CDLL(place)
        except OSError:
            continue
        return True
    return False


def choose(device: str) -> str:
    """ "auto", "cpu" or "cuda" -> "cpu" or "cuda". Raises EngineError where there is no CUDA."""
    if device not in ("auto", "cpu", "cuda"):
        raise EngineError(f"device {device!r} is not one of auto, cpu, cuda")
    if device == "cpu":
        return "cpu"
    problems = cuda_problems()
    if problems and device == "cuda":
        raise EngineError("device 'cuda' cannot be used: " + "; ".join(problems))
    return "cpu" if problems else "cuda"


def physical_cores() -> int:
    """Cores that this process may use, hyper-threads counted once where the system tells."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    try:
        return len({Path(topology.format(cpu)).read_text(encoding="ascii") for cpu in cpus})
    except OSError:
        return len(cpus)


def check_placement(session: ort.InferenceSession) -> None:
    """Raise EngineError if a CUDA session would compute on the CPU."""
    if CUDA not in session.get_providers():
        raise EngineError(
            "onnxruntime fell back to the CPU; `gpt2kit doctor` says what CUDA lacks here"
        )
    stray = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != CUDA
        for node in part.get_nodes()
    } - set(_SHAPE_OPS.split())
    if stray:
        raise EngineError(
            f"nodes that CUDA does not run would fall back to the CPU: {', '.join(sorted(stray))}; "
            "use --device cpu, or export with another --dtype, --profile or --opset"
        )
