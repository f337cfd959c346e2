"""The findings of `gpt2kit doctor`: packages, engines, devices, and the models on this machine.

It must work on a broken installation, so whatever may be missing is imported inside a function.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from gpt2kit import shipped
from gpt2kit.errors import GPT2KitError

Level = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; "bad" means that something gpt2kit needs does not work."""

    level: Level
    text: str


def diagnose() -> Iterator[Finding]:
    """Every finding, the most basic first."""
    yield Finding("ok", f"Python {platform.python_version()} on {platform.platform(terse=True)}")
    yield from _torch()
    yield from _onnxruntime()
    for name in ("onnx", "onnxscript", "tokenizers", "safetensors", "huggingface_hub"):
        try:
            yield Finding("ok", f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            yield Finding("bad", f"{name} is not installed; run `pip install {name}`")
    yield from _models()


def _torch() -> Iterator[Finding]:
    """Whether torch imports, and whether it sees a GPU."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("bad", f"torch does not import ({error}); only exported files can be run")
        return
    version = torch.__version__
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        yield Finding("ok", f"torch {version} sees {name} (CUDA {torch.version.cuda})")
    elif torch.version.cuda:
        yield Finding("note", f"torch {version} is a CUDA build, but sees no GPU")
    else:
        yield Finding("note", f"torch {version} is a CPU build; it cannot use --device cuda")


def _onnxruntime() -> Iterator[Finding]:
    """Whether onnxruntime imports, and what keeps it from using CUDA."""
    try:
        import onnxruntime as ort

        from exporters.engine import devices
    except (ImportError, OSError) as error:
        yield Finding("bad", f"onnxruntime does not import ({error}); reinstall it")
        return
    wheels = ", ".join(f"{name} {version}" for name, version in devices.installed_wheels().items())
    yield Finding("ok", f"{wheels or 'onnxruntime ' + ort.__version__} runs on the CPU")
    conflict = devices.wheel_problem()
    problems = devices.cuda_problems()
    if not problems:
        yield Finding("ok", f"onnxruntime runs on CUDA {ort.cuda_version}")
        if remark := devices.cudnn_remark():
            yield Finding("note", remark)
    for problem in problems:
        if problem == conflict:  # breaks the CPU as well
            yield Finding("bad", problem)
        else:
            yield Finding("note", f"onnxruntime has no CUDA here: {problem}")


def _models() -> Iterator[Finding]:
    """Whether the bundled model is whole, and whether gpt2 was downloaded before."""
    try:
        from huggingface_hub import try_to_load_from_cache

        from gpt2kit.torch_engine import read
    except (ImportError, OSError):  # a finding above names the package
        return
    try:
        read.read_config(shipped.BUNDLED)
        yield Finding("ok", f"bundled model at {shipped.BUNDLED}")
    except GPT2KitError as error:
        yield Finding("bad", f"the bundled model is missing ({error}); reinstall gpt2kit")
    if isinstance(try_to_load_from_cache("gpt2", "model.safetensors"), str):
        yield Finding("ok", "gpt2 is in the cache")
    else:
        yield Finding(
            "note", "gpt2 is not in the cache; `gpt2kit lens --model gpt2 Hello` fetches it"
        )
