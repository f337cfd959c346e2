"""Ablation: the prediction without a head, or without one layer's part.

The ablated value is replaced by zero, by a mean, or by another prompt's value ("resample": Chan et
al. 2022, "Causal Scrubbing"). Which replacement is fair: Zhang and Nanda 2023, arXiv 2309.16042.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2kit.checks import check_choice, check_integer
from gpt2kit.errors import InputError
from gpt2kit.logits import log_softmax
from gpt2kit.progress import OnProgress, Progress
from gpt2kit.prompts import Prompt, counted, prompt_ids
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import ModelResult, Row, array_rows, model_header
from gpt2kit.runner import Runner
from gpt2kit.taps import axes_of
from probes.causal.replacements import KINDS, Replacements
from probes.core.base_run import BaseRun
from probes.core.measure import Measure, ids_up_to_metric
from probes.core.metrics import AnyMetric, as_metric
from probes.core.patch_places import patch_places
from probes.core.places import Places, sizes_in_words, swept_taps
from probes.core.saving import Saving, sum_savings

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, eq=False)
class Ablation(ModelResult):
    """The metric with each head, or each layer's part, ablated at all positions."""

    ablation: str  # zero, mean or resample; `kind` in saved data is the kind of result
    put_in: str  # the replacement, in words
    metric: str
    over: str
    axes: tuple[str, ...]  # (layer,) or (layer, head); (tap,) outside the blocks
    lengths: tuple[int, ...]  # (prompts,) tokens of each, up to the metric's position
    baseline: Floats  # (prompts,) the metric without ablation
    values: Floats  # (prompts, *axes) the metric
    effect: Floats  # (*axes) mean over the prompts of values - baseline
    saving: tuple[Saving, ...]  # one a prompt

    @property
    def kind(self) -> str:
        """The kind of ablation: zero, mean or resample."""
        return self.ablation

    def __repr__(self) -> str:
        most = np.unravel_index(int(np.abs(self.effect).argmax()), self.effect.shape)
        where = ", ".join(
            f"{axis} {self.over if axis == 'tap' else i}"
            for axis, i in zip(self.axes, most, strict=True)
        )
        return (
            f"Ablation({self.kind} of {self.over}, {sizes_in_words(self.axes, self.effect)}, "
            f"{counted(len(self.lengths), 'prompt')}; strongest at {where}: "
            f"{self.effect[most]:+.3g}; print it for the grid)"
        )

    def table(self) -> list[Row]:
        """One row for each prompt and place: the metric there, and without ablation."""
        rows = array_rows({"value": self.values}, ("prompt", *self.axes))
        return [
            row
            | ({"tap": self.over} if "tap" in row else {})
            | {"baseline": float(self.baseline[row["prompt"]])}
            for row in rows
        ]

    def render(self) -> RenderableType:
        """A grid of layers by heads."""
        from probes.draw.layer_grid import sweep_grid

        values = self.effect.reshape(len(self.effect), -1)
        one = len(self.lengths) == 1
        read = counted(self.lengths[0], "token") if one else counted(len(self.lengths), "prompt")
        columns: dict[str, list[str]] = {}
        if "head" in self.axes:
            columns["head"] = [str(head) for head in range(values.shape[1])]
        elif "layer" in self.axes:
            columns[""] = [self.over]
        mean = "" if one else ", mean of all"
        return sweep_grid(
            (f"{self.kind} ablation of {self.over}", self.source, self.dtype, read),
            [f"{self.metric}: {self.baseline.mean():.4g}{mean}", f"put in: {self.put_in}"],
            sum_savings(self.saving).lines(),
            values,
            columns,
            most=max(float(np.abs(values).max()), 1e-12),
            legend="cell: change of the metric",
            tap=self.over if self.axes[0] == "tap" else None,
        )


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
    """Ablate each head (each layer's part, if the tap has no heads) at all positions.

    prompts: one or several, text or token ids, of any lengths; the metric may name one token for
             each prompt.
    over:    a tap of the blocks, "z", "mlp_out", …, or one outside them, such as "embed".
    kind:    "zero"; "mean": the mean over all positions of all reference prompts, the same at every
             position; "resample": position by position the value of a reference prompt, drawn for
             each prompt from those with at least as many tokens.
    reference: by default the prompts themselves; "resample" then draws another prompt.
    on_progress: called after each batch with (places done, all places).
    Raises InputError for an unknown kind or tap, or if there is no prompt to draw.
    """
    check_integer("seed", seed, 0)
    taps = _ablated_taps(over, kind, runner.config.n_layer)
    metric = as_metric(metric)
    rows = _prompt_rows(runner, "prompts", prompts)
    ids = metric.ids(runner, len(rows))
    others = None if reference is None else _prompt_rows(runner, "reference", reference)
    replacements = Replacements(runner, taps, kind, rows, others, seed)
    places = Places.of(taps[0], {"head": runner.config.n_head}, each_position=False)
    progress = Progress(on_progress, len(rows) * len(taps) * len(places.each))
    found = list[_AblatedPrompt]()
    for i, row in enumerate(rows):
        base = BaseRun(runner, ids_up_to_metric(row, metric), taps)
        measure = Measure(metric, ids[i], log_softmax(base.logits))
        found.append(_ablate_prompt(base, replacements.values(i, base), places, measure, progress))
    values = np.stack([one.values for one in found])
    baseline = np.array([one.baseline for one in found])
    return Ablation(
        **model_header(runner),
        ablation=kind,
        put_in=replacements.in_words,
        metric=metric.name,
        over=over,
        axes=places.axes,
        lengths=tuple(one.length for one in found),
        baseline=baseline,
        values=values,
        effect=values.mean(0) - baseline.mean(),
        saving=tuple(one.saving for one in found),
    )


@dataclass(frozen=True)
class _AblatedPrompt:
    length: int  # tokens
    baseline: float
    values: Floats  # (taps, *places)
    saving: Saving


def _ablate_prompt(
    base: BaseRun,
    new: Mapping[str, Floats],
    places: Places,
    measure: Measure,
    progress: Progress,
) -> _AblatedPrompt:
    """The metric of one prompt with each place replaced by its part of `new`, tap -> value."""
    values = [
        patch_places(base, tap, value, places.each, measure, progress) for tap, value in new.items()
    ]
    shape = (len(new), *places.shape)
    baseline = float(measure.of_logits(base.logits[None])[0])
    return _AblatedPrompt(len(base.ids), baseline, np.array(values).reshape(shape), base.saving())


def _ablated_taps(over: str, kind: str, n_layer: int) -> tuple[str, ...]:
    """The taps to ablate. Raises InputError for an unknown kind, or one without a meaning there."""
    check_choice("kind", kind, KINDS)
    taps = swept_taps(over, n_layer)
    if kind == "mean" and "key" in axes_of(taps[0]):
        raise InputError(f"{over} has no mean over positions; ablate z, or take another kind")
    return taps


def _prompt_rows(runner: Runner, name: str, prompts: Prompt | Sequence[Prompt]) -> list[Ints]:
    """The ids of each prompt. Raises InputError, naming the argument, for another type."""
    if isinstance(prompts, str):
        return [prompt_ids(runner, prompts)]
    if not isinstance(prompts, Sequence | np.ndarray):
        raise InputError(f"{name} = {prompts!r} must be a prompt or a list of prompts")
    if not len(prompts):
        raise InputError(f"no {name} were given" if name == "prompts" else f"{name} is empty")
    if isinstance(prompts[0], int | np.integer):
        return [prompt_ids(runner, prompts)]  # type: ignore[arg-type]
    each: list[Any] = list(prompts)
    if not all(isinstance(prompt, str | Sequence | np.ndarray) for prompt in each):
        raise InputError(f"{name} = {prompts!r} must be a prompt or a list of prompts")
    return [prompt_ids(runner, prompt) for prompt in each]
