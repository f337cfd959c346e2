"""Memory: the bytes of a model's weights, the peak of this process, the read bandwidth.

A decode step reads every weight once, except the tables of which it looks up a row. Its memory
floor is the bytes of those weights divided by the read bandwidth.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from exporters.engine.runner import OnnxRunner
from exporters.file import mapped
from gpt2kit.errors import InputError
from gpt2kit.runner import Runner
from gpt2kit.torch_engine.require import as_torch

_BUFFER = 1 << 30  # bytes, far more than the caches of a large processor hold
_SHARE = 256 << 20  # bytes that each thread reads at least, so that starting it costs nothing
_TRIES = 7

_ROW_INPUTS = {"Gather": (0,), "GatherBlockQuantized": (0, 2, 3)}  # op -> inputs it reads rows of
_RESHAPES = ("Cast", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class ModelSizes:
    """Bytes of a model.

    weights: read by every decode step. all_weights: all of them, each counted once.
    file: on disk; None for a model on torch.
    """

    weights: int
    all_weights: int
    file: int | None


def model_sizes(runner: Runner) -> ModelSizes:
    """The sizes of a model on torch or onnxruntime. Raises InputError for another engine."""
    if isinstance(runner, OnnxRunner):
        return ModelSizes(*_file_weights(runner.path), runner.sessions.state.size)
    on_torch = as_torch(runner)
    if on_torch is None:
        raise InputError(f"bench measures models on torch and onnxruntime, not {runner!r}")
    tables = {"wpe.weight"} if runner.config.tie_word_embeddings else {"wpe.weight", "wte.weight"}
    named = on_torch.model.named_parameters()
    sizes = {name: weight.numel() * weight.element_size() for name, weight in named}
    read = sum(size for name, size in sizes.items() if name not in tables)
    return ModelSizes(read, sum(sizes.values()), None)


def _file_weights(path: Path) -> tuple[int, int]:
    """Bytes, as the file holds them, of the weights that the graph reads whole, and of all."""
    read = every = 0
    for value in mapped.load_model(path).graph.initializers.values():
        if value.is_graph_input():  # the default of an optional input
            continue
        if value.const_value is not None and value.uses():
            every += value.const_value.nbytes
            read += value.const_value.nbytes if _is_read_whole(value) else 0
    return read, every


def _is_read_whole(value: onnx_ir.Value) -> bool:
    """Whether a node other than a look-up of rows reads a weight, perhaps reshaped first."""
    return any(
        _is_read_whole(node.outputs[0])
        if node.op_type in _RESHAPES
        else index not in _ROW_INPUTS.get(node.op_type, ())
        for node, index in value.uses()
    )


def check_threads(threads: int) -> None:
    """Raise InputError unless each thread can have a core of its own."""
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise InputError(
            f"{threads} threads: there must be 1 to {cores}, the cores of this machine"
        )


def read_bandwidth(threads: int) -> float:
    """Bytes per second that `threads` threads read from memory; the best of several tries.

    Raises InputError if there are more threads than cores.
    """
    check_threads(threads)
    parts = np.array_split(np.ones(_BUFFER // 8), threads)
    passes = max(1, threads * _SHARE // _BUFFER)

    def read(part: NDArray[np.float64]) -> None:
        for _ in range(passes):
            part.max()

    with ThreadPoolExecutor(threads) as pool:
        seconds = min(_seconds(lambda: list(pool.map(read, parts))) for _ in range(_TRIES))
    return passes * _BUFFER / seconds


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_memory() -> int | None:
    """The most bytes that this process had resident; None if the system does not say."""
    try:  # ru_maxrss starts at the size of the parent process; this does not
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(
            1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")
        )
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
