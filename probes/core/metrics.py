"""Metrics: one number of a next-token prediction, by which an intervention is judged.

Every causal probe takes one. The same code computes on numpy arrays and on torch tensors, so that
a metric has a gradient where torch can follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2kit.errors import InputError
from gpt2kit.prompts import Token, check_foil, counted, token_id
from gpt2kit.readout import Ints
from gpt2kit.runner import Runner
from probes.core.tensors import exp, log_probabilities

Tokens = Token | Sequence[Token]  # one for every prompt, or one for each prompt
_ONE_TOKEN = str | int | np.integer


@dataclass(frozen=True, repr=False)
class Metric:
    """One number for each row of next-token logits; see the constructors below.

    name:     what results show; logarithms are natural.
    function: logits (batch, vocab), ids (tokens,), log-probabilities (vocab,) of the reference run
              -> (batch,).
    tokens:   the tokens whose ids `function` gets.
    position: the position whose prediction is judged; negative ones count from the prompt's end.
    """

    name: str
    function: Callable[[Any, Ints, Any], Any]
    tokens: tuple[Tokens, ...] = ()
    position: int = -1

    @classmethod
    def logit_diff(cls, target: Tokens, foil: Tokens, *, position: int = -1) -> Metric:
        """Logit of `target` minus logit of `foil`, which equals their log odds."""
        name = f"logit of {_in_words(target)} minus logit of {_in_words(foil, 'foil')}"
        return cls(name, lambda x, ids, _: x[:, ids[0]] - x[:, ids[1]], (target, foil), position)

    @classmethod
    def prob(cls, target: Tokens, *, position: int = -1) -> Metric:
        """Probability of `target`."""

        def function(x: Any, ids: Ints, _: Any) -> Any:
            return exp(log_probabilities(x)[:, ids[0]])

        return cls(f"probability of {_in_words(target)}", function, (target,), position)

    @classmethod
    def logprob(cls, target: Tokens, *, position: int = -1) -> Metric:
        """Log-probability of `target`, in nats."""

        def function(x: Any, ids: Ints, _: Any) -> Any:
            return log_probabilities(x)[:, ids[0]]

        return cls(f"log-probability of {_in_words(target)}", function, (target,), position)

    @classmethod
    def rank(cls, target: Tokens, *, position: int = -1) -> Metric:
        """The number of tokens likelier than `target`; it has no gradient."""

        def function(x: Any, ids: Ints, _: Any) -> Any:
            return (x > x[:, ids[0], None]).sum(-1)

        return cls(f"rank of {_in_words(target)}", function, (target,), position)

    @classmethod
    def kl(cls, *, position: int = -1) -> Metric:
        """KL(reference || this run) in nats. The reference is the clean run; in `ablate`, the run
        of the same prompt without ablation."""

        def function(x: Any, _: Ints, reference: Any) -> Any:
            return (exp(reference) * (reference - log_probabilities(x))).sum(-1)

        return cls("KL from the clean run", function, (), position)

    @classmethod
    def of(
        cls, function: Callable[[Any], Any], *, name: str | None = None, position: int = -1
    ) -> Metric:
        """A function of your own: logits (batch, vocab) -> (batch,).

        Attribution patching calls it with a torch tensor, every other probe with a numpy array.
        """
        if not callable(function):
            raise InputError(f"function = {function!r} must be a function of logits")
        if name is not None and not isinstance(name, str):
            raise InputError(f"name = {name!r} must be text")
        called = name or str(getattr(function, "__name__", type(function).__name__))
        return cls(called, lambda x, *_: function(x), (), position)

    def __repr__(self) -> str:
        return f"Metric({self.name}, position {self.position})"

    def ids(self, runner: Runner, prompts: int = 1) -> Ints:
        """(prompts, tokens) token ids.

        Raises InputError for a text that is not one token, and for a target equal to its foil.
        """
        columns = [[t] if isinstance(t, _ONE_TOKEN) else list(t) for t in self.tokens]
        for column in columns:
            if len(column) not in (1, prompts):
                raise InputError(
                    f"the metric names {len(column)} tokens for {counted(prompts, 'prompt')}; "
                    "give one token, or one for each prompt"
                )
        out = np.zeros((prompts, len(columns)), np.int64)
        for i, column in enumerate(columns):
            name = ("target", "foil")[i] if i < 2 else "token"
            out[:, i] = [token_id(runner, token, name) for token in column]
        if len(columns) == 2:
            for prompt, (target, foil) in enumerate(out):
                check_foil(columns[0][prompt % len(columns[0])], target, foil)
        return out

    def __call__(self, logits: Any, ids: Ints, reference: Any) -> Any:
        """Logits (batch, vocab) -> (batch,); the other arguments are passed to `function`."""
        values = self.function(logits, ids, reference)
        shape = getattr(values, "shape", None)
        if shape is None or tuple(shape) != (len(logits),):
            what = type(values).__name__ if shape is None else f"shape {tuple(shape)}"
            raise InputError(
                f"the metric {self.name} gave {what} for logits {tuple(logits.shape)}; "
                f"it must give one number a row, ({len(logits)},)"
            )
        return values


AnyMetric = Metric | Callable[[Any], Any]


def as_metric(metric: AnyMetric) -> Metric:
    """The metric itself, or a metric of a function of logits (batch, vocab) at the last position.

    Raises InputError for anything else.
    """
    if isinstance(metric, Metric):
        return metric
    if not callable(metric) or isinstance(metric, type):
        raise InputError(f"metric = {metric!r} is neither a Metric nor a function of logits")
    return Metric.of(metric)


def _in_words(tokens: Tokens, name: str = "target") -> str:
    """The tokens of a metric in words. Raises InputError unless they are texts or ids."""
    if isinstance(tokens, _ONE_TOKEN) and not isinstance(tokens, bool):
        return repr(tokens) if isinstance(tokens, str) else f"token {tokens}"
    if not isinstance(tokens, Sequence | np.ndarray) or not len(tokens):
        raise InputError(
            f"{name} = {tokens!r} must be a text or a token id, or a list with one for each prompt"
        )
    return f"each prompt's {name}"
