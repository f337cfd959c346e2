"""The measurements of `compare.py` that are not one request on both sides."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint import WEIGHTS
from contenders import CONTENDERS, decode
from rows import figure, row
from workers import Workers, prompt, reply, request_of

import gpt2kit
from exporters.engine.memory import read_bandwidth
from gpt2kit.linear import linear
from gpt2kit.logits import log_softmax

HERE = Path(__file__).resolve().parent
# Multiply-adds of a lens: 13 rows of 128 positions through the unembedding, and 12 layers.
LENS_PRODUCTS = 128 * (13 * 50257 * 768 + 12 * 12 * 768**2)


def floor(workers: Workers) -> list[str]:
    """A decode step over its memory floor, both measured in turn."""
    over = []
    for _ in range(workers.rounds):
        took = workers.run("gpt2kit fp32", decode(), prompt(128))
        over.append(took / (1e3 * WEIGHTS / read_bandwidth(workers.threads)))
    return [figure("fp32 decode over the memory floor", over, 1.25)]


def long_context(workers: Workers) -> list[str]:
    """A decode step with 1000 positions in the cache, over one with 100."""
    over = []
    for _ in range(workers.rounds):
        short, long = (workers.run("gpt2kit fp32", decode(20), prompt(n)) for n in (100, 1000))
        over.append(long / short)
    return [figure("fp32 decode at 1000 positions over at 100", over, 1.35)]


def taps_cost(workers: Workers) -> list[str]:
    """A forward pass of 512 tokens with taps, over one of the plain file.

    First, all residual taps are fetched; then, the file carries every tap and none is fetched.
    """
    over: dict[str, list[float]] = {"hooked": [], "every tap": []}
    for _ in range(workers.rounds):
        plain = workers.run("gpt2kit fp32", {"do": "forward", "taps": False}, prompt(512))
        for kind, taken in over.items():
            request = {"do": "forward", "taps": kind == "hooked"}
            taken.append(workers.run(f"gpt2kit fp32, {kind}", request, prompt(512)) / plain)
    return [
        figure("all residual taps over none, 512 tokens", over["hooked"], 1.1),
        figure("every tap carried, none fetched, over none, 512 tokens", over["every tap"], 1.1),
    ]


def generation_cost(workers: Workers) -> list[str]:
    """A generated token with a steering edit, or with a lens, over one without."""
    rows = []
    for side in ("gpt2kit fp32, hooked", "gpt2kit torch"):
        for how, most in (("edited", 1.05), ("lens", 1.5)):
            over = []
            for _ in range(workers.rounds):
                took = [
                    workers.run(side, {"do": "generate", "steps": 24, "how": kind}, prompt(128))
                    for kind in ("plain", how)
                ]
                over.append(took[1] / took[0])
            rows.append(figure(f"a token {how} over a plain one, {side}", over, most))
    return rows


def head_sweep(workers: Workers) -> list[str]:
    """Patching of all 12 x 12 heads on 16 tokens: one run per head over one sweep."""
    ids = prompt(16, 2)
    times: dict[bool, list[float]] = {}
    for _ in range(workers.rounds):
        for batched in (True, False):
            took = workers.run("gpt2kit torch", {"do": "sweep", "batched": batched}, ids)
            times.setdefault(batched, []).append(took)
    return [
        row("patching 12 x 12 heads", "one sweep", times[True], "one run a head", times[False], 2.5)
    ]


def lens_limit(workers: Workers) -> list[str]:
    """A lens of 128 positions, over its multiply-adds at the speed of a large product on torch."""
    import torch

    torch.set_num_threads(workers.threads)
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    rows = []
    for side in ("gpt2kit fp32, hooked", "gpt2kit torch"):
        over = []
        for _ in range(workers.rounds):
            best = min(_seconds(a, b) for _ in range(5))
            limit = LENS_PRODUCTS * best / 2048**3
            over.append(1e-3 * workers.run(side, {"do": "lens"}, prompt(128)) / limit)
        rows.append(figure(f"logit lens over the arithmetic limit, {side}", over, 1.3))
    return rows


def _seconds(a: Any, b: Any) -> float:
    """Seconds of one product, by the fastest kernel on this processor."""
    import torch

    start = time.perf_counter()
    with torch.inference_mode():
        linear(a, b)
    return time.perf_counter() - start


def resident(workers: Workers) -> list[str]:
    """Peak memory of a process that opens a file, prefills and decodes, over the file's size."""
    over = []
    for _ in range(3):
        process = workers.start("gpt2kit fp32")
        reply(process)
        request_of(process, decode() | {"ids": prompt(128)})
        peak = request_of(process, {"do": "memory"})["peak"]
        over.append(1e6 * peak / workers.path(CONTENDERS["gpt2kit fp32"]).stat().st_size)
        process.kill()
    return [figure("peak memory over file size, fp32", over, 1.6)]


def loads(workers: Workers) -> list[str]:
    """Time to the first logits: from the path without imports, and from nothing with imports."""

    def first(name: str, whole: bool) -> float:
        began = time.perf_counter()
        process = workers.start(name)
        loaded = reply(process)
        took = request_of(process, {"do": "prefill", "ids": prompt(1)})
        elapsed = 1e3 * (time.perf_counter() - began)
        process.kill()
        process.wait()
        return elapsed if whole else loaded + took

    rows = []
    for title, ours, theirs, whole, wanted in (
        ("load to first logits", "gpt2kit fp32", "optimum-onnx", False, 1.0),
        ("import, load, first logits", "gpt2kit torch", "TransformerLens", True, 5.0),
    ):
        times: dict[str, list[float]] = {ours: [], theirs: []}
        for turn in range(1 + max(3, workers.rounds // 2)):
            for name, taken in times.items():
                took = first(name, whole)
                if turn:  # the first turn only brings the files into memory
                    taken.append(took)
        rows.append(row(title, ours, times[ours], theirs, times[theirs], wanted))
    return rows


def lens_memory(workers: Workers) -> list[str]:
    """Memory that a logit lens adds to the process, ours over TransformerLens'.

    Each turn starts new processes: a peak can differ by a factor of 8 from one to the next.
    """
    need: dict[str, list[float]] = {"gpt2kit torch": [], "TransformerLens": []}
    for _ in range(max(3, workers.rounds)):
        for name, taken in need.items():
            process = workers.start(name)
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


def accuracy(workers: Workers) -> list[str]:
    """KL divergence in nats of quantised files from float32 of the same engine and tokens."""
    text = (HERE.parent / "exporters" / "parity" / "held_out.txt").read_text(encoding="utf-8")
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
            target = workers.work / "logits.npy"
            workers.run(name, {"do": "logits", "to": str(target)}, [ids])
            logits.append(log_softmax(np.load(target).astype(np.float64)))
        kl = float((np.exp(logits[0]) * (logits[0] - logits[1])).sum(-1).mean())
        same = float((logits[0].argmax(-1) == logits[1].argmax(-1)).mean())
        size = workers.path(CONTENDERS[small]).stat().st_size / 1e6
        rows.append(f"| {small} | {kl:.2e} | {same:.1%} | {size:.1f} |")
    return rows


RATIOS: list[Callable[[Workers], list[str]]] = [
    floor, long_context, resident, lens_memory, taps_cost, generation_cost, lens_limit,
]  # fmt: skip
