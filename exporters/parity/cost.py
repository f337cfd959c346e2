"""The cost of quantisation: the file's next-token distributions against the unquantised model's."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from gpt2kit.finite import finite_run
from gpt2kit.logits import log_softmax
from gpt2kit.readout import Floats, Ints
from gpt2kit.runner import Runner

BOUND = {"int8": 0.01, "int4": 0.25, "int4-all": 0.25}  # of the mean KL divergence, in nats
WINDOW = 256  # tokens of context
FEWEST = 256  # with fewer tokens, a mean says little


@dataclass(frozen=True)
class Cost:
    """Means over `tokens` predictions; a part of the report of a quantised file.

    kind: "int8", "int4" or "int4-all".
    kl: KL divergence from the unquantised model's distribution to the file's, in nats.
    top1: share of predictions where both rank the same token first.
    perplexity: of the unquantised model, then of the file.
    text: which text was predicted.
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
    def within_bound(self) -> bool:
        """Whether `kl` is at most its bound."""
        return self.kl <= self.bound

    def lines(self) -> list[str]:
        """The figures as text."""
        before, after = self.perplexity
        return [
            f"quantised to {self.kind}: KL divergence {self.kl:.4f} nats (bound {self.bound:g}), "
            f"same top token {self.top1:.1%}, perplexity {before:.2f} -> {after:.2f}",
            f"(against float32, on {self.tokens} tokens: {self.text})",
        ]


def measure_cost(reference: Runner, quantised: Runner) -> Cost:
    """Compare a quantised file with the float32 model on text that the bundled model never saw.

    The text is eight stories of our own, in the manner of those that the bundled model was trained
    on. Every model is measured on them. For gpt2 they are simple English, unlike the texts of
    published perplexities; on code or another language, the cost may differ. Without a tokenizer,
    or with one that lacks the characters of the text, random tokens take its place.
    """
    ids, text = _held_out(reference)
    sums, tokens = np.zeros(4), 0
    width = min(WINDOW, reference.config.n_positions + 1)  # the last token is only predicted
    for window in np.array_split(ids, np.arange(width, len(ids), width)):
        if len(window) > 1:
            before, after = (_log_probs(r, window[:-1]) for r in (reference, quantised))
            sums += _sums(before, after, window[1:])
            tokens += len(window) - 1
    kl, top1, *losses = (float(value) / tokens for value in sums)
    perplexity = float(np.exp(losses[0])), float(np.exp(losses[1]))
    return Cost(quantised.precision, kl, top1, perplexity, tokens, text)


def _held_out(runner: Runner) -> tuple[Ints, str]:
    if runner.tokenizer is not None:
        text = (files("exporters.parity") / "held_out.txt").read_text(encoding="utf-8")
        ids = runner.tokenizer.encode(text)
        if len(ids) >= FEWEST:
            return np.array(ids), "stories in simple English"
    rng = np.random.default_rng(0)
    return rng.integers(0, runner.config.vocab_size, 2048), "random tokens"


def _log_probs(runner: Runner, ids: Ints) -> Floats:
    """(pos, vocab) log-probabilities after each token of one row, in float64."""
    return log_softmax(finite_run(runner, ids).logits[0].astype(np.float64))


def _sums(before: Floats, after: Floats, targets: Ints) -> Floats:
    """KL, top-1 agreement, loss before and after, each summed over the positions.

    before, after: (pos, vocab) log-probabilities. targets: (pos,) the tokens that follow.
    """
    places = np.arange(len(targets))
    return np.array(
        [
            (np.exp(before) * (before - after)).sum(),
            (before.argmax(-1) == after.argmax(-1)).sum(),
            -before[places, targets].sum(),
            -after[places, targets].sum(),
        ]
    )
