"""From logits to the next token: greedy, or temperature with top-k and top-p; seeded."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpt2kit.errors import GPT2KitError, InputError


@dataclass
class Sampler:
    """Picks one token a row; each row of a batch has a random stream of its own.

    temperature: divides the logits; above 0.
    top_k: how many of the likeliest tokens stay in the draw; None for all.
    top_p: the least set of tokens that holds this much probability stays (nucleus sampling,
           Holtzman et al. 2020, arXiv 1904.09751); in (0, 1].
    seed:  the same seed, logits and row number give the same tokens, whatever the other rows are.
    """

    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float = 1.0
    greedy: bool = False
    seed: int | None = None
    _streams: list[np.random.Generator] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if not self.temperature > 0 or np.isinf(self.temperature):
            raise InputError(
                f"temperature = {self.temperature} must be above 0; for the likeliest token, "
                "ask for greedy"
            )
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k = {self.top_k} must be at least 1")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p = {self.top_p} must be in (0, 1]")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"seed = {self.seed} must not be negative")
        if self.seed is None:
            self.seed = int(np.random.SeedSequence().generate_state(1)[0])

    def check(self, vocab_size: int) -> None:
        """Raise InputError if this sampler does not fit a vocabulary."""
        if self.top_k is not None and self.top_k > vocab_size:
            raise InputError(f"top_k = {self.top_k} is more than the vocabulary of {vocab_size}")

    @property
    def candidates(self) -> int | None:
        """How many of the likeliest tokens `pick` wants to see; None for all."""
        return 1 if self.greedy else self.top_k

    def pick(self, logits: NDArray[np.floating], ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Logits of the candidates, largest first, and their ids, both (batch, candidates) ->
        (batch,) token ids."""
        if np.isnan(logits).any():
            raise GPT2KitError("the model's logits are not numbers; try --dtype float32")
        if self.greedy:
            return ids[:, 0]
        while len(self._streams) < len(logits):
            self._streams.append(np.random.default_rng([self.seed or 0, len(self._streams)]))
        rows = zip(logits, ids, self._streams, strict=False)
        return np.array([self._draw(*row) for row in rows])

    def _draw(
        self, logits: NDArray[np.floating], ids: NDArray[np.int64], stream: np.random.Generator
    ) -> int:
        below = logits.astype(np.float64) - logits[0]
        with np.errstate(over="ignore"):  # a temperature near 0 sends all but the first to -inf
            p = np.exp(below / self.temperature)
        p /= p.sum()
        if self.top_p < 1:
            p = p[: int(np.searchsorted(p.cumsum(), self.top_p)) + 1]
        cumulative = p.cumsum()
        return int(ids[np.searchsorted(cumulative, stream.random() * cumulative[-1], "right")])
