"""`gpt2kit bench`: load time, prefill, decode and memory of one model on this machine.

The memory floor of a decode step is measured in the same run, on the same number of threads (see
`exporters.engine.memory`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.engine.memory import check_threads, model_sizes, peak_memory, read_bandwidth
from exporters.engine.runner import OnnxRunner
from gpt2kit.batch import KVCache
from gpt2kit.errors import InputError
from gpt2kit.finite import require_finite_run
from gpt2kit.readout import Ints
from gpt2kit.result import ModelResult, Row, model_header
from gpt2kit.runner import Runner
from gpt2kit.torch_engine.require import as_torch

if TYPE_CHECKING:
    from rich.console import RenderableType

PREFILLS = (128, 512)
DECODE_FROM, DECODE_STEPS = 128, 64


@dataclass(frozen=True, eq=False)
class Bench(ModelResult):
    """Times are medians in milliseconds, sizes in bytes; None where a figure cannot be measured.

    engine: the engine in one line.
    load_ms: from the name or path to the first logits.
    prefill_ms: number of tokens -> time until the logits of the last token.
    decode_ms: one more token, with `decode_from` to `decode_from` + 64 tokens in the cache.
    weights: bytes of the weights that a decode step reads. It takes one row of the position table,
        and of an embedding that is not shared with the unembedding; these tables do not count.
    all_weights: bytes of all weights, each counted once.
    file: bytes on disk.
    peak: the most memory that this process had resident.
    bandwidth: bytes per second that `threads` threads read.
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
        """The shortest time that a decode step can take: weights / bandwidth."""
        return 1e3 * self.weights / self.bandwidth if self.bandwidth else None

    @property
    def over_floor(self) -> float | None:
        """`decode_ms` as a multiple of the floor."""
        return self.decode_ms / self.floor_ms if self.floor_ms else None

    def to_dict(self) -> dict[str, Any]:
        """See `Result.to_dict`; the two derived figures are added."""
        return super().to_dict() | {"floor_ms": self.floor_ms, "over_floor": self.over_floor}

    def table(self) -> list[Row]:
        """One row per figure, with its unit; a value of None could not be measured."""
        prefill = [(f"prefill {n}", ms, "ms") for n, ms in self.prefill_ms.items()]
        figures: list[tuple[str, float | None, str]] = [
            ("threads", self.threads, ""),
            ("load", self.load_ms, "ms"),
            *prefill,
            ("decode", self.decode_ms, "ms"),
            ("decode from", self.decode_from, "tokens"),
            ("memory floor", self.floor_ms, "ms"),
            ("decode / floor", self.over_floor, ""),
            ("weights per step", self.weights, "bytes"),
            ("all weights", self.all_weights, "bytes"),
            ("file", self.file, "bytes"),
            ("peak memory", self.peak, "bytes"),
            ("read bandwidth", self.bandwidth, "bytes/s"),
        ]
        return [{"figure": name, "value": value, "unit": unit} for name, value, unit in figures]

    def render(self) -> RenderableType:
        """One line per figure."""
        from exporters.engine import bench_view as view

        rows = [("load", f"{self.load_ms:,.0f} ms", "to the first logits")]
        for tokens, ms in self.prefill_ms.items():
            speed = f"{1e3 * tokens / ms:,.0f} tokens a second"
            rows.append((f"prefill {tokens}", f"{ms:,.1f} ms", speed))
        speed = f"{1e3 / self.decode_ms:,.0f} tokens a second, from {self.decode_from} tokens on"
        rows.append(("decode", f"{self.decode_ms:,.2f} ms", speed))
        if self.floor_ms and self.over_floor and self.bandwidth:
            weights = f"{view.megabytes(self.weights)} of weights a step"
            reading = f"{weights} at {self.bandwidth / 1e9:,.1f} GB/s"
            rows.append(("memory floor", f"{self.floor_ms:,.2f} ms", reading))
            rows.append(("decode / floor", f"{self.over_floor:,.2f}", ""))
        if self.file:
            rows.append(("file", view.megabytes(self.file), ""))
        if self.peak:
            ratio = f"{self.peak / self.all_weights:.2f} times all weights"
            rows.append(("peak memory", view.megabytes(self.peak), ratio))
        return view.draw_figures(self.engine, rows, f"medians, {self.threads} threads")

    def __repr__(self) -> str:
        return f"Bench({self.engine}: decode {self.decode_ms:.2f} ms on {self.threads} threads)"


def bench(open_runner: Callable[[], Runner], *, repeats: int = 5) -> Bench:
    """Measure, in this process, the model that `open_runner` opens.

    repeats: how often each prefill is timed. Raises InputError if the model runs on more threads
    than the machine has cores, or on an engine other than torch and onnxruntime, and NonFiniteError
    if its logits are not finite.
    """
    start = time.perf_counter()
    runner = open_runner()
    threads = _threads(runner)
    check_threads(threads)
    runner.run([0], last_only=True)
    load_ms = 1e3 * (time.perf_counter() - start)
    sizes, context = model_sizes(runner), runner.config.n_positions
    if context < 2:
        raise InputError("bench measures a token after another; a context of 1 holds no second one")
    ids = np.random.default_rng(0).integers(0, runner.config.vocab_size, context)
    lengths = [n for n in PREFILLS if n <= context] or [context]
    decode_from = min(DECODE_FROM, context // 2)
    return Bench(
        engine=repr(runner),
        threads=threads,
        load_ms=load_ms,
        prefill_ms={n: _prefill_ms(runner, ids[:n], repeats) for n in lengths},
        decode_ms=_decode_ms(runner, ids, decode_from),
        decode_from=decode_from,
        weights=sizes.weights,
        all_weights=sizes.all_weights,
        file=sizes.file,
        peak=peak_memory(),
        bandwidth=read_bandwidth(threads) if _is_on_cpu(runner) else None,
        **model_header(runner),
    )


def _prefill_ms(runner: Runner, ids: Ints, repeats: int) -> float:
    """Median time from a prompt to its last logits, with a cache to continue from."""
    times = []
    for _ in range(repeats + 1):  # the first warms up
        cache = runner.new_cache(1)
        start = time.perf_counter()
        runner.run(ids, cache=cache, last_only=True, top_k=1)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def _decode_ms(runner: Runner, ids: Ints, start_at: int) -> float:
    """Median time of one token."""
    cache: KVCache | None = runner.new_cache(1)
    run = runner.run(ids[:start_at], cache=cache, last_only=True)
    cache = require_finite_run(runner, run, ids[:start_at]).cache
    times = []
    for token in ids[start_at : start_at + DECODE_STEPS]:
        start = time.perf_counter()
        cache = runner.run([int(token)], cache=cache, last_only=True, top_k=1).cache
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _threads(runner: Runner) -> int:
    """Threads that one operator runs on."""
    if isinstance(runner, OnnxRunner):
        return runner.threads
    import torch

    return torch.get_num_threads()


def _is_on_cpu(runner: Runner) -> bool:
    """Whether the weights are in the machine's own memory, whose bandwidth can be measured."""
    if isinstance(runner, OnnxRunner):
        return runner.device == "cpu"
    on_torch = as_torch(runner)
    return on_torch is not None and on_torch.device.type == "cpu"
