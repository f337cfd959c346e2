"""What this model does on this machine: times, memory, and how far from the memory floor.

A decode step has to read every weight once, but for tables of which it looks up a row; the floor is
the bytes of those weights over the read bandwidth of the machine, measured in the same run on the
same number of threads.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from exporters.engine.runner import OnnxRunner
from exporters.file import mapped
from exporters.file.names import data_file
from gpt2kit.batch import KVCache
from gpt2kit.errors import InputError
from gpt2kit.runner import Runner

if TYPE_CHECKING:
    from gpt2kit.torch_engine.runner import TorchRunner

PREFILLS = (128, 512)
DECODE_FROM, DECODE_STEPS = 128, 64
_BUFFER = 1 << 30  # bytes, far more than the caches of a large machine hold
_SHARE = 256 << 20  # bytes that each thread reads at the least, so that starting it costs nothing

_LOOKED_UP = {"Gather": (0,), "GatherBlockQuantized": (0, 2, 3)}  # op -> inputs it takes rows of
_RESHAPES = ("Cast", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Bench:
    """Times are medians in milliseconds, sizes in bytes; None where it could not be measured.

    engine: what ran, and how.
    load_ms: from the name or path to the first logits.
    prefill_ms: number of tokens -> time until the last token's logits.
    decode_ms: one token more, with `decode_from` tokens and up to 64 more in the cache.
    weights: bytes of the unique weights that a decode step reads: not the positions, nor an
             embedding that the head does not share, of which it takes one row.
    all_weights: bytes of all unique weights. file: on disk.
    peak: resident memory of this process at its largest.
    bandwidth: bytes a second that `threads` threads read.
    """

    engine: str
    threads: int
    load_ms: float
    prefill_ms: dict[int, float]
    decode_ms: float
    decode_from: int
    weights: int
    all_weights: int
    file: int | None
    peak: int | None
    bandwidth: float | None

    @property
    def floor_ms(self) -> float | None:
        """The least that a decode step can take: weights / bandwidth."""
        return 1e3 * self.weights / self.bandwidth if self.bandwidth else None

    @property
    def over_floor(self) -> float | None:
        """`decode_ms` as a multiple of the floor."""
        return self.decode_ms / self.floor_ms if self.floor_ms else None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"floor_ms": self.floor_ms, "over_floor": self.over_floor}


def bench(open_runner: Callable[[], Runner], *, repeats: int = 5) -> Bench:
    """Measure in this process what `open_runner` opens.

    Raises InputError if it computes on more threads than the machine has cores.
    """
    start = time.perf_counter()
    runner = open_runner()
    threads = _threads(runner)
    check_threads(threads)
    runner.run([0], last_only=True)
    load_ms = 1e3 * (time.perf_counter() - start)
    context = runner.config.n_positions
    ids = np.random.default_rng(0).integers(0, runner.config.vocab_size, context)
    sizes = [n for n in PREFILLS if n <= context] or [context]
    prefill = {n: _prefill(runner, ids[:n], repeats) for n in sizes}
    decode_from = min(DECODE_FROM, context // 2)
    decode = _decode(runner, ids, decode_from)
    weights, whole, file, device = _sizes(runner)
    return Bench(
        engine=repr(runner),
        threads=threads,
        load_ms=load_ms,
        prefill_ms=prefill,
        decode_ms=decode,
        decode_from=decode_from,
        weights=weights,
        all_weights=whole,
        file=file,
        peak=peak_memory(),
        bandwidth=read_bandwidth(threads) if device == "cpu" else None,
    )


def _prefill(runner: Runner, ids: NDArray[np.int64], repeats: int) -> float:
    """Median milliseconds from a prompt to its last logits, with a cache to go on from."""
    times = []
    for _ in range(repeats + 1):
        cache = runner.new_cache(1)
        start = time.perf_counter()
        runner.run(ids, cache=cache, last_only=True, top_k=1)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def _decode(runner: Runner, ids: NDArray[np.int64], start_at: int) -> float:
    """Median milliseconds a token."""
    cache: KVCache | None = runner.new_cache(1)
    cache = runner.run(ids[:start_at], cache=cache, last_only=True).cache
    times = []
    for token in ids[start_at : start_at + DECODE_STEPS]:
        start = time.perf_counter()
        cache = runner.run([int(token)], cache=cache, last_only=True, top_k=1).cache
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _sizes(runner: Runner) -> tuple[int, int, int | None, str]:
    """Bytes of the weights that a step reads, of all, on disk; and "cpu" or another device."""
    if isinstance(runner, OnnxRunner):
        files = [runner.path, data_file(runner.path)]
        size = sum(file.stat().st_size for file in files if file.exists())
        return *_weights(runner.path), size, runner.device
    model = cast("TorchRunner", runner).model
    tables = {"wpe.weight"} if runner.config.tie_word_embeddings else {"wpe.weight", "wte.weight"}
    sizes = {name: x.numel() * x.element_size() for name, x in model.named_parameters()}
    read = sum(size for name, size in sizes.items() if name not in tables)
    return read, sum(sizes.values()), None, str(model.wte.weight.device.type)


def _weights(path: Path) -> tuple[int, int]:
    """Bytes that the graph reads whole, and of all that it reads, as the file holds them."""
    read = whole = 0
    for value in mapped.load(path).graph.initializers.values():
        if value.const_value is not None and value.uses():
            whole += value.const_value.nbytes
            read += value.const_value.nbytes if _read_whole(value) else 0
    return read, whole


def _read_whole(value: onnx_ir.Value) -> bool:
    """Whether anything but a look-up of rows reads a weight, itself or in another shape."""
    return any(
        _read_whole(node.outputs[0])
        if node.op_type in _RESHAPES
        else index not in _LOOKED_UP.get(node.op_type, ())
        for node, index in value.uses()
    )


def _threads(runner: Runner) -> int:
    if isinstance(runner, OnnxRunner):
        return runner.threads
    import torch

    return torch.get_num_threads()


def check_threads(threads: int) -> None:
    """Raises InputError unless each thread can have a core of its own."""
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise InputError(
            f"{threads} threads: there must be 1 to {cores}, the cores of this machine"
        )


def read_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read from memory; the best of several tries.

    Raises InputError if there are more threads than cores.
    """
    check_threads(threads)
    parts = np.array_split(np.ones(_BUFFER // 8), threads)
    times = max(1, threads * _SHARE // _BUFFER)

    def read(part: NDArray[np.float64]) -> None:
        for _ in range(times):
            part.max()

    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(7):
            start = time.perf_counter()
            list(pool.map(read, parts))
            best = min(best, time.perf_counter() - start)
    return times * _BUFFER / best


def peak_memory() -> int | None:
    """Bytes that this process had resident at its largest; None where the system does not tell."""
    try:  # unlike ru_maxrss, this does not start at the parent's size
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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
