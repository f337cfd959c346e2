"""Measurements on `greater_than`: which years follow, and which parts of the model decide it.

Each function takes a runner and returns numbers. `<|endoftext|>` stands before every prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from gpt2kit.logits import log_softmax
from gpt2kit.prompts import tokenizer_of
from gpt2kit.readout import Floats
from gpt2kit.runner import Runner
from probes.causal.patching import activation_patching
from probes.facts.measures import LayerHead, ids_of, last_logits, ranks
from probes.tasks.greater_than import greater_than


def years(runner: Runner) -> Sequence[float]:
    """(1,) probability of later years minus probability of earlier ones, mean over the prompts."""
    found = [metric(last_logits(runner, ids)[None]) for ids, _, metric in _years(runner)]
    return [float(np.mean(found))]


def years_patching(runner: Runner, *, over: str, places: Sequence[LayerHead]) -> Sequence[float]:
    """Ranks by how far `years` falls when a head's z, or a layer's MLP output, is patched.

    The value at the last position comes from the same prompt with the year 01. over: "z", or
    "mlp_out", whose places are (layer, 0).
    """
    falls = []
    for ids, ids_01, metric in _years(runner):
        found = activation_patching(runner, ids_01, ids, metric=metric, over=over, positions=[-1])
        falls.append((found.corrupt - found.values).reshape(runner.config.n_layer, -1))
    return ranks(np.mean(falls, axis=0), places)


def _years(runner: Runner) -> Iterator[tuple[list[int], list[int], Callable[[Floats], Floats]]]:
    """Ids of a prompt, ids of the same with the year 01, and logits (batch, vocab) -> (batch,)."""
    data = greater_than(tokenizer_of(runner), 8)
    for i, texts in enumerate(zip(data.prompts, data.corrupt, strict=True)):
        ids, ids_01 = (ids_of(runner, text) for text in texts)
        right, wrong = list(data.right_ids[i]), list(data.wrong_ids[i])
        yield ids, ids_01, partial(_later, right=right, wrong=wrong)


def _later(logits: Floats, right: list[int], wrong: list[int]) -> Floats:
    """(batch,) probability of the right tokens minus probability of the wrong ones."""
    p: Floats = np.exp(log_softmax(logits))
    out: Floats = p[:, right].sum(-1) - p[:, wrong].sum(-1)
    return out
