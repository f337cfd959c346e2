"""gpt2kit beside its peers, on one random gpt2 (124M): who is how much faster, and how surely.

    .venv/bin/python benchmarks/compare.py                       # all of it, into RESULTS.md
    .venv/bin/python benchmarks/compare.py --only "fp32 decode"  # some lines, on the screen

Sets up each peer in an environment of its own under --work, makes every engine's file from the same
checkpoint, and keeps one process an engine. They take turns, one at work at a time, A B C A B C;
what is printed is the median over the rounds of their ratio within a round, and its range.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint import WEIGHTS, make_checkpoint

import gpt2kit
from exporters import export_onnx
from exporters.engine.memory import read_bandwidth
from gpt2kit.linear import linear
from gpt2kit.logits import log_softmax
from gpt2kit.torch_engine.load import load

HERE = Path(__file__).resolve().parent
WORKER = HERE / "worker.py"
TORCH = "torch==2.13.0"
PEERS = {  # environment -> what pip installs
    "transformers": [TORCH, "transformers==5.23.0"],
    "transformer_lens": [TORCH, "transformer-lens==4.3.0"],
    "optimum": [TORCH, "optimum-onnx[onnxruntime]==0.1.0"],
    "ctranslate2": [TORCH, "ctranslate2==4.8.5", "transformers==5.23.0"],
    "llama.cpp": ["llama-cpp-python==0.3.36", "gguf==0.19.0", "safetensors"],
}


@dataclass(frozen=True)
class Side:
    """An engine with a file to run: worker's name, environment, path under --work."""

    engine: str
    env: str
    path: str


OURS, LLAMA, CT2 = "gpt2kit", "llama.cpp", "ctranslate2"
SIDES = {
    "gpt2kit fp32": Side(OURS, OURS, "fp32/model.onnx"),
    "gpt2kit fp32, hooked": Side(OURS, OURS, "hooked/model.onnx"),
    "gpt2kit fp32, every tap": Side(OURS, OURS, "tapped/model.onnx"),
    "gpt2kit int8": Side(OURS, OURS, "int8/model.onnx"),
    "gpt2kit int4": Side(OURS, OURS, "int4/model.onnx"),
    "gpt2kit int4-all": Side(OURS, OURS, "int4-all/model.onnx"),
    "gpt2kit torch": Side("gpt2kit-torch", OURS, "checkpoint"),
    "transformers": Side("transformers", "transformers", "checkpoint"),
    "TransformerLens": Side("transformer_lens", "transformer_lens", "checkpoint"),
    "optimum-onnx": Side("optimum", "optimum", "optimum/model.onnx"),
    "CTranslate2 fp32": Side("ctranslate2", CT2, "ctranslate2/model.bin"),
    "CTranslate2 int8": Side("ctranslate2-int8", CT2, "ctranslate2-int8/model.bin"),
    "llama.cpp f32": Side(LLAMA, LLAMA, "llama.cpp/f32.gguf"),
    "llama.cpp q8_0": Side(LLAMA, LLAMA, "llama.cpp/q8_0.gguf"),
    "llama.cpp q4_0": Side(LLAMA, LLAMA, "llama.cpp/q4_0.gguf"),
}

CARRIED = {"hooked": ("*.resid_*", "*.resid_*"), "tapped": ("*", ())}  # folder -> taps, edits


@dataclass(frozen=True)
class Line:
    """One comparison: what is asked of both sides, and how many times as fast ours is to be."""

    name: str
    ours: str
    peers: dict[str, float | None]
    request: dict[str, Any]
    tokens: int
    batch: int = 1


def decode(steps: int = 48) -> dict[str, Any]:
    """A request for the time of a step."""
    return {"do": "decode", "steps": steps}


LINES = [
    Line(
        "fp32 decode, context 128 to 176", "gpt2kit fp32",
        {"transformers": 2.2, "optimum-onnx": 1.25, "llama.cpp f32": 1.0, "CTranslate2 fp32": None},
        decode(), 128,
    ),
    Line(
        "int8 decode, context 128 to 176", "gpt2kit int8",
        {"CTranslate2 int8": 2.2, "llama.cpp q8_0": 1.15}, decode(), 128,
    ),
    Line(
        "int4 decode, context 128 to 176", "gpt2kit int4", {"llama.cpp q4_0": 1.15}, decode(), 128
    ),
    Line(
        "the same, the head in 4 bits too", "gpt2kit int4-all", {"llama.cpp q4_0": 1.15}, decode(),
        128,
    ),
    Line(
        "fp32 prefill 128", "gpt2kit fp32",
        {"transformers": None, "optimum-onnx": None, "llama.cpp f32": None,
         "CTranslate2 fp32": None},
        {"do": "prefill"}, 128,
    ),
    Line(
        "fp32 prefill 512", "gpt2kit fp32",
        {"transformers": 2.3, "optimum-onnx": 1.4, "llama.cpp f32": None, "CTranslate2 fp32": None},
        {"do": "prefill"}, 512,
    ),
    Line("fp32 decode, batch of 8", "gpt2kit fp32", {"transformers": 2.0}, decode(24), 128, 8),
    Line(
        "torch forward, 128 tokens", "gpt2kit torch", {"transformers": 1.0},
        {"do": "forward", "taps": False}, 128,
    ),
    Line(
        "torch forward with residual taps, 128 tokens", "gpt2kit torch",
        {"transformers": 0.95, "TransformerLens": None}, {"do": "forward", "taps": True}, 128,
    ),
    Line("torch decode, context 128", "gpt2kit torch", {"transformers": 1.1}, decode(24), 128),
    Line(
        "logit lens, all layers, 128 positions (torch)", "gpt2kit torch", {"TransformerLens": 2.0},
        {"do": "lens"}, 128,
    ),
    Line(
        "logit lens, all layers, 128 positions (ONNX)", "gpt2kit fp32, hooked",
        {"gpt2kit torch": None, "TransformerLens": None}, {"do": "lens"}, 128,
    ),
    Line(
        "all residual taps of 512 tokens", "gpt2kit fp32, hooked", {"TransformerLens": 2.5},
        {"do": "forward", "taps": True}, 512,
    ),
]  # fmt: skip


class Bench:
    """The files, the environments, and the processes that are up."""

    def __init__(self, work: Path, threads: int, rounds: int, stack: ExitStack) -> None:
        self.work, self.threads, self.rounds, self.stack = work, threads, rounds, stack
        self.up: dict[str, subprocess.Popen[str]] = {}
        work.mkdir(parents=True, exist_ok=True)

    def python(self, env: str) -> str:
        """The interpreter of an environment, made on first use."""
        if env == OURS:
            return sys.executable
        folder = self.work / "venv" / env
        done = folder / ".installed"
        if not done.exists():
            print(f"installing {env} …", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            subprocess.run([folder / "bin/pip", "install", "-q", *PEERS[env]], check=True)
            done.touch()
        return str(folder / "bin/python")

    def path(self, side: Side) -> Path:
        """What the engine runs, made on first use from the checkpoint."""
        checkpoint, path = self.work / "checkpoint", self.work / side.path
        if not (checkpoint / "model.safetensors").exists():
            checkpoint.mkdir()
            make_checkpoint(checkpoint)
        if not path.exists():
            print(f"converting for {side.path} …", file=sys.stderr)
            folder = self.work / side.path.split("/")[0]
            folder.mkdir(exist_ok=True)
            if side.env == OURS:
                kind = folder.name if folder.name.startswith("int") else None
                taps, edits = CARRIED.get(folder.name, ((), ()))
                export_onnx(
                    load(checkpoint, device="cpu"), path, profile="fused", quantize=kind,
                    taps=taps, edits=edits,
                )  # fmt: skip
            else:
                convert = [self.python(side.env), str(WORKER), "convert", side.engine]
                subprocess.run([*convert, str(checkpoint), str(folder)], check=True)
        return path

    def start(self, name: str) -> subprocess.Popen[str]:
        """A process of this engine, loaded."""
        side = SIDES[name]
        command = [self.python(side.env), str(WORKER), side.engine, str(self.path(side))]
        process = subprocess.Popen(
            [*command, str(self.threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OPENBLAS_NUM_THREADS": str(self.threads)},
            stderr=(self.work / "stderr.txt").open("a"),
        )  # fmt: skip
        self.stack.callback(process.kill)
        return process

    def ask(self, name: str, request: dict[str, Any], ids: list[list[int]]) -> Any:
        """Let an engine do something; the others wait."""
        if name not in self.up:
            self.up[name] = self.start(name)
            reply(self.up[name])  # how long loading took
        return request_of(self.up[name], request | {"ids": ids})

    def compare(self, line: Line) -> list[str]:
        """One row of the table for each peer."""
        names = [line.ours, *line.peers]
        ids = prompt(line.tokens, line.batch)
        for name in names:
            self.ask(name, dict(line.request), ids)  # warm
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(self.rounds):
            for name in names:
                times[name].append(self.ask(name, dict(line.request), ids))
        return [
            row(line.name, line.ours, times[line.ours], peer, times[peer], wanted)
            for peer, wanted in line.peers.items()
        ]


def reply(process: subprocess.Popen[str]) -> Any:
    """The next line that a worker prints."""
    assert process.stdout
    text = process.stdout.readline()
    if not text:
        raise SystemExit("an engine ended; what it said is in stderr.txt")
    return json.loads(text)


def request_of(process: subprocess.Popen[str], request: dict[str, Any]) -> Any:
    """Send a request and wait for its answer."""
    assert process.stdin
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    return reply(process)


def prompt(tokens: int, batch: int = 1) -> list[list[int]]:
    """Random ids (batch, tokens)."""
    drawn: list[list[int]] = np.random.default_rng(0).integers(0, 4095, (batch, tokens)).tolist()
    return drawn


# Multiply-adds of a lens: 13 rows of 128 positions through the unembedding, and the layers below.
LENS_PRODUCTS = 128 * (13 * 50257 * 768 + 12 * 12 * 768**2)

HEADER = (
    "| | ours | ms | theirs | ms | times as fast (range) | wanted |\n|---|---|---|---|---|---|---|"
)


def row(
    name: str, ours: str, a: list[float], theirs: str, b: list[float], wanted: float | None
) -> str:
    """Medians, and the ratio within a round: its median and range."""
    ratios = sorted(y / x for x, y in zip(a, b, strict=True))
    middle, low, high = statistics.median(ratios), ratios[0], ratios[-1]
    goal = "" if wanted is None else f"{wanted:g}{'' if middle >= wanted else ' **not reached**'}"
    return (
        f"| {name} | {ours} | {statistics.median(a):.2f} | {theirs} | {statistics.median(b):.2f} "
        f"| {middle:.2f} ({low:.2f} to {high:.2f}) | {goal} |"
    )


# -------------------------------------------------------------------- what is no plain ratio


def floor(bench: Bench) -> list[str]:
    """Decode beside the memory floor, measured in turn."""
    over = []
    for _ in range(bench.rounds):
        took = bench.ask("gpt2kit fp32", decode(), prompt(128))
        over.append(took / (1e3 * WEIGHTS / read_bandwidth(bench.threads)))
    return [figure("fp32 decode over the memory floor", over, 1.25)]


def long_context(bench: Bench) -> list[str]:
    """Decode with 1000 positions in the cache beside 100."""
    over = []
    for _ in range(bench.rounds):
        short, long = (bench.ask("gpt2kit fp32", decode(20), prompt(n)) for n in (100, 1000))
        over.append(long / short)
    return [figure("fp32 decode at 1000 positions over at 100", over, 1.35)]


def taps_cost(bench: Bench) -> list[str]:
    """A forward pass of 512 tokens with all residual taps, and one of a file that carries every tap
    there is of which none is fetched, over one of the plain file."""
    over: dict[str, list[float]] = {"hooked": [], "every tap": []}
    for _ in range(bench.rounds):
        plain = bench.ask("gpt2kit fp32", {"do": "forward", "taps": False}, prompt(512))
        for kind, taken in over.items():
            request = {"do": "forward", "taps": kind == "hooked"}
            taken.append(bench.ask(f"gpt2kit fp32, {kind}", request, prompt(512)) / plain)
    return [
        figure("all residual taps over none, 512 tokens", over["hooked"], 1.1),
        figure("every tap carried, none fetched, over none, 512 tokens", over["every tap"], 1.1),
    ]


def generation_cost(bench: Bench) -> list[str]:
    """A generated token with a steering edit, or with a lens, over one without."""
    rows = []
    for side in ("gpt2kit fp32, hooked", "gpt2kit torch"):
        for how, most in (("edited", 1.05), ("lens", 1.5)):
            over = []
            for _ in range(bench.rounds):
                took = [
                    bench.ask(side, {"do": "generate", "steps": 24, "how": kind}, prompt(128))
                    for kind in ("plain", how)
                ]
                over.append(took[1] / took[0])
            rows.append(figure(f"a token {how} over a plain one, {side}", over, most))
    return rows


def head_sweep(bench: Bench) -> list[str]:
    """Patching of all 12 x 12 heads, 16 tokens: one run a head over one sweep."""
    ids = prompt(16, 2)
    times: dict[bool, list[float]] = {}
    for _ in range(bench.rounds):
        for batched in (True, False):
            took = bench.ask("gpt2kit torch", {"do": "sweep", "batched": batched}, ids)
            times.setdefault(batched, []).append(took)
    return [
        row("patching 12 x 12 heads", "one sweep", times[True], "one run a head", times[False], 2.5)
    ]


def lens_limit(bench: Bench) -> list[str]:
    """A lens of 128 positions over its multiply-adds at the speed of a large product on torch."""
    import torch

    torch.set_num_threads(bench.threads)
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    rows = []
    for side in ("gpt2kit fp32, hooked", "gpt2kit torch"):
        over = []
        for _ in range(bench.rounds):
            best = min(_seconds(a, b) for _ in range(5))
            limit = LENS_PRODUCTS * best / 2048**3
            over.append(1e-3 * bench.ask(side, {"do": "lens"}, prompt(128)) / limit)
        rows.append(figure(f"logit lens over the arithmetic limit, {side}", over, 1.3))
    return rows


def _seconds(a: Any, b: Any) -> float:
    """Of a product, by the kernel that is the fastest on this processor."""
    import torch

    start = time.perf_counter()
    with torch.inference_mode():
        linear(a, b)
    return time.perf_counter() - start


def resident(bench: Bench) -> list[str]:
    """Peak memory of a process that opens the file, prefills and decodes, over the file's size."""
    over = []
    for _ in range(3):
        process = bench.start("gpt2kit fp32")
        reply(process)
        request_of(process, decode() | {"ids": prompt(128)})
        peak = request_of(process, {"do": "memory"})["peak"]
        over.append(1e6 * peak / bench.path(SIDES["gpt2kit fp32"]).stat().st_size)
        process.kill()
    return [figure("peak memory over file size, fp32", over, 1.6)]


def figure(name: str, values: list[float], most: float) -> str:
    """One row of the second table: a ratio that should be small."""
    middle = statistics.median(values)
    verdict = "" if middle <= most else " **not reached**"
    return (
        f"| {name} | {middle:.2f} ({min(values):.2f} to {max(values):.2f}) "
        f"| at most {most:g}{verdict} |"
    )


def loads(bench: Bench) -> list[str]:
    """From the path to the first logits, imports apart; and from nothing, imports included."""

    def first(name: str, whole: bool) -> float:
        began = time.perf_counter()
        process = bench.start(name)
        loaded = reply(process)
        took = request_of(process, {"do": "prefill", "ids": prompt(1)})
        total = 1e3 * (time.perf_counter() - began)
        process.kill()
        process.wait()
        return total if whole else loaded + took

    rows = []
    for title, ours, theirs, whole, wanted in (
        ("load to first logits", "gpt2kit fp32", "optimum-onnx", False, 1.0),
        ("import, load, first logits", "gpt2kit torch", "TransformerLens", True, 5.0),
    ):
        times: dict[str, list[float]] = {ours: [], theirs: []}
        for turn in range(1 + max(3, bench.rounds // 2)):
            for name, taken in times.items():
                took = first(name, whole)
                if turn:  # the first brings the files into memory
                    taken.append(took)
        rows.append(row(title, ours, times[ours], theirs, times[theirs], wanted))
    return rows


def lens_memory(bench: Bench) -> list[str]:
    """What a logit lens needs above what is resident before it, ours over TransformerLens'. Each
    turn has processes of its own, for a peak may differ by a factor of 8 from one to the next."""
    need: dict[str, list[float]] = {"gpt2kit torch": [], "TransformerLens": []}
    for _ in range(max(3, bench.rounds)):
        for name, taken in need.items():
            process = bench.start(name)
            reply(process)
            request_of(process, {"do": "forward", "taps": False, "ids": prompt(128)})
            before = request_of(process, {"do": "memory"})["now"]
            request_of(process, {"do": "lens", "ids": prompt(128)})
            taken.append(request_of(process, {"do": "memory"})["peak"] - before)
            process.kill()
            process.wait()
    ours, theirs = need.values()
    medians = ", ".join(f"{statistics.median(taken):.0f} MB" for taken in (ours, theirs))
    title = f"logit lens memory over TransformerLens' (medians: {medians})"
    return [figure(title, [x / y for x, y in zip(ours, theirs, strict=True)], 0.1)]


def accuracy(bench: Bench) -> list[str]:
    """KL divergence (nats) of 4-bit files from their own engine's float32, on the same tokens."""
    text = (HERE.parent / "exporters" / "held_out.txt").read_text(encoding="utf-8")
    tokenizer = gpt2kit.load("bundled", device="cpu").tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(text)[:256]
    rows = []
    pairs = {
        "gpt2kit int4": "gpt2kit fp32", "gpt2kit int4-all": "gpt2kit fp32",
        "llama.cpp q4_0": "llama.cpp f32",
        "gpt2kit int8": "gpt2kit fp32", "llama.cpp q8_0": "llama.cpp f32",
    }  # fmt: skip
    for small, whole in pairs.items():
        logits = []
        for name in (whole, small):
            target = bench.work / "logits.npy"
            bench.ask(name, {"do": "logits", "to": str(target)}, [ids])
            logits.append(log_softmax(np.load(target).astype(np.float64)))
        kl = float((np.exp(logits[0]) * (logits[0] - logits[1])).sum(-1).mean())
        same = float((logits[0].argmax(-1) == logits[1].argmax(-1)).mean())
        size = bench.path(SIDES[small]).stat().st_size / 1e6
        rows.append(f"| {small} | {kl:.2e} | {same:.1%} | {size:.1f} |")
    return rows


FIGURES: list[Callable[[Bench], list[str]]] = [
    floor, long_context, resident, lens_memory, taps_cost, generation_cost, lens_limit,
]  # fmt: skip


def main() -> None:
    """Measure, print, and write RESULTS.md if everything was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=HERE.parent / "build/benchmarks")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", action="append", help="names of lines, or parts of them")
    options = parser.parse_args()
    wanted = options.only or [""]

    def chosen(name: str) -> bool:
        return any(part in name for part in wanted)

    report: list[str] = []

    def say(*lines: str) -> None:
        report.extend(lines)
        print("\n".join(lines), flush=True)

    with ExitStack() as stack:
        bench = Bench(options.work.resolve(), options.threads, options.rounds, stack)
        say(HEADER)
        for line in LINES:
            if chosen(line.name):
                say(*bench.compare(line))
        if chosen("load"):
            say(*loads(bench))
        if chosen("head_sweep"):
            say(*head_sweep(bench))
        say("", "| | ratio (range) | wanted |\n|---|---|---|")
        for measure in FIGURES:
            if chosen(measure.__name__):
                say(*measure(bench))
        if chosen("accuracy"):
            say("", "| | KL from float32, nats | same top token | file, MB |\n|---|---|---|---|")
            say(*accuracy(bench))
    if not options.only:
        write(report, options)


def write(report: list[str], options: argparse.Namespace) -> None:
    """RESULTS.md, its part about this processor; a new one comes first."""
    processor = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    path = HERE / "RESULTS.md"
    text = path.read_text(encoding="utf-8")
    start, end = f"### {processor}\n", "<!-- end -->\n"
    said = f"\n{options.threads} threads, {options.rounds} rounds.\n\n" + "\n".join(report)
    if start in text:
        before, after = text.split(start)
        text = before + start + said + "\n" + end + after.split(end, 1)[1]
    else:
        heading = "## CPU\n\n"
        text = text.replace(heading, f"{heading}{start}{said}\n{end}\n", 1)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
