"""The values of taps at one position of each of many prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gpt2kit.errors import InputError, TapError
from gpt2kit.finite import finite_run
from gpt2kit.prompts import index, prompt_ids
from gpt2kit.readout import Floats
from gpt2kit.runner import Runner
from gpt2kit.taps import axes_of, resolve
from probes.core.batching import batches_by_tokens

Prompts = Sequence[str] | Sequence[Sequence[int]]


def collect(
    runner: Runner,
    prompts: Prompts,
    *,
    taps: str | Iterable[str],
    position: int = -1,
    name: str = "prompts",
) -> dict[str, Floats]:
    """Canonical tap -> (prompts, …) its value at one position of each prompt; run in batches.

    position: negative ones count from each prompt's own end. name: the argument that errors name.
    Raises TapError for a tap without positions, InputError for a prompt that is too short.
    """
    chosen = resolve(taps, runner.config.n_layer, argument="tap")
    for tap in chosen:
        if axes_of(tap)[1] != "pos":
            raise TapError(f"{tap} has axes {axes_of(tap)}: it has no value at a position")
    rows = [prompt_ids(runner, prompt).tolist() for prompt in check_prompts(prompts, name)]
    shortest = min(range(len(rows)), key=lambda i: len(rows[i]))
    index(position, len(rows[shortest]), where=f"prompt {shortest}")
    found: dict[str, list[Floats]] = {tap: [] for tap in chosen}
    for batch in batches_by_tokens(rows):
        run = finite_run(runner, batch, taps=chosen, last_only=True, top_k=1)
        columns = [position % len(row) for row in batch]
        for tap in chosen:
            found[tap].append(run.taps[tap][np.arange(len(batch)), columns])
    return {tap: np.concatenate(parts) for tap, parts in found.items()}


def check_prompts(prompts: Any, name: str = "prompts") -> Prompts:
    """The prompts. Raises InputError, which names the argument, unless they are a list of some."""
    if not isinstance(prompts, Sequence | np.ndarray) or isinstance(prompts, str):
        raise InputError(f"{name} = {prompts!r} must be a list of at least one prompt")
    if not len(prompts):
        raise InputError(f"{name} must be a list of at least one prompt; it is empty")
    return prompts  # type: ignore[return-value]
