"""The values that ablation puts in place of the ablated ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gpt2kit.errors import InputError
from gpt2kit.finite import finite_run
from gpt2kit.prompts import counted
from gpt2kit.readout import Floats, Ints
from gpt2kit.runner import Runner
from probes.core.base_run import BaseRun

KINDS = ("zero", "mean", "resample")


class Replacements:
    """Replacements of one kind for several taps.

    prompts: the ids of the ablated prompts. reference: ids of the prompts that the mean is of, or
    that are drawn from; None for the ablated prompts themselves. in_words: the replacement, for a
    result.
    """

    def __init__(
        self,
        runner: Runner,
        taps: Sequence[str],
        kind: str,
        prompts: Sequence[Ints],
        reference: Sequence[Ints] | None,
        seed: int,
    ) -> None:
        self.runner, self.taps, self.kind = runner, taps, kind
        self.own, self.prompts = reference is None, len(prompts)
        self.reference = prompts if reference is None else reference
        self.random = np.random.default_rng(seed)
        count = len(self.reference)
        self.in_words = {
            "zero": "0",
            "mean": f"the mean over the positions of {counted(count, 'prompt')}",
            "resample": "the values of " + (f"one of {count} prompts" if count > 1 else "1 prompt"),
        }[kind]
        self.means = self._means() if kind == "mean" else {}

    def values(self, prompt: int, base: BaseRun) -> Mapping[str, Floats]:
        """Tap -> replacement for one prompt, of the shape of its value without the batch axis.

        Raises InputError if no reference prompt is long enough to be drawn.
        """
        if self.kind == "zero":
            return {tap: np.zeros_like(base.taps[tap][0]) for tap in self.taps}
        if self.kind == "mean":
            shapes = {tap: base.taps[tap].shape[1:] for tap in self.taps}
            return {tap: np.broadcast_to(self.means[tap], shapes[tap]) for tap in self.taps}
        return self._of_drawn_prompt(prompt, len(base.ids))

    def _means(self) -> dict[str, Floats]:
        """Tap -> (1, …) mean over the positions of all reference prompts."""
        runs = [self._values(ids) for ids in self.reference]
        return {
            tap: np.concatenate([run[tap][0] for run in runs]).mean(0, keepdims=True)
            for tap in self.taps
        }

    def _of_drawn_prompt(self, prompt: int, length: int) -> Mapping[str, Floats]:
        long_enough = [
            ids[:length]
            for i, ids in enumerate(self.reference)
            if len(ids) >= length and not (self.own and i == prompt)
        ]
        if not long_enough:
            which = "the prompt" if self.prompts == 1 else f"prompt {prompt}"
            what = "other prompt" if self.own else "reference prompt"
            raise InputError(
                f"{which} has {counted(length, 'token')} and no {what} has as many to resample "
                "from; give longer ones as reference"
            )
        ids = long_enough[int(self.random.integers(len(long_enough)))]
        taps = self._values(ids)
        return {tap: taps[tap][0] for tap in self.taps}

    def _values(self, ids: Ints) -> Mapping[str, Floats]:
        """Tap -> its value in a run of a reference prompt, with a batch axis of 1."""
        return finite_run(self.runner, ids, taps=self.taps, last_only=True).taps
