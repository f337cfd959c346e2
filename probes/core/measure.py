"""A metric made ready for one prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpt2kit.prompts import index
from gpt2kit.readout import Floats, Ints
from gpt2kit.runner import Run
from probes.core.metrics import Metric


@dataclass(frozen=True)
class Measure:
    """A metric, the token ids it is about, and its reference.

    ids: (tokens,). reference: (vocab,) log-probabilities of the reference run.
    """

    metric: Metric
    ids: Ints
    reference: Floats

    def __call__(self, run: Run) -> Floats:
        """(rows,) the metric after the last token of each row, float64."""
        return self.of_logits(run.logits[:, -1])

    def of_logits(self, logits: Floats) -> Floats:
        """(rows, vocab) -> (rows,) the metric of these logits, float64."""
        return np.asarray(self.metric(logits, self.ids, self.reference), np.float64)


def ids_up_to_metric(ids: Ints, metric: Metric) -> Ints:
    """The prompt (pos,) cut after the position that the metric judges; later tokens change nothing
    there. Raises InputError for a position outside the prompt."""
    return ids[: index(metric.position, len(ids), "the metric's position") + 1]
