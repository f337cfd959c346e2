"""The figures of docs/figures.md: load time, memory, export time, file size, start-up.

    .venv/bin/python benchmarks/figures.py [--only NAME]...

Everything runs on a random checkpoint of gpt2's shape (124M), in fresh processes, on the CPU. Times
are medians; memory is the peak resident set of the process, torch itself included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from checkpoint import WEIGHTS, make_checkpoint

# ru_maxrss starts at the size of the parent process; VmHWM does not.
_PEAK = """
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
"""
_LOAD = """
import json, time, torch
from gpt2kit.torch_engine.load import load
before = peak()
start = time.perf_counter()
load(FOLDER)
print(json.dumps([time.perf_counter() - start, peak() - before]))
"""
_LENS = """
import json, time
import gpt2kit
from probes import logit_lens
runner = gpt2kit.load(FOLDER, device="cpu")
text = runner.tokenizer.decode([262] * 1024)
assert len(runner.tokenizer.encode(text)) == 1024
start = time.perf_counter()
logit_lens(runner, text)
print(json.dumps([time.perf_counter() - start, peak()]))
"""
_EXPORT = """
import json, time
start = time.perf_counter()
import gpt2kit
from exporters import export_onnx
export_onnx(gpt2kit.load(FOLDER, device="cpu"), OUT)
print(json.dumps([time.perf_counter() - start]))
"""
_DECODE = """
import json, time, statistics
import numpy as np
from exporters import export_onnx, open_onnx
import gpt2kit
torch_runner = gpt2kit.load(FOLDER, device="cpu")
runners = {}
for opset in (20, 23):
    path = OUT.replace("out.onnx", f"opset{opset}.onnx")
    export_onnx(torch_runner, path, opset=opset)
    runners[opset] = open_onnx(path, device="cpu")
ids = np.random.default_rng(0).integers(0, 50257, (1, 1024))
out = {}
for name, past, new, times in (("decode at 128", 128, 1, 30), ("decode at 1000", 1000, 1, 15),
                               ("prefill 512", 0, 512, 5)):
    taken = {opset: [] for opset in runners}
    caches = {}
    for opset, runner in runners.items():
        cache = runner.new_cache(1)
        caches[opset] = runner.run(ids[:, :past], cache=cache).cache if past else cache
    for _ in range(times):
        for opset, runner in runners.items():
            cache = caches[opset].copy()
            start = time.perf_counter()
            runner.run(ids[:, past : past + new], cache=cache)
            taken[opset].append(time.perf_counter() - start)
    out[name] = {opset: 1e3 * statistics.median(t) for opset, t in taken.items()}
print(json.dumps(out))
"""


def python(code: str, folder: Path) -> list[float]:
    """Run a snippet in a new process; the last line that it prints is JSON."""
    out = folder / "out" / "out.onnx"
    out.parent.mkdir(exist_ok=True)
    code = _PEAK + code.replace("FOLDER", repr(str(folder))).replace("OUT", repr(str(out)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    result: list[float] = json.loads(done.stdout.splitlines()[-1])
    return result


def start_up() -> str:
    """Time of `gpt2kit --help`, beside Python with an empty program."""
    times: dict[str, list[float]] = {"help": [], "python": []}
    commands = {
        "help": [str(Path(sys.executable).parent / "gpt2kit"), "--help"],
        "python": [sys.executable, "-c", "pass"],
    }
    for _ in range(15):
        for name, command in commands.items():
            start = os.times().elapsed
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            times[name].append(os.times().elapsed - start)
    med = {name: statistics.median(t) for name, t in times.items()}
    return f"gpt2kit --help: {med['help']:.2f} s (an empty Python: {med['python']:.2f} s)"


def loading(folder: Path) -> str:
    """Time and memory of `load`, with the file in the page cache and torch imported."""
    runs = [python(_LOAD, folder) for _ in range(6)][1:]
    seconds, memory = (statistics.median(column) for column in zip(*runs, strict=True))
    return f"load 124M: {seconds:.2f} s, peak memory {memory / WEIGHTS:.2f} x the weights"


def lens(folder: Path) -> str:
    """Time and memory of a logit lens over all layers of 1024 positions."""
    seconds, peak = python(_LENS, folder)
    over = (peak - WEIGHTS) / 1e9
    return f"logit lens, 1024 positions: {seconds:.1f} s, peak {over:.2f} GB over the weights"


def export(folder: Path) -> str:
    """Time of an export with its comparison against torch, imports included."""
    seconds = statistics.median(python(_EXPORT, folder)[0] for _ in range(3))
    size = (folder / "out" / "out.onnx").stat().st_size
    return f"export 124M with its gate: {seconds:.0f} s; file {size / WEIGHTS:.4f} x the weights"


def opsets(folder: Path) -> str:
    """Decode and prefill with opset 23 (one Attention node) and 20 (its parts), in turn."""
    table = python(_DECODE, folder)
    rows = [
        f"{name}: opset 20 {v['20']:.1f} ms, opset 23 {v['23']:.1f} ms, {v['20'] / v['23']:.2f}x"
        for name, v in table.items()  # type: ignore[attr-defined]
    ]
    return "\n".join(rows)


FIGURES: dict[str, Callable[[Path], str]] = {
    "start_up": lambda _: start_up(),
    **{f.__name__: f for f in (loading, lens, export, opsets)},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=FIGURES, help="measure only this one")
    chosen = parser.parse_args().only or list(FIGURES)
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder))
        for name in chosen:
            print(FIGURES[name](Path(folder)), flush=True)


if __name__ == "__main__":
    main()
