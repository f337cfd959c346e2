"""What a quantised file costs: its next-token distribution against the unquantised model's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from exporters.engine.runner import OnnxRunner
from gpt2kit.readout import Floats, Ints
from gpt2kit.torch_engine.runner import TorchRunner

BOUND = {"int8": 0.01, "int4": 0.25, "int4-all": 0.25}  # of the mean KL divergence, in nats
WINDOW = 256  # tokens of context


@dataclass(frozen=True)
class Cost:
    """Means over `tokens` predictions.

    kl: KL divergence from the unquantised model's distribution to the file's, in nats.
    top1: share of predictions where both rank the same token first.
    perplexity: of the unquantised model, then of the file.
    text: what was predicted.
    """

    kind: str
    kl: float
    top1: float
    perplexity: tuple[float, float]
    tokens: int
    text: str

    @property
    def bound(self) -> float:
        """The largest `kl` with which a file may be written."""
        return BOUND[self.kind]

    @property
    def fits(self) -> bool:
        """Whether `kl` is within its bound."""
        return self.kl <= self.bound

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"bound": self.bound}


def cost(runner: TorchRunner, onnx: OnnxRunner) -> Cost:
    """Compare a file with the float32 model on text that no training of ours saw.

    The text is the end of Alice in Wonderland; without a tokenizer, random tokens.
    """
    ids, text = _held_out(runner)
    totals, tokens = np.zeros(4), 0
    width = min(WINDOW, runner.config.n_positions)
    for window in np.array_split(ids, np.arange(width, len(ids), width)):
        if len(window) > 1:
            before, after = (log_softmax(r.run(window[:-1]).logits[0]) for r in (runner, onnx))
            totals += _sums(before, after, window[1:])
            tokens += len(window) - 1
    kl, top1, *losses = (float(total) / tokens for total in totals)
    perplexity = float(np.exp(losses[0])), float(np.exp(losses[1]))
    assert onnx.quantize is not None
    return Cost(onnx.quantize, kl, top1, perplexity, tokens, text)


def _held_out(runner: TorchRunner) -> tuple[Ints, str]:
    if runner.tokenizer is None:
        rng = np.random.default_rng(0)
        return rng.integers(0, runner.config.vocab_size, 2048), "random tokens"
    text = (files("exporters.parity") / "held_out.txt").read_text(encoding="utf-8")
    return np.array(runner.tokenizer.encode(text)), "the end of Alice in Wonderland"


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    out: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return out


def _sums(before: Floats, after: Floats, targets: Ints) -> Floats:
    """KL, top-1 agreement, loss before and after, summed over (pos, vocab) log-probabilities."""
    places = np.arange(len(targets))
    return np.array(
        [
            (np.exp(before) * (before - after)).sum(),
            (before.argmax(-1) == after.argmax(-1)).sum(),
            -before[places, targets].sum(),
            -after[places, targets].sum(),
        ]
    )
