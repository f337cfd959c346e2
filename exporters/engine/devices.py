"""The devices that onnxruntime can use here, and the reasons why it cannot use a GPU."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import onnxruntime as ort

from gpt2kit.checks import check_text
from gpt2kit.errors import EngineError

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# Operators on shapes and positions, which onnxruntime runs on the CPU on purpose in a CUDA session.
_SHAPE_OPS = (
    "Shape Size Gather Concat Unsqueeze Squeeze Slice Range Cast Constant ConstantOfShape Reshape "
    "Add Sub Mul Div Equal Where Expand Identity LessOrEqual"
)


def installed_wheels() -> dict[str, str]:
    """Installed distribution of onnxruntime -> its version."""
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def wheel_problem() -> str | None:
    """Say that both wheels are installed, if they are: they overwrite each other's files."""
    if len(installed_wheels()) > 1:
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "run `pip uninstall -y onnxruntime onnxruntime-gpu`, then `pip install onnxruntime-gpu`"
        )
    return None


def cuda_problems() -> list[str]:
    """Each reason why onnxruntime cannot use CUDA here, with its remedy; [] if it can."""
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
    """Ask the NVIDIA driver itself for a GPU."""
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
    """Libraries that the CUDA provider links to, but the driver's, that do not load."""
    if sys.platform == "win32":
        return []
    major = _cuda_major()
    names = [f"lib{lib}.so.{major}" for lib in ("cudart", "cublasLt", "cublas")]
    return [name for name in (*names, "libcurand.so.10") if not _loads(name, _bundled())]


def cudnn_remark() -> str | None:
    """Say what may fail without cuDNN, if it is not installed.

    onnxruntime loads cuDNN only for operators of which it has no kernel of its own.
    """
    name = "libcudnn.so.9"
    if sys.platform == "win32" or _loads(name, _bundled()):
        return None
    return (
        f"{name} not found: onnxruntime runs on CUDA without, but refuses operators that need it "
        f"(some sums over an axis); install nvidia-cudnn-cu{_cuda_major()}, or a torch built for "
        "CUDA"
    )


def _bundled() -> list[Path]:
    """Folders in which NVIDIA's wheels put their libraries."""
    return [Path(entry) / "nvidia" for entry in sys.path]


def _loads(name: str, folders: Iterable[Path]) -> bool:
    """Whether a library loads, by its name or from one of these folders."""
    places = [str(file) for folder in folders for file in folder.glob(f"*/lib/{name}")]
    for place in [name, *places]:
        try:
            ctypes.CDLL(place)
        except OSError:
            continue
        return True
    return False


def choose(device: str) -> str:
    """The device to use, "cpu" or "cuda", for "auto", "cpu" or "cuda".

    Raises EngineError for another name, and for "cuda" if it cannot be used here.
    """
    check_text("device", device)
    if device not in ("auto", "cpu", "cuda"):
        raise EngineError(f"device {device!r} is not one of auto, cpu, cuda")
    if device == "cpu":
        return "cpu"
    problems = cuda_problems()
    if problems and device == "cuda":
        raise EngineError("device 'cuda' cannot be used: " + "; ".join(problems))
    return "cpu" if problems else "cuda"


def physical_cores() -> int:
    """Physical cores that this process may use; logical ones where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    try:
        return len({Path(topology.format(cpu)).read_text(encoding="ascii") for cpu in cpus})
    except OSError:
        return len(cpus)


def check_placement(session: ort.InferenceSession) -> None:
    """Raise EngineError if a CUDA session would compute anything but shapes on the CPU."""
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
