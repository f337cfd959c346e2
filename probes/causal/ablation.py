"""Ablation: what the prediction becomes without a head, or without a layer's part.

In its place comes nothing, a mean, or the value of another prompt ("resample": Chan et al. 2022,
"Causal Scrubbing"); which of them is fair: Zhang and Nanda 2023, arXiv 2309.16042.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from gpt2kit.errors import InputError
from gpt2kit.logits import log_softmax
from gpt2kit.progress import OnProgress, Progress
from gpt2kit.prompts import Prompt, counted, prompt_ids
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import Result
from gpt2kit.runner import Runner
from gpt2kit.taps import axes_of
from probes.causal.patching import Places, grid_of, sizes_of
from probes.core.metrics import AnyMetric, as_metric
from probes.core.sweeps import Base, Measure, Saving, patched, swept_taps, total, up_to
from probes.draw.colours import bar, diverging
from probes.draw.words import title

KINDS = ("zero", "mean", "resample")


@dataclass(frozen=True, eq=False)
class Ablation(Result):
    """The metric with each head, or each layer's part, ablated at all positions."""

    kind: str  # zero, mean or resample
    put_in: str  # what stands in the ablated place
    source: str
    dtype: str
    metric: str
    over: str
    axes: tuple[str, ...]  # (layer,) or (layer, head); (tap,) outside the blocks
    lengths: tuple[int, ...]  # (prompts,) tokens of each, up to the metric's position
    baseline: Floats  # (prompts,) the metric with nothing ablated
    values: Floats  # (prompts, *axes) the metric
    effect: Floats  # (*axes) mean over the prompts of values - baseline
    saving: tuple[Saving, ...]  # one a prompt

    def __repr__(self) -> str:
        most = np.unravel_index(int(np.abs(self.effect).argmax()), self.effect.shape)
        where = ", ".join(
            f"{axis} {self.over if axis == 'tap' else i}"
            for axis, i in zip(self.axes, most, strict=True)
        )
        return (
            f"Ablation({self.kind} of {self.over}, {sizes_of(self.axes, self.effect)}, "
            f"{counted(len(self.lengths), 'prompt')}; strongest at {where}: "
            f"{self.effect[most]:+.3g}; print it for the grid)"
        )

    def render(self) -> RenderableType:
        """A grid of layers by heads."""
        values = self.effect.reshape(len(self.effect), -1)
        most = max(float(np.abs(values).max()), 1e-12)
        one = len(self.lengths) == 1
        read = counted(self.lengths[0], "token") if one else counted(len(self.lengths), "prompt")
        header = [
            title(f"{self.kind} ablation of {self.over}", self.source, self.dtype, read),
            Text(f"{self.metric}: {self.baseline.mean():.4g}" + (not one) * ", mean of all"),
            bar(diverging, f"{-most:+.2g}", f"{most:+.2g}", "cell: what is added to that"),
            Text(f"put in: {self.put_in}"),
            *(Text(line, "dim") for line in total(self.saving).lines()),
        ]
        columns: dict[str, list[str]] = {}
        if "head" in self.axes:
            columns["head"] = [str(head) for head in range(values.shape[1])]
        elif "layer" in self.axes:
            columns[""] = [self.over]
        return grid_of(self.over, header, values, columns, most=most)


def ablate(
    runner: Runner,
    prompts: Prompt | Sequence[Prompt],
    *,
    metric: AnyMetric,
    over: str = "z",
    kind: str = "zero",
    reference: Prompt | Sequence[Prompt] | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Ablation:
    """Ablate each head (or, where the tap has none, each layer's part) at all positions.

    prompts: one or several, text or token ids, of any lengths; the metric's tokens may be one a
             prompt.
    kind:    "zero"; "mean": one value for all positions, the mean over all positions of all
             reference prompts; "resample": position by position the value of a reference prompt,
             drawn for each prompt from those that are long enough.
    reference: by default the prompts themselves; resampling then draws another one.
    on_progress: called after each batch with the number of places that are done, and of all.
    Raises InputError for an unknown kind or tap, or where there is nothing to draw from.
    """
    if kind not in KINDS:
        raise InputError(f"kind = {kind!r} is not one of {', '.join(KINDS)}")
    taps = swept_taps(over, runner.config.n_layer)
    if kind == "mean" and "key" in axes_of(taps[0]):
        raise InputError(f"{over} has no mean over positions; ablate z, or take another kind")
    metric = as_metric(metric)
    rows = _rows(runner, prompts)
    ids = metric.ids(runner, len(rows))
    others = rows if reference is None else _rows(runner, reference)
    put_in = _PutIn(runner, taps, kind, others, len(rows), own=reference is None, seed=seed)
    cells = (runner.config.n_head if "head" in axes_of(taps[0]) else 1) * len(taps)
    progress = Progress(on_progress, len(rows) * cells)
    values, baselines, savings, lengths = [], [], [], []
    for i, row in enumerate(rows):
        base = Base(runner, up_to(row, metric), taps)
        measure = Measure(metric, ids[i], log_softmax(base.logits))
        sizes = {"head": runner.config.n_head, "position": len(base.ids)}
        places = Places.of(taps[0], sizes, each=False)
        new = put_in(i, base)
        values.append(
            [patched(base, tap, new[tap], places.cells, measure, progress) for tap in taps]
        )
        baselines.append(measure.of(base.logits[None])[0])
        savings.append(base.saving())
        lengths.append(len(base.ids))
    shape = (len(rows), len(taps), *places.shape)
    found, baseline = np.array(values).reshape(shape), np.array(baselines)
    effect = found.mean(0) - baseline.mean()
    return Ablation(
        kind, put_in.words, str(runner.source), runner.precision, metric.name, over, places.axes,
        tuple(lengths), baseline, found, effect, tuple(savings),
    )  # fmt: skip


class _PutIn:
    """What is put in where something is ablated. own: the reference is the prompts themselves."""

    def __init__(
        self,
        runner: Runner,
        taps: Sequence[str],
        kind: str,
        reference: Sequence[Ints],
        prompts: int,
        *,
        own: bool,
        seed: int,
    ) -> None:
        self.runner, self.taps, self.kind, self.reference = runner, taps, kind, reference
        self.own, self.prompts, self.random = own, prompts, np.random.default_rng(seed)
        count = len(reference)
        self.words = {
            "zero": "0",
            "mean": f"the mean over the positions of {counted(count, 'prompt')}",
            "resample": "the values of " + (f"one of {count} prompts" if count > 1 else "1 prompt"),
        }[kind]
        if kind == "mean":
            runs = [runner.run(ids, taps=taps, last_only=True).taps for ids in reference]
            self.means = {
                tap: np.concatenate([run[tap][0] for run in runs]).mean(0, keepdims=True)
                for tap in taps
            }

    def __call__(self, prompt: int, base: Base) -> Mapping[str, Floats]:
        """Tap -> value without the batch axis."""
        if self.kind == "zero":
            return {tap: np.zeros_like(base.taps[tap][0]) for tap in self.taps}
        if self.kind == "mean":
            shapes = {tap: base.taps[tap].shape[1:] for tap in self.taps}
            return {tap: np.broadcast_to(self.means[tap], shapes[tap]) for tap in self.taps}
        return self._drawn(prompt, len(base.ids))

    def _drawn(self, prompt: int, length: int) -> Mapping[str, Floats]:
        fit = [
            ids[:length]
            for i, ids in enumerate(self.reference)
            if len(ids) >= length and not (self.own and i == prompt)
        ]
        if not fit:
            which = "the prompt" if self.prompts == 1 else f"prompt {prompt}"
            what = "other prompt" if self.own else "reference prompt"
            raise InputError(
                f"{which} has {counted(length, 'token')} and no {what} has as many to resample "
                "from; give longer ones as reference"
            )
        ids = fit[int(self.random.integers(len(fit)))]
        taps = self.runner.run(ids, taps=self.taps, last_only=True).taps
        return {tap: taps[tap][0] for tap in self.taps}


def _rows(runner: Runner, prompts: Prompt | Sequence[Prompt]) -> list[Ints]:
    if not len(prompts) and not isinstance(prompts, str):
        raise InputError("no prompts were given")
    one = isinstance(prompts, str) or isinstance(prompts[0], int | np.integer)
    each: Sequence[Any] = [prompts] if one else prompts
    return [prompt_ids(runner, prompt) for prompt in each]
