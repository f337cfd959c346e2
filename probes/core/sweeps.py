"""What the causal probes share: prompts side by side, and many edited copies of one run.

Edited copies are rows of one batch, and a row starts at the layer that it changes: below, all rows
are the same, and the unedited run has been there already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from gpt2kit.edits import Edit
from gpt2kit.errors import InputError, TapError
from gpt2kit.logits import log_softmax
from gpt2kit.progress import Progress
from gpt2kit.prompts import Prompt, counted, index, prompt_ids, token_texts
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import Result
from gpt2kit.runner import Run, Runner
from gpt2kit.taps import axes_of, resolve_one, tap_axes
from probes.core.batching import row_batches
from probes.core.metrics import AnyMetric, Metric, as_metric

Cell = Mapping[str, int]  # a place in a tap: axis -> index; all of the axes that it does not name
OUTSIDE = tuple(tap for tap in tap_axes(1) if not tap.startswith("blocks."))


@dataclass(frozen=True, eq=False)
class Saving(Result):
    """What sharing the unaffected layers saved; a naive sweep runs the whole model for each place.

    On an engine that cannot start at a later layer, `layers_run` equals `layers_naive`, and only
    the batches are left. What a naive sweep takes is an estimate: the time of one plain run, which
    is measured when the sweep is over, times their number.
    """

    layers_run: int  # layers x rows
    layers_naive: int
    batches: tuple[int, ...]  # rows run together, batch by batch
    seconds: float  # that all batches took
    seconds_naive: float  # estimated

    def lines(self) -> tuple[str, str]:
        """What was run, and how long it took."""
        fewer = self.layers_run < self.layers_naive
        layers = f"instead of {self.layers_naive}" if fewer else "with none shared"
        return (
            f"{counted(sum(self.batches), 'run')} in {len(self.batches)} "
            f"{'batch' if len(self.batches) == 1 else 'batches'} of up to "
            f"{max(self.batches, default=0)}, {counted(self.layers_run, 'layer')} {layers}",
            f"{self.seconds:.3g} s; one by one about {self.seconds_naive:.3g} s, as one was timed",
        )

    def __repr__(self) -> str:
        return "; ".join(self.lines())


def total(savings: Sequence[Saving]) -> Saving:
    """What several sweeps took together."""
    return Saving(
        sum(x.layers_run for x in savings),
        sum(x.layers_naive for x in savings),
        tuple(rows for x in savings for rows in x.batches),
        sum(x.seconds for x in savings),
        sum(x.seconds_naive for x in savings),
    )


class Base:
    """A prompt that was run once, as the start of edited copies.

    ids: (pos,). taps: those asked for. logits: (vocab,) after the last token.
    """

    def __init__(self, runner: Runner, ids: Ints, taps: Sequence[str] = ()) -> None:
        n_layer = runner.config.n_layer
        self.runner, self.ids, self.n_layer = runner, ids, n_layer
        self._run_from = getattr(runner, "run_from", None)
        self._entries = [f"blocks.{i}.resid_pre" for i in range(n_layer)]
        self._entries.append(f"blocks.{n_layer - 1}.resid_post")
        entries = self._entries if self._run_from else []
        run = runner.run(ids, taps=[*taps, *entries], last_only=True)
        self.taps, self.logits = run.taps, run.logits[0, -1]
        self._layers, self._batches, self._seconds = 0, list[int](), 0.0

    def copies(self, layer: int, rows: int, edits: Sequence[Edit], taps: Sequence[str] = ()) -> Run:
        """`rows` copies with edits and taps at `layer` or above (-1: before layer 0); logits of the
        last position."""
        start = perf_counter()
        self._batches.append(rows)
        if self._run_from is None or layer < 0:
            self._layers += rows * self.n_layer
            ids = np.tile(self.ids, (rows, 1))
            run = self.runner.run(ids, edits=edits, taps=taps, last_only=True)
        else:
            self._layers += rows * (self.n_layer - layer)
            stream = np.repeat(self.taps[self._entries[layer]], rows, axis=0)
            run = self._run_from(layer, stream, edits=edits, taps=taps, last_only=True)
        self._seconds += perf_counter() - start
        return run

    def saving(self) -> Saving:
        """What all copies so far took; runs the prompt once more to time that."""
        start = perf_counter()
        self.runner.run(self.ids, last_only=True)
        one, runs = perf_counter() - start, sum(self._batches)
        return Saving(
            self._layers, runs * self.n_layer, tuple(self._batches), self._seconds, runs * one
        )


@dataclass(frozen=True)
class Measure:
    """A metric of one prompt. ids: (tokens,). reference: (vocab,) log-probabilities."""

    metric: Metric
    ids: Ints
    reference: Floats

    def __call__(self, run: Run) -> Floats:
        """(rows,) of what is read after the last token, in float64."""
        return self.of(run.logits[:, -1])

    def of(self, logits: Floats) -> Floats:
        """(rows,) of logits (rows, vocab)."""
        return np.asarray(self.metric(logits, self.ids, self.reference), np.float64)


@dataclass(frozen=True)
class Pair:
    """A clean and a corrupt prompt of equal length, both run, and a metric of both."""

    clean: Base
    corrupt: Base
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
    ) -> Pair:
        """Run the clean prompt with `taps`, and the corrupt one.

        What follows the metric's position cannot matter to it, and is left out.
        """
        metric = as_metric(metric)
        ids = metric.ids(runner)[0]
        rows = [prompt_ids(runner, prompt) for prompt in prompts]
        if len(rows[0]) != len(rows[1]):
            raise InputError(
                f"the clean prompt has {counted(len(rows[0]), 'token')} and the corrupt one "
                f"{len(rows[1])}; "
                "patching goes position by position, so give prompts of equally many tokens"
            )
        rows = [up_to(row, metric) for row in rows]
        clean = Base(runner, rows[0], taps)
        corrupt = Base(runner, rows[1], corrupt_taps)
        measure = Measure(metric, ids, log_softmax(clean.logits))
        values = [float(measure.of(b.logits[None])[0]) for b in (clean, corrupt)]
        if not abs(values[0] - values[1]) > 1e-6 * max(map(abs, values)):
            raise InputError(
                f"the {metric.name} is {values[0]:.6g} on the clean prompt and {values[1]:.6g} on "
                "the corrupt one; nothing can be normalised by that, take other prompts or tokens"
            )
        texts = [token_texts(runner, row) for row in rows]
        return cls(clean, corrupt, texts[0], texts[1], measure, values[0], values[1])

    def normalise(self, values: Floats) -> Floats:
        """0 where they are as in the corrupt run, 1 as in the clean one."""
        out: Floats = (values - self.corrupt_value) / (self.clean_value - self.corrupt_value)
        return out


def patched(
    base: Base, tap: str, value: Floats, cells: Sequence[Cell], measure: Measure, progress: Progress
) -> Floats:
    """(cells,) the metric with `value`, the tap's without its batch axis, put in at each cell."""
    layer, found = layer_of(tap, base.n_layer), []
    for part in row_batches(cells, len(base.ids)):
        found.append(measure(base.copies(layer, len(part), [replacing(tap, value, part)])))
        progress.add(len(part))
    return np.concatenate(found)


def replacing(tap: str, value: Floats, cells: Sequence[Cell]) -> Edit:
    """One edit of a batch: row by row, `value` in place of what is at that row's cell."""
    axes = axes_of(tap)[1:]
    width = value.shape[-1] if axes[-1] in cells[0] else 1
    hit = np.zeros((len(cells), *value.shape[:-1], width), bool)
    for row, cell in zip(hit, cells, strict=True):
        row[tuple(cell.get(axis, slice(None)) for axis in axes)] = True
    return Edit(tap, ~hit, np.where(hit, value, 0))


def swept_taps(over: str, n_layer: int) -> tuple[str, ...]:
    """The tap `over` of every block, bottom to top, or the one tap outside the blocks. Raises
    TapError for an unknown one."""
    if over in OUTSIDE:
        return (over,)
    if over.startswith("blocks."):
        name = over.split(".", 2)[-1]
        raise TapError(f"over = {over!r}: a sweep goes over every layer; name {name!r} alone")
    return tuple(resolve_one(f"blocks.{i}.{over}", n_layer) for i in range(n_layer))


def layer_of(tap: str, n_layer: int) -> int:
    """The first layer whose computation a tap changes: -1 for what the first stream is made of,
    n_layer for the last stream and what is made of it."""
    if tap in OUTSIDE:
        return n_layer if tap.startswith("ln_f") else -1
    _, layer, kind = tap.split(".")
    return int(layer) + (kind == "resid_post")


def up_to(ids: Ints, metric: Metric) -> Ints:
    """The prompt up to the position that the metric judges."""
    return ids[: index(metric.position, len(ids), "the metric's position") + 1]
