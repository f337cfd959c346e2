"""Choose the next token from logits: greedy, or temperature with top-k and top-p; seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpt2kit.checks import check_flag, check_integer, check_number
from gpt2kit.defaults import Default
from gpt2kit.errors import InputError, NonFiniteError
from gpt2kit.penalties import ban_repeated_ngrams, penalise_repetition


@dataclass
class Sampler:
    """Chooses one token a row; each row of a batch has its own random stream.

    temperature: divides the logits; above 0.
    top_k: number of likeliest tokens to draw from; None or 0 for all.
    top_p: draw from the smallest set of tokens that holds this much probability (nucleus sampling,
           Holtzman et al. 2020, arXiv 1904.09751); in (0, 1].
    greedy: always choose the likeliest token.
    repetition_penalty: makes tokens of the text less likely; see `gpt2kit.penalties`. 1 is off.
    no_repeat_ngram_size: no run of so many tokens is said twice; 0 is off.
    seed:  the same seed, logits and row number give the same tokens, whatever the other rows are;
           None for a random seed.
    Raises InputError for a value of a wrong type or out of range.
    """

    temperature: float = 1.0
    top_k: int | None = Default(50)
    top_p: float = 1.0
    greedy: bool = False
    seed: int | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    _streams: list[np.random.Generator] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if not 0 < check_number("temperature", self.temperature) < np.inf:
            raise InputError(
                f"temperature = {self.temperature} must be above 0; for the likeliest token, "
                "ask for greedy"
            )
        if self.top_k is not None:
            check_integer("top_k", self.top_k, 0)
            self.top_k = self.top_k or None
        if not 0 < check_number("top_p", self.top_p) <= 1:
            raise InputError(f"top_p = {self.top_p} must be in (0, 1]")
        if not 0 < check_number("repetition_penalty", self.repetition_penalty) < np.inf:
            raise InputError(
                f"repetition_penalty = {self.repetition_penalty} must be above 0; 1 changes nothing"
            )
        check_integer("no_repeat_ngram_size", self.no_repeat_ngram_size, 0)
        check_flag("greedy", self.greedy)
        if self.seed is None:
            self.seed = int(np.random.SeedSequence().generate_state(1)[0])
        check_integer("seed", self.seed, 0)

    def check(self, vocab_size: int) -> None:
        """Raise InputError if a top_k was given that is larger than the vocabulary."""
        if isinstance(self.top_k, Default):
            return
        if self.top_k is not None and self.top_k > vocab_size:
            raise InputError(f"top_k = {self.top_k} is more than the vocabulary of {vocab_size}")

    def candidates(self, vocab_size: int) -> int:
        """Number of largest logits that `pick` needs."""
        return 1 if self.greedy else min(self.top_k or vocab_size, vocab_size)

    @property
    def looks_back(self) -> bool:
        """Whether the choice depends on the text so far, so that `look_back` needs all logits."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0

    def look_back(
        self, logits: NDArray[np.floating], texts: Sequence[Sequence[int]]
    ) -> NDArray[np.floating]:
        """The logits (batch, vocab) after penalties for what the texts of the rows say.

        Raises InputError if no token is left.
        """
        if self.repetition_penalty != 1:
            logits = penalise_repetition(logits, texts, self.repetition_penalty)
        if self.no_repeat_ngram_size:
            logits = ban_repeated_ngrams(logits, texts, self.no_repeat_ngram_size)
            if np.isneginf(logits).all(-1).any():
                raise InputError(
                    f"no_repeat_ngram_size = {self.no_repeat_ngram_size} leaves no token to "
                    "choose; give a larger one, or ask for fewer new tokens"
                )
        return logits

    def pick(self, logits: NDArray[np.floating], ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Choose a token id for each row, (batch,).

        logits, ids: (batch, candidates) logits of the candidates, largest first, and their ids.
        A logit of -inf is a token that is never drawn. Raises NonFiniteError for NaN or +inf.
        """
        if not (logits < np.inf).all():  # not so with NaN
            raise NonFiniteError("logits to choose a token from are NaN or infinite")
        if self.greedy:
            return ids[:, 0]
        while len(self._streams) < len(logits):
            self._streams.append(np.random.default_rng([self.seed or 0, len(self._streams)]))
        rows = zip(logits, ids, self._streams, strict=False)
        return np.array([self._draw(*row) for row in rows])

    def _draw(
        self, logits: NDArray[np.floating], ids: NDArray[np.int64], stream: np.random.Generator
    ) -> int:
        """Draw one token id from one row of candidates."""
        below = logits.astype(np.float64) - logits[0]
        with np.errstate(over="ignore"):  # near 0, the temperature sends all others to -inf
            p = np.exp(below / self.temperature)
        p /= p.sum()
        if self.top_p < 1:
            p = p[: int(np.searchsorted(p.cumsum(), self.top_p)) + 1]
        cumulative = p.cumsum()
        return int(ids[np.searchsorted(cumulative, stream.random() * cumulative[-1], "right")])
