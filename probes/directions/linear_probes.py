"""Linear probes: can a label be read off an activation by a linear map?

Alain and Bengio 2016, arXiv 1610.01644. The control is a probe of the same size that is to learn
labels shuffled at random: what it reaches, a probe reaches without any structure. After Hewitt and
Liang 2019, "Designing and Interpreting Probes with Control Tasks", arXiv 1909.03368.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType

from gpt2kit.errors import InputError
from gpt2kit.prompts import counted
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import Result
from gpt2kit.runner import Runner
from probes.directions.directions import Prompts, collect
from probes.draw.tables import table
from probes.draw.words import title

_SHUFFLES = 5  # controls are the mean of so many
_ITERATIONS = 2000
_CONSTANT = 1e-6  # of the largest activation: what varies less is float32's rounding


@dataclass(frozen=True, eq=False)
class LinearProbe(Result):
    """One linear classifier for each tap; accuracies are shares, 0 to 1, of held-out prompts.

    Rows (R) are the taps. A class's score is `weights . x + bias`, x the tap's value at the
    position, flattened; with two classes there is one score, and above 0 means the second class.
    """

    source: str
    dtype: str
    taps: tuple[str, ...]  # (R,) in the order in which they fire
    position: int
    classes: tuple[str, ...]  # (C,)
    accuracy: Floats  # (R,)
    control: Floats  # (R,) mean accuracy of probes trained and tested on shuffled labels
    majority: float  # accuracy of always saying the commonest label of the training prompts
    held_out: Ints  # (H,) numbers of the prompts that were not trained on
    weights: Floats  # (R, C, width); (R, 1, width) with two classes
    bias: Floats  # (R, C) or (R, 1)

    def render(self) -> RenderableType:
        """One line for each tap."""
        numbers = ("accuracy", "control", "majority")
        rows = table("tap", *numbers, numbers=numbers)
        for tap, right, control in zip(self.taps, self.accuracy, self.control, strict=True):
            rows.add_row(tap, f"{right:.3f}", f"{control:.3f}", f"{self.majority:.3f}")
        read = f"{counted(len(self.held_out), 'prompt')} held out"
        return Group(title("linear probes", self.source, self.dtype, read), "", rows)

    def __repr__(self) -> str:
        return (
            f"LinearProbe({self.source}, {len(self.taps)} taps, {len(self.classes)} classes, "
            f"best accuracy {self.accuracy.max():.3f}, majority {self.majority:.3f})"
        )


def linear_probe(
    runner: Runner,
    prompts: Prompts,
    labels: Sequence[Any],
    *,
    tap: str,
    position: int = -1,
    held_out: float = 0.25,
    seed: int = 0,
) -> LinearProbe:
    """Logistic regression from a tap's value at one position to the label of the prompt.

    tap: any tap of positions, or a glob for one probe a layer (`blocks.*.resid_post`); values are
         standardised by the training prompts for fitting, the weights are of the raw values.
    position: which token of each prompt; a negative one counts from the prompt's own end.
    held_out: share of the prompts, of every class alike, that accuracies are of.
    Needs scikit-learn: `pip install gpt2kit[probes]`. Raises InputError without it, and for labels
    that do not fit.
    """
    train_test_split = _sklearn()
    if len(labels) != len(prompts):
        raise InputError(f"{len(labels)} labels for {len(prompts)} prompts")
    classes, y = np.unique(np.array([str(label) for label in labels]), return_inverse=True)
    if len(classes) < 2:
        raise InputError("a probe needs labels of two classes or more; all are the same")
    found = collect(runner, prompts, taps=tap, position=position)
    flat = {name: x.reshape(len(x), -1).astype(np.float64) for name, x in found.items()}
    if len({x.shape[1] for x in flat.values()}) > 1:
        raise InputError(f"{tap!r} selects taps of different widths; name one kind of tap")
    try:
        train, test = train_test_split(
            np.arange(len(y)), test_size=held_out, random_state=seed, stratify=y
        )
    except ValueError as error:  # classes with one prompt, or a share that leaves nothing
        raise InputError(f"held_out = {held_out} of {len(y)} prompts: {error}") from error
    rng = np.random.default_rng(seed)
    shuffled = [_shuffled(y, (train, test), rng) for _ in range(_SHUFFLES)]
    fits = [_fit(x, y, train, test) for x in flat.values()]
    controls = [
        np.mean([_fit(x, other, train, test)[0] for other in shuffled]) for x in flat.values()
    ]
    commonest = np.bincount(y[train]).argmax()
    return LinearProbe(
        source=str(runner.source),
        dtype=runner.precision,
        taps=tuple(flat),
        position=position,
        classes=tuple(classes.tolist()),
        accuracy=np.array([fit[0] for fit in fits]),
        control=np.array(controls),
        majority=float((y[test] == commonest).mean()),
        held_out=np.sort(test),
        weights=np.stack([fit[1] for fit in fits]),
        bias=np.stack([fit[2] for fit in fits]),
    )


def _shuffled(y: NDArray[Any], parts: Sequence[Ints], rng: np.random.Generator) -> NDArray[Any]:
    """Labels dealt anew within each part, so that each keeps its share of every class."""
    out = y.copy()
    for part in parts:
        out[part] = rng.permutation(y[part])
    return out


def _sklearn() -> Any:
    """scikit-learn's way to split, if it is there."""
    try:
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise InputError(
            "linear probes need scikit-learn; install it with `pip install gpt2kit[probes]`"
        ) from error
    return train_test_split


def _fit(x: Floats, y: NDArray[Any], train: Ints, test: Ints) -> tuple[float, Floats, Floats]:
    """Accuracy on the test rows, weights (C or 1, width) and bias (C or 1,) for raw values."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = x[train].mean(0), x[train].std(0)
    scale[scale <= _CONSTANT * np.abs(x[train]).max()] = 1.0
    standard = (x - mean) / scale
    model = LogisticRegression(max_iter=_ITERATIONS).fit(standard[train], y[train])
    weights = model.coef_ / scale
    return float(model.score(standard[test], y[test])), weights, model.intercept_ - weights @ mean
