"""Metrics: one number of a next-token prediction, by which an intervention is judged.

All causal probes take one. The same code serves numpy arrays and torch tensors, so that a metric
has gradients where torch can follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2kit.errors import InputError
from gpt2kit.prompts import Token, counted, token_id
from gpt2kit.readout import Ints
from gpt2kit.runner import Runner

Tokens = Token | Sequence[Token]  # the same for every prompt, or one a prompt
_ONE = str | int | np.integer


@dataclass(frozen=True, repr=False)
class Metric:
    """One number a row of next-token logits; see the constructors below.

    name:     as results show it; logarithms are natural.
    function: logits (batch, vocab), ids (tokens,), log-probabilities (vocab,) of the reference run
              -> (batch,).
    tokens:   what `ids` stands for.
    position: whose prediction is judged; negative ones count from the end of the prompt.
    """

    name: str
    function: Callable[[Any, Ints, Any], Any]
    tokens: tuple[Tokens, ...] = ()
    position: int = -1

    @classmethod
    def logit_diff(cls, target: Tokens, foil: Tokens, *, position: int = -1) -> Metric:
        """Logit of `target` minus logit of `foil`, which is their log odds."""
        name = f"logit of {_named(target)} minus logit of {_named(foil, 'foil')}"
        return cls(name, lambda x, ids, _: x[:, ids[0]] - x[:, ids[1]], (target, foil), position)

    @classmethod
    def prob(cls, target: Tokens, *, position: int = -1) -> Metric:
        """Probability of `target`."""
        name = f"probability of {_named(target)}"
        return cls(
            name, lambda x, ids, _: _exp(log_softmax(x)[:, ids[0]]), (target,), position
        )  # fmt: skip

    @classmethod
    def logprob(cls, target: Tokens, *, position: int = -1) -> Metric:
        """Log-probability of `target`, in nats."""
        name = f"log-probability of {_named(target)}"
        return cls(name, lambda x, ids, _: log_softmax(x)[:, ids[0]], (target,), position)

    @classmethod
    def rank(cls, target: Tokens, *, position: int = -1) -> Metric:
        """How many tokens are likelier than `target`; it has no gradient."""

        def function(x: Any, ids: Ints, _: Any) -> Any:
            return (x > x[:, ids[0], None]).sum(-1)

        return cls(f"rank of {_named(target)}", function, (target,), position)

    @classmethod
    def kl(cls, *, position: int = -1) -> Metric:
        """KL(reference || this) in nats. The reference is the clean run; for `ablate`, the run of
        the same prompt with nothing ablated."""

        def function(x: Any, _: Ints, reference: Any) -> Any:
            return (_exp(reference) * (reference - log_softmax(x))).sum(-1)

        return cls("KL from the clean run", function, (), position)

    @classmethod
    def of(
        cls, function: Callable[[Any], Any], *, name: str | None = None, position: int = -1
    ) -> Metric:
        """A function of your own: logits (batch, vocab) -> (batch,).

        Attribution patching calls it with a torch tensor, everything else with a numpy array.
        """
        called = name or str(getattr(function, "__name__", type(function).__name__))
        return cls(called, lambda x, *_: function(x), (), position)

    def __repr__(self) -> str:
        return f"Metric({self.name}, position {self.position})"

    def ids(self, runner: Runner, prompts: int = 1) -> Ints:
        """(prompts, tokens) token ids. Raises InputError for a text that is not one token, and for
        a target that is its own foil."""
        columns = [[t] if isinstance(t, _ONE) else list(t) for t in self.tokens]
        for column in columns:
            if len(column) not in (1, prompts):
                raise InputError(
                    f"the metric names {len(column)} tokens for {counted(prompts, 'prompt')}; "
                    "give one, or one a prompt"
                )
        out = np.zeros((prompts, len(columns)), np.int64)
        for i, column in enumerate(columns):
            out[:, i] = [token_id(runner, token) for token in column]
        if len(columns) == 2 and (same := out[:, 0] == out[:, 1]).any():
            token = columns[0][int(same.argmax()) % len(columns[0])]
            raise InputError(
                f"target and foil are both {token!r}, whose difference is always 0; name two tokens"
            )
        return out

    def __call__(self, logits: Any, ids: Ints, reference: Any) -> Any:
        """Logits (batch, vocab) -> (batch,); the rest as for `function`."""
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
    """A metric, or a function of logits (batch, vocab) at the last position, as a metric."""
    if isinstance(metric, Metric):
        return metric
    if not callable(metric):
        raise InputError(f"metric = {metric!r} is neither a Metric nor a function of logits")
    return Metric.of(metric)


def log_softmax(x: Any) -> Any:
    """Log-probabilities over the last axis, of an array or a tensor."""
    if not isinstance(x, np.ndarray):
        return x.log_softmax(-1)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _exp(x: Any) -> Any:
    return np.exp(x) if isinstance(x, np.ndarray) else x.exp()


def _named(token: Tokens, role: str = "target") -> str:
    if isinstance(token, _ONE):
        return repr(token) if isinstance(token, str) else f"token {token}"
    return f"each prompt's {role}"
