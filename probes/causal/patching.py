"""Activation patching: the prediction with one activation replaced by another prompt's.

Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262; how to do it well: Zhang and
Nanda 2023, arXiv 2309.16042.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.progress import OnProgress, Progress
from gpt2kit.prompts import Prompt, Selection, counted
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import ModelResult, Row, array_rows, model_header
from gpt2kit.runner import Runner
from probes.core.metrics import AnyMetric
from probes.core.patch_places import patch_places
from probes.core.places import Places, sizes_in_words, swept_taps
from probes.core.prompt_pair import PromptPair
from probes.core.saving import Saving

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, eq=False)
class Patching(ModelResult):
    """The metric with each place patched, and where it lies between the corrupt and the clean run.

    `axes` names the axes of `values` and `normalised`: "layer" ("tap", of size 1, where `over` is
    outside the blocks), then "head", "position" and "key" where these were tried one by one. Along
    every other axis, all of the activation is patched together.
    """

    method: str
    metric: str
    over: str  # the tap blocks.*.{over}, or one outside the blocks
    axes: tuple[str, ...]
    values: Floats  # the metric, in its own units
    normalised: Floats  # 0 as in the corrupt run, 1 as in the clean run
    clean: float  # the metric of the clean run
    corrupt: float
    heads: Ints | None  # (H,)
    positions: Ints | None  # (P,)
    keys: Ints | None  # (K,)
    clean_tokens: tuple[str, ...]  # (N,), up to the metric's position
    corrupt_tokens: tuple[str, ...]  # (N,)
    saving: Saving | None  # None where nothing was swept

    def __repr__(self) -> str:
        most = np.unravel_index(int(np.abs(self.normalised).argmax()), self.normalised.shape)
        indices = self._indices()
        where = ", ".join(
            f"{axis} {self.over if axis == 'tap' else indices[axis][i] if axis in indices else i}"
            for axis, i in zip(self.axes, most, strict=True)
        )
        return (
            f"Patching({self.method} of {self.over}, {sizes_in_words(self.axes, self.values)}; "
            f"strongest at {where}: {self.normalised[most]:+.2f}; print it for the grid)"
        )

    def _indices(self) -> dict[str, list[int]]:
        """Axis -> the indices that were tried."""
        tried = {"head": self.heads, "position": self.positions, "key": self.keys}
        return {axis: chosen.tolist() for axis, chosen in tried.items() if chosen is not None}

    def table(self) -> list[Row]:
        """One row for each place; heads, positions and keys as in the prompt."""
        rows = array_rows({"value": self.values, "normalised": self.normalised}, self.axes)
        indices = self._indices() | {"tap": [self.over]}
        return [
            {name: indices[name][x] if name in indices else x for name, x in row.items()}
            for row in rows
        ]

    def render(self) -> RenderableType:
        """A grid of layers by heads or positions; further axes are shown at their strongest."""
        from probes.draw.layer_grid import sweep_grid

        values = self.normalised.reshape(*self.normalised.shape[:2], -1)
        strongest = np.abs(values).argmax(-1)[..., None]
        values = np.take_along_axis(values, strongest, -1)[..., 0]
        read = counted(len(self.clean_tokens), "token")
        lines = [f"{self.metric}: {self.clean:.4g} clean, {self.corrupt:.4g} corrupt"]
        tried = zip(self.axes[2:], self.values.shape[2:], strict=True)
        if several := [axis for axis, count in tried if count > 1]:
            lines.append(f"each at its strongest {' and '.join(several)}")
        columns: dict[str, Sequence[str]] = {}
        if self.heads is not None:
            columns["head"] = [str(h) for h in self.heads]
        elif self.positions is not None:
            columns["clean"] = [self.clean_tokens[p] for p in self.positions]
            columns["corrupt"] = [self.corrupt_tokens[p] for p in self.positions]
            columns["pos"] = [str(p) for p in self.positions]
        return sweep_grid(
            (f"{self.method} of {self.over}", self.source, self.dtype, read),
            lines,
            self.saving.lines() if self.saving is not None else (),
            values,
            columns,
            most=1.0,
            legend="cell: 0 as in the corrupt run, 1 as in the clean one",
            tap=self.over if self.axes[0] == "tap" else None,
        )


def activation_patching(
    runner: Runner,
    clean: Prompt,
    corrupt: Prompt,
    *,
    metric: AnyMetric,
    over: str = "resid_post",
    heads: Selection = None,
    positions: Selection = None,
    keys: Selection = None,
    on_progress: OnProgress | None = None,
) -> Patching:
    """Run the corrupt prompt with one activation of the clean run put in, place after place.

    This direction ("denoising") shows which places suffice to bring the clean answer back. Swap the
    prompts for the other direction ("noising"), which shows which places the answer needs.

    clean, corrupt: text or token ids, equally many tokens.
    metric: a `Metric`, or a function of logits (batch, vocab) after the last token -> (batch,).
    over:   a tap of the blocks: "resid_pre", "resid_post", "z", "attn_out", "mlp_out", "pattern",
            …; or one outside the blocks: "embed", "pos_embed", "ln_f", "ln_f_scale".
    heads:  which heads, one by one, if the tap has heads; all by default.
    positions: which positions (queries, for "pattern"), one by one; `slice(None)` for all. By
            default one by one for a tap without heads, all together for a tap with heads.
    keys:   for "pattern" and "attn_scores", which keys, one by one; by default all together.
    on_progress: called after each batch with (places done, all places).
    Raises InputError for prompts of unequal length, an unknown tap or place, a target that is not
    one token, or a metric that is equal on both prompts; EditError if the engine cannot edit the
    tap.
    """
    taps = swept_taps(over, runner.config.n_layer)
    pair = PromptPair.of(runner, (clean, corrupt), metric, taps)
    sizes = {"head": runner.config.n_head, "position": len(pair.clean.ids)}
    places = Places.of(taps[0], sizes, heads, positions, keys, each_position=True)
    progress = Progress(on_progress, len(taps) * len(places.each))
    values = [
        patch_places(
            pair.corrupt, tap, pair.clean.taps[tap][0], places.each, pair.measure, progress
        )
        for tap in taps
    ]
    saving = pair.corrupt.saving()
    return make_patching(
        runner, pair, places, over, np.stack(values), saving, "activation patching"
    )


def make_patching(
    runner: Runner,
    pair: PromptPair,
    places: Places,
    over: str,
    values: Floats,
    saving: Saving | None,
    method: str,
) -> Patching:
    """The result of a sweep, given the metric at every place, (layers, places)."""
    values = values.reshape(len(values), *places.shape)
    return Patching(
        **model_header(runner),
        method=method,
        metric=pair.measure.metric.name,
        over=over,
        axes=places.axes,
        values=values,
        normalised=pair.normalise(values),
        clean=pair.clean_value,
        corrupt=pair.corrupt_value,
        heads=places.heads,
        positions=places.positions,
        keys=places.keys,
        clean_tokens=pair.clean_tokens,
        corrupt_tokens=pair.corrupt_tokens,
        saving=saving,
    )
