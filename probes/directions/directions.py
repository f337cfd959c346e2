"""Directions in activation space from labelled prompts: mean differences, principal components.

Mean difference: Marks and Tegmark 2023, "The Geometry of Truth", arXiv 2310.06824.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gpt2kit.checks import check_integer
from gpt2kit.edits import AxisIndex, Edit
from gpt2kit.errors import InputError, TapError
from gpt2kit.prompts import counted
from gpt2kit.readout import Floats
from gpt2kit.result import ModelResult, Row, array_rows, model_header
from gpt2kit.runner import Runner
from gpt2kit.taps import axes_of, resolve_one
from probes.directions.collecting import Prompts, collect

_ROUNDING = 1e-6  # relative to the activations' size: float32 cannot tell a smaller difference


@dataclass(frozen=True, eq=False)
class Direction(ModelResult):
    """A direction in the space of one tap, and its origin."""

    tap: str  # canonical name
    vector: Floats  # (width,); a strength of 1 adds it once
    mean: Floats  # (width,) the origin: `project` is 0 there
    explained: float | None = None  # principal components: share of the variance, 0 to 1

    def edit(self, strength: float = 1.0, **at: AxisIndex) -> Edit:
        """Steering: add `strength * vector` at the tap; `at` as in `Edit` (pos=…)."""
        return Edit.steer(self.tap, self.vector, strength, **at)

    def project(self, x: ArrayLike) -> Floats:
        """Values at the tap (…, width) -> (…) their coordinate along the direction.

        (x - mean) . vector / |vector|, in the tap's own units. Raises InputError for another
        width.
        """
        if np.shape(x)[-1:] != self.vector.shape:
            raise InputError(f"values of shape {np.shape(x)} do not fit {self!r}")
        unit = self.vector / np.linalg.norm(self.vector)
        coordinates: Floats = (np.asarray(x) - self.mean) @ unit
        return coordinates

    def table(self) -> list[Row]:
        """One row for each coordinate of the tap."""
        return array_rows({"vector": self.vector, "mean": self.mean}, ("index",))

    def __repr__(self) -> str:
        share = "" if self.explained is None else f", {self.explained:.1%} of the variance"
        length = float(np.linalg.norm(self.vector))
        size = f"width {len(self.vector)}, length {length:.3g}"
        return f"Direction({self.source}, {self.tap}, {size}{share})"


def mean_difference(
    runner: Runner, positive: Prompts, negative: Prompts, *, tap: str, position: int = -1
) -> Direction:
    """From the mean of the negative prompts to the mean of the positive ones, at one position.

    tap: any tap of axes (batch, pos, width). `project` is 0 half way between the two means.
    position: which token of each prompt; negative ones count from the prompt's own end.
    Raises InputError for a group without prompts, or for groups with the same mean.
    """
    tap = _vector_tap(runner, tap)
    above, below = (
        collect(runner, prompts, taps=tap, position=position, name=name)[tap].mean(
            0, dtype=np.float64
        )
        for name, prompts in (("positive", positive), ("negative", negative))
    )
    if np.linalg.norm(above - below) <= _ROUNDING * np.linalg.norm(above):
        raise InputError(f"both groups have the same mean at {tap}: there is no direction")
    return Direction(tap, above - below, (above + below) / 2, **model_header(runner))


def pca_directions(
    runner: Runner, prompts: Prompts, *, tap: str, n: int = 2, position: int = -1
) -> tuple[Direction, ...]:
    """The n principal components of the prompts' activations, of length 1, largest variance first.

    The sign of a component is arbitrary; here its entry of the largest size is positive.
    tap, position: as in `mean_difference`. Raises InputError if `n` exceeds the number of
    components, or the number of directions in which the activations differ.
    """
    tap = _vector_tap(runner, tap)
    x = collect(runner, prompts, taps=tap, position=position)[tap].astype(np.float64)
    most = min(len(x) - 1, x.shape[1])
    if check_integer("n", n, low=None) < 1 or n > most:
        raise InputError(f"n = {n} components, but {len(x)} prompts have from 1 to {most}")
    mean = x.mean(0)
    _, sizes, vectors = np.linalg.svd(x - mean, full_matrices=False)
    varied = int((sizes > _ROUNDING * np.linalg.norm(x)).sum())
    if varied < n:
        raise InputError(
            f"n = {n} components, but the {len(x)} prompts differ at {tap} in "
            f"{counted(varied, 'direction')} only; give prompts that differ more"
        )
    shares = sizes**2 / (sizes**2).sum()
    signs = np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)])
    header = model_header(runner)
    return tuple(
        Direction(tap, signs[i] * vectors[i], mean, float(shares[i]), **header) for i in range(n)
    )


def _vector_tap(runner: Runner, tap: str) -> str:
    """The canonical name of a tap with one vector a position. Raises TapError for another."""
    name = resolve_one(tap, runner.config.n_layer)
    if len(axes_of(name)) != 3:
        raise TapError(
            f"{name} has axes {axes_of(name)}; a direction needs a tap of (batch, pos, width), "
            "such as blocks.3.resid_post"
        )
    return name
