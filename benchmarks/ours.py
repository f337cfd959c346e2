"""gpt2kit in the comparison, on onnxruntime and on torch."""

from __future__ import annotations

import importlib
import statistics
import time
from typing import Any

import numpy as np
from engine_base import Array, Engine, clock


class Ours(Engine):
    """gpt2kit on onnxruntime."""

    modules: tuple[str, ...] = ("exporters.engine.runner",)

    def __init__(self, path: str, threads: int) -> None:
        engine = importlib.import_module("exporters.engine.runner")
        self.runner: Any = engine.open_onnx(path, device="cpu", threads=threads)

    def start(self, ids: Array) -> Any:
        cache = self.runner.new_cache(len(ids))
        return self.runner.run(ids, cache=cache, last_only=True, top_k=1)

    def step(self, state: Any) -> Any:
        return self.runner.run(state.top_ids[:, -1], cache=state.cache, last_only=True, top_k=1)

    def logits(self, ids: Array) -> Array:
        return np.asarray(self.runner.run(ids).logits[0])

    def forward(self, ids: Array, taps: bool) -> float:
        """Milliseconds for all logits and, with `taps`, all residual taps."""
        names = ["resid_pre", "resid_mid", "resid_post"] if taps else []
        return clock(lambda: self.runner.run(ids, taps=[f"blocks.*.{name}" for name in names]))

    def lens(self, ids: Array) -> float:
        """Milliseconds for a logit lens over every layer and position, top 5."""
        probes = importlib.import_module("probes")
        return clock(lambda: probes.logit_lens(self.runner, ids[0], top_k=5))

    def generate(self, ids: Array, steps: int, how: str) -> float:
        """Median milliseconds of a generated token.

        how: "plain", "edited" (one steering edit), or "lens" (`generation_lens`, which reads each
        token in every layer).
        """
        generate = importlib.import_module("gpt2kit").generate
        prompt, ticks = self.runner.tokenizer.decode(ids[0].tolist()), list[float]()

        def tick(*_: Any) -> None:
            ticks.append(1e3 * time.perf_counter())

        options: dict[str, Any] = {"max_new_tokens": steps + 1, "greedy": True}
        if how == "lens":
            probes = importlib.import_module("probes")
            probes.generation_lens(self.runner, prompt, on_step=tick, **options)
        elif how == "edited":
            edit = importlib.import_module("gpt2kit.edits").Edit
            vector = np.random.default_rng(0).standard_normal(self.runner.config.n_embd)
            steer = edit.steer("blocks.6.resid_post", vector, 4.0)
            generate(self.runner, prompt, edits=[steer], watch=tick, **options)
        else:
            generate(self.runner, prompt, watch=tick, **options)
        if len(ticks) != steps + 1:
            raise SystemExit(f"generation ended after {len(ticks)} tokens of {steps + 1}")
        return statistics.median(np.diff(ticks))


class OursOnTorch(Ours):
    """gpt2kit on torch."""

    modules = ("gpt2kit.torch_engine.load",)

    def __init__(self, path: str, threads: int) -> None:
        importlib.import_module("torch").set_num_threads(threads)
        self.runner = importlib.import_module("gpt2kit.torch_engine.load").load(path, device="cpu")

    def sweep(self, ids: Array, batched: bool) -> float:
        """Milliseconds to patch every head's z from the first prompt into the second.

        batched: in one sweep, or else with one run per head.
        """
        probes = importlib.import_module("probes")
        edits = importlib.import_module("gpt2kit.edits")
        clean, corrupt = ids
        if batched:
            metric = probes.Metric.logit_diff(5, 7)
            return clock(
                lambda: probes.activation_patching(
                    self.runner, clean, corrupt, metric=metric, over="z"
                )
            )

        def one_by_one() -> None:
            taken = self.runner.run(clean, taps="blocks.*.z").taps
            for tap, value in taken.items():
                for head in range(value.shape[2]):
                    edit = edits.Edit.replace(tap, value[:, :, head], head=head)
                    self.runner.run(corrupt, edits=[edit], last_only=True)

        return clock(one_by_one)
