"""One run of a prompt, and edited copies of it.

The copies are rows of one batch. On an engine that can start at a later layer (`LayerRunner`) they
start at the first layer that an edit changes: below it every copy equals the base run, whose
residual stream is reused.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from gpt2kit.edits import Edit
from gpt2kit.finite import finite_run, require_finite_run
from gpt2kit.readout import Ints
from gpt2kit.runner import LayerRunner, Run, Runner
from gpt2kit.taps import residual_stream
from probes.core.saving import Saving


class BaseRun:
    """A prompt that was run once, without edits.

    ids: (pos,). taps: the taps asked for. logits: (vocab,) after the last token.
    """

    def __init__(self, runner: Runner, ids: Ints, taps: Sequence[str] = ()) -> None:
        n_layer = runner.config.n_layer
        self.runner, self.ids, self.n_layer = runner, ids, n_layer
        self._entries = residual_stream(n_layer)
        entries = self._entries if isinstance(runner, LayerRunner) else ()
        run = finite_run(runner, ids, taps=[*taps, *entries], last_only=True)
        self.taps, self.logits = run.taps, run.logits[0, -1]
        self._layers, self._batches, self._seconds = 0, list[int](), 0.0

    def run_copies(
        self, layer: int, rows: int, edits: Sequence[Edit], taps: Sequence[str] = ()
    ) -> Run:
        """Run `rows` copies; logits of the last position.

        layer: edits and taps are at this layer or later; -1 for the embeddings, n_layer for what
        comes after the last layer.
        """
        start = perf_counter()
        self._batches.append(rows)
        ids = np.tile(self.ids, (rows, 1))
        if isinstance(self.runner, LayerRunner) and layer >= 0:
            self._layers += rows * (self.n_layer - layer)
            stream = np.repeat(self.taps[self._entries[layer]], rows, axis=0)
            run = self.runner.run_from(layer, stream, edits=edits, taps=taps, last_only=True)
            require_finite_run(self.runner, run, ids, edits)
        else:
            self._layers += rows * self.n_layer
            run = finite_run(self.runner, ids, edits=edits, taps=taps, last_only=True)
        self._seconds += perf_counter() - start
        return run

    def saving(self) -> Saving:
        """The saving of all copies so far; runs the prompt once more to time a plain run."""
        start = perf_counter()
        finite_run(self.runner, self.ids, last_only=True)
        runs = sum(self._batches)
        return Saving(
            layers_run=self._layers,
            layers_naive=runs * self.n_layer,
            batches=tuple(self._batches),
            seconds=self._seconds,
            seconds_naive=(perf_counter() - start) * runs,
        )
