"""A clean and a corrupt prompt, both run, and how a metric judges them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt2kit.errors import InputError
from gpt2kit.logits import log_softmax
from gpt2kit.prompts import Prompt, counted, prompt_ids, token_texts
from gpt2kit.readout import Floats, Ints
from gpt2kit.runner import Runner
from probes.core.base_run import BaseRun
from probes.core.measure import Measure, ids_up_to_metric
from probes.core.metrics import AnyMetric, as_metric


@dataclass(frozen=True)
class PromptPair:
    """Two runs of equally many tokens. `measure`'s reference is the clean run."""

    clean: BaseRun
    corrupt: BaseRun
    clean_tokens: tuple[str, ...]  # (pos,)
    corrupt_tokens: tuple[str, ...]  # (pos,)
    measure: Measure
    clean_value: float
    corrupt_value: float

    @classmethod
    def of(
        cls,
        runner: Runner,
        prompts: tuple[Prompt, Prompt],
        metric: AnyMetric,
        taps: Sequence[str],
        *,
        corrupt_taps: Sequence[str] = (),
    ) -> PromptPair:
        """Run the clean prompt with `taps`, the corrupt one with `corrupt_taps`.

        Both are cut after the metric's position. Raises InputError for prompts of unequal length,
        and if the metric is the same on both.
        """
        metric = as_metric(metric)
        ids = metric.ids(runner)[0]
        rows = _equal_rows(runner, *prompts)
        clean, corrupt = (
            BaseRun(runner, ids_up_to_metric(row, metric), names)
            for row, names in zip(rows, (taps, corrupt_taps), strict=True)
        )
        measure = Measure(metric, ids, log_softmax(clean.logits))
        clean_value, corrupt_value = (
            float(measure.of_logits(run.logits[None])[0]) for run in (clean, corrupt)
        )
        if not abs(clean_value - corrupt_value) > 1e-6 * max(abs(clean_value), abs(corrupt_value)):
            raise InputError(
                f"the {metric.name} is {clean_value:.6g} on the clean prompt and "
                f"{corrupt_value:.6g} on the corrupt one; effects are normalised by the "
                "difference, so take prompts or tokens for which the values differ"
            )
        texts = [token_texts(runner, run.ids) for run in (clean, corrupt)]
        return cls(clean, corrupt, texts[0], texts[1], measure, clean_value, corrupt_value)

    def normalise(self, values: Floats) -> Floats:
        """The metric's values, scaled so that the corrupt run is 0 and the clean run is 1."""
        out: Floats = (values - self.corrupt_value) / (self.clean_value - self.corrupt_value)
        return out


def _equal_rows(runner: Runner, clean: Prompt, corrupt: Prompt) -> list[Ints]:
    """The two prompts' ids. Raises InputError unless they have equally many tokens."""
    for name, prompt in (("clean", clean), ("corrupt", corrupt)):
        if not isinstance(prompt, str | Sequence | np.ndarray):
            raise InputError(f"{name} = {prompt!r} must be a text or a row of token ids")
    rows = [prompt_ids(runner, prompt) for prompt in (clean, corrupt)]
    if len(rows[0]) != len(rows[1]):
        raise InputError(
            f"the clean prompt has {counted(len(rows[0]), 'token')} and the corrupt one "
            f"{len(rows[1])}; "
            "patching goes position by position, so give prompts of equally many tokens"
        )
    return rows
