"""Activation patching: what the prediction becomes with one value of another prompt's run.

Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262; how to do it well: Zhang and
Nanda 2023, arXiv 2309.16042.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from gpt2kit.errors import InputError
from gpt2kit.progress import OnProgress, Progress
from gpt2kit.prompts import Prompt, Selection, counted, select
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import Result
from gpt2kit.runner import Runner
from gpt2kit.taps import axes_of
from probes.core.metrics import AnyMetric
from probes.core.sweeps import OUTSIDE, Cell, Pair, Saving, patched, swept_taps
from probes.draw.colours import bar, diverging
from probes.draw.grid import Grid
from probes.draw.words import title


@dataclass(frozen=True, eq=False)
class Patching(Result):
    """The metric with each place patched, and where that lies between corrupt and clean run.

    `axes` are those of `values` and `normalised`: "layer" ("tap", of size 1, where `over` is
    outside the blocks), then those of "head", "position" and "key" that were tried one by one;
    along the others, all is patched together.
    """

    method: str
    source: str  # model, and revision if one was named
    dtype: str
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
        tried = {"head": self.heads, "position": self.positions, "key": self.keys}
        names = [tried.get(axis) for axis in self.axes]
        where = ", ".join(
            f"{axis} {self.over if axis == 'tap' else i if name is None else name[i]}"
            for axis, i, name in zip(self.axes, most, names, strict=True)
        )
        return (
            f"Patching({self.method} of {self.over}, {sizes_of(self.axes, self.values)}; "
            f"strongest at {where}: {self.normalised[most]:+.2f}; print it for the grid)"
        )

    def render(self) -> RenderableType:
        """A grid of layers by heads or positions; what else was tried is shown at its strongest."""
        values = self.normalised.reshape(*self.normalised.shape[:2], -1)
        strongest = np.abs(values).argmax(-1)[..., None]
        values = np.take_along_axis(values, strongest, -1)[..., 0]
        read = counted(len(self.clean_tokens), "token")
        header = [
            title(f"{self.method} of {self.over}", self.source, self.dtype, read),
            Text(f"{self.metric}: {self.clean:.4g} clean, {self.corrupt:.4g} corrupt"),
            bar(diverging, "-1", "+1", "cell: 0 as in the corrupt run, 1 as in the clean one"),
        ]
        tried = zip(self.axes[2:], self.values.shape[2:], strict=True)
        if several := [axis for axis, count in tried if count > 1]:
            header.append(Text(f"each at its strongest {' and '.join(several)}"))
        if self.saving is not None:
            header += [Text(line, "dim") for line in self.saving.lines()]
        columns: dict[str, Sequence[str]] = {}
        if self.heads is not None:
            columns["head"] = [str(h) for h in self.heads]
        elif self.positions is not None:
            columns["clean"] = [self.clean_tokens[p] for p in self.positions]
            columns["corrupt"] = [self.corrupt_tokens[p] for p in self.positions]
            columns["pos"] = [str(p) for p in self.positions]
        return grid_of(self.over, header, values, columns, most=1.0)


def grid_of(
    over: str,
    header: Sequence[Text],
    values: Floats,
    columns: Mapping[str, Sequence[str]],
    *,
    most: float,
) -> Grid:
    """A grid of layers, or of the one tap outside the blocks."""
    grid = Grid.of_numbers(header, values, columns, most=most)
    if over not in OUTSIDE:
        return grid
    return replace(grid, corner="tap", lines=[(over, cells) for _, cells in grid.lines])


@dataclass(frozen=True)
class Places:
    """The places of one tap that are tried; `axes` and `shape` are those of the grid."""

    cells: tuple[Cell, ...]
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    heads: Ints | None
    positions: Ints | None
    keys: Ints | None

    @classmethod
    def of(
        cls,
        tap: str,
        sizes: Mapping[str, int],
        heads: Selection = None,
        positions: Selection = None,
        keys: Selection = None,
        *,
        each: bool,
    ) -> Places:
        """sizes: of heads and positions. each: whether positions are tried one by one where they
        are not chosen and the tap has no heads."""
        axes = axes_of(tap)
        has_heads = "head" in axes
        for chosen, axis in ((heads, "head"), (keys, "key")):
            if chosen is not None and axis not in axes:
                raise InputError(f"{tap} has no {axis}s to choose from; its axes are {axes}")
        tried: dict[str, Ints] = {}
        if has_heads:
            tried["head"] = select(heads, sizes["head"], "heads")
        if positions is not None or (each and not has_heads):
            tried["position"] = select(positions, sizes["position"], "positions")
        if keys is not None:
            tried["key"] = select(keys, sizes["position"], "keys")
        names = {"position": "query" if "query" in axes else "pos"}
        cells = (
            {names.get(axis, axis): int(i) for axis, i in zip(tried, place, strict=True)}
            for place in product(*tried.values())
        )
        return cls(
            tuple(cells),
            ("tap" if tap in OUTSIDE else "layer", *tried),
            tuple(map(len, tried.values())),
            *(tried.get(axis) for axis in ("head", "position", "key")),
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
    """Run the corrupt prompt with the clean run's value at one place, for every place of a grid.

    This direction ("denoising") shows what is enough to bring the clean answer back. Swap the
    prompts for the other one ("noising"), which shows what the answer cannot do without.

    clean, corrupt: text or token ids, of equally many tokens.
    metric: a `Metric`, or a function of logits (batch, vocab) after the last token -> (batch,).
    over:   a tap of the blocks: "resid_pre", "resid_post", "z", "attn_out", "mlp_out", "pattern"…,
            or one outside of them: "embed", "pos_embed", "ln_f", "ln_f_scale".
    heads:  which ones, each by itself, where the tap has heads; by default all.
    positions: which ones (of queries, for "pattern"), each by itself; `slice(None)` for all. By
            default each by itself, but all of them together where heads are tried.
    keys:   of "pattern" and "attn_scores", which ones, each by itself; by default all together.
    on_progress: called after each batch with the number of places that are done, and of all.
    Raises InputError if the lengths differ, a tap or place is unknown, a target is not one token,
    or the metric is the same on both prompts; EditError if the engine cannot edit that tap.
    """
    taps = swept_taps(over, runner.config.n_layer)
    pair = Pair.of(runner, (clean, corrupt), metric, taps)
    sizes = {"head": runner.config.n_head, "position": len(pair.clean.ids)}
    places = Places.of(taps[0], sizes, heads, positions, keys, each=True)
    progress = Progress(on_progress, len(taps) * len(places.cells))
    values = [
        patched(pair.corrupt, tap, pair.clean.taps[tap][0], places.cells, pair.measure, progress)
        for tap in taps
    ]
    saving = pair.corrupt.saving()
    return patching(runner, pair, places, over, np.stack(values), saving, "activation patching")


def patching(
    runner: Runner,
    pair: Pair,
    places: Places,
    over: str,
    values: Floats,
    saving: Saving | None,
    method: str,
) -> Patching:
    """The result of a sweep, given the metric (layer, cells)."""
    values = values.reshape(len(values), *places.shape)
    return Patching(
        method=method,
        source=str(runner.source),
        dtype=runner.precision,
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


def sizes_of(axes: Sequence[str], values: Floats) -> str:
    """The shape of `values` in words."""
    return " x ".join(counted(n, axis) for n, axis in zip(values.shape, axes, strict=True))
