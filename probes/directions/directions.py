"""Directions in activation space from labelled prompts: mean differences, principal components.

Mean difference: Marks and Tegmark 2023, "The Geometry of Truth", arXiv 2310.06824. Adding one to
the residual stream while generating: Turner et al. 2023, "Activation Addition", arXiv 2308.10248,
and Rimsky et al. 2023, "Steering Llama 2 via Contrastive Activation Addition", arXiv 2312.06681.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Group, RenderableType
from rich.text import Text

from gpt2kit.edits import AxisIndex, Edit
from gpt2kit.errors import InputError, TapError
from gpt2kit.generation import generate
from gpt2kit.prompts import counted, index, prompt_ids
from gpt2kit.readout import Floats
from gpt2kit.result import Result
from gpt2kit.runner import Runner
from gpt2kit.taps import axes_of, resolve, resolve_one
from gpt2kit.tokenizer import printable
from probes.core.batching import batches_by_tokens
from probes.draw.tables import table
from probes.draw.words import title

Prompts = Sequence[str] | Sequence[Sequence[int]]
_SAME = 1e-6  # of the activations' size: what float32 takes for the same value


@dataclass(frozen=True, eq=False)
class Direction(Result):
    """A direction in the space of one tap, and the point it starts from."""

    source: str
    tap: str  # canonical name
    vector: Floats  # (width,); its length is what a strength of 1 adds
    mean: Floats  # (width,) where `project` is 0
    explained: float | None = None  # principal components: share of the variance, 0 to 1

    def edit(self, strength: float = 1.0, **at: AxisIndex) -> Edit:
        """Steering: add `strength * vector` at the tap; `at` as in `Edit` (pos=…)."""
        return Edit.steer(self.tap, self.vector, strength, **at)

    def project(self, x: ArrayLike) -> Floats:
        """Values at the tap (…, width) -> (…) their coordinate along the direction, in the tap's
        own units: (x - mean) . vector / |vector|. Raises InputError for another width."""
        if np.shape(x)[-1:] != self.vector.shape:
            raise InputError(f"values of shape {np.shape(x)} do not fit {self!r}")
        unit = self.vector / np.linalg.norm(self.vector)
        out: Floats = (np.asarray(x) - self.mean) @ unit
        return out

    def __repr__(self) -> str:
        share = "" if self.explained is None else f", {self.explained:.1%} of the variance"
        length = float(np.linalg.norm(self.vector))
        size = f"width {len(self.vector)}, length {length:.3g}"
        return f"Direction({self.source}, {self.tap}, {size}{share})"


@dataclass(frozen=True, eq=False)
class Steered(Result):
    """What the model says under one direction at several strengths."""

    source: str
    dtype: str
    tap: str
    prompt: str
    strengths: tuple[float, ...]  # (S,)
    texts: tuple[str, ...]  # (S,) the new text alone

    def render(self) -> RenderableType:
        """One line for each strength."""
        rows = table("strength", "continuation", numbers=["strength"])
        for strength, text in zip(self.strengths, self.texts, strict=True):
            rows.add_row(f"{strength:+g}", Text(printable(text)))
        return Group(title(f"steering at {self.tap}", self.source, self.dtype), "", rows)

    def __repr__(self) -> str:
        return f"Steered({self.source}, {self.tap}, {len(self.strengths)} strengths)"


def mean_difference(
    runner: Runner, positive: Prompts, negative: Prompts, *, tap: str, position: int = -1
) -> Direction:
    """From the mean of the negative prompts to that of the positive ones, at one position.

    tap: any tap of axes (batch, pos, width). `project` is 0 half way between the two means.
    position: which token of each prompt; a negative one counts from the prompt's own end.
    Raises InputError for groups without prompts, or with the same mean.
    """
    tap = _vector_tap(runner, tap)
    above, below = (
        collect(runner, prompts, taps=tap, position=position)[tap].mean(0, dtype=np.float64)
        for prompts in (positive, negative)
    )
    if np.linalg.norm(above - below) <= _SAME * np.linalg.norm(above):
        raise InputError(f"both groups have the same mean at {tap}: there is no direction")
    return Direction(str(runner.source), tap, above - below, (above + below) / 2)


def pca_directions(
    runner: Runner, prompts: Prompts, *, tap: str, n: int = 2, position: int = -1
) -> tuple[Direction, ...]:
    """The n principal components of the prompts' activations, of length 1, largest variance first.

    The sign of a component is arbitrary; here its entry of the largest size is positive.
    tap, position: as in `mean_difference`. Raises InputError for more components than there are, or
    than the prompts' activations differ in.
    """
    tap = _vector_tap(runner, tap)
    x = collect(runner, prompts, taps=tap, position=position)[tap].astype(np.float64)
    most = min(len(x) - 1, x.shape[1])
    if not 1 <= n <= most:
        raise InputError(f"n = {n} components asked for; {len(x)} prompts have from 1 to {most}")
    mean = x.mean(0)
    _, sizes, vectors = np.linalg.svd(x - mean, full_matrices=False)
    varied = int((sizes > _SAME * np.linalg.norm(x)).sum())
    if varied < n:
        raise InputError(
            f"n = {n} components asked for, but the {len(x)} prompts differ at {tap} in "
            f"{counted(varied, 'direction')} alone; give prompts that differ more"
        )
    shares = sizes**2 / (sizes**2).sum()
    signs = np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)])
    return tuple(
        Direction(str(runner.source), tap, signs[i] * vectors[i], mean, float(shares[i]))
        for i in range(n)
    )


def steer(
    runner: Runner,
    prompt: str,
    direction: Direction,
    strengths: float | Sequence[float],
    *,
    max_new_tokens: int = 30,
    greedy: bool = True,
    seed: int | None = 0,
) -> Steered:
    """Continue a prompt with the direction added at every position, at each of the strengths.

    strengths: one number, or several. A strength of 0 is the model's own continuation.
    greedy: by default, so that texts differ by the steering alone; False draws with the same seed
            each time.
    Raises InputError for strengths that are not numbers.
    """
    own = _numbers(strengths)
    texts = [
        generate(
            runner, prompt, max_new_tokens=max_new_tokens, greedy=greedy, seed=seed,
            edits=[direction.edit(strength)] if strength else [],
        )
        for strength in own
    ]  # fmt: skip
    return Steered(str(runner.source), runner.precision, direction.tap, prompt, own, tuple(texts))


def collect(
    runner: Runner, prompts: Prompts, *, taps: str | Iterable[str], position: int = -1
) -> dict[str, Floats]:
    """Canonical tap -> (prompt, …) its value at one position of each prompt; run in batches.

    Raises TapError for a tap that is not of positions, InputError for a prompt that is too short.
    """
    names = resolve(taps, runner.config.n_layer)
    for name in names:
        if axes_of(name)[1] != "pos":
            raise TapError(f"{name} has axes {axes_of(name)}: it has no value at a position")
    if isinstance(prompts, str) or not len(prompts):
        raise InputError("prompts must be a list of at least one prompt")
    rows = [prompt_ids(runner, prompt).tolist() for prompt in prompts]
    short = min(range(len(rows)), key=lambda i: len(rows[i]))
    index(position, len(rows[short]), where=f"prompt {short}")
    found: dict[str, list[Floats]] = {name: [] for name in names}
    for batch in batches_by_tokens(rows):
        run = runner.run(batch, taps=names, last_only=True, top_k=1)
        columns = [position % len(row) for row in batch]
        for name in names:
            found[name].append(run.taps[name][np.arange(len(batch)), columns])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _numbers(strengths: float | Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(float(strength) for strength in np.atleast_1d(strengths))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"strengths = {strengths!r} are not numbers; give one, or a list of them"
        ) from error


def _vector_tap(runner: Runner, tap: str) -> str:
    name = resolve_one(tap, runner.config.n_layer)
    if len(axes_of(name)) != 3:
        raise TapError(
            f"{name} has axes {axes_of(name)}; a direction needs a tap of (batch, pos, width), "
            "such as blocks.3.resid_post"
        )
    return name
