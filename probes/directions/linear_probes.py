"""Linear probes: can a label be read off an activation by a linear map?

Alain and Bengio 2016, arXiv 1610.01644. The control is a probe of the same size trained on labels
shuffled at random; the accuracy that it reaches needs no structure in the activations. After Hewitt
and Liang 2019, "Designing and Interpreting Probes with Control Tasks", arXiv 1909.03368.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit.checks import check_integer
from gpt2kit.errors import InputError
from gpt2kit.packages import explained_imports
from gpt2kit.prompts import counted
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import ModelResult, Row, model_header
from gpt2kit.runner import Runner
from probes.directions.collecting import Prompts, check_prompts, collect

if TYPE_CHECKING:
    from rich.console import RenderableType

_SHUFFLES = 5  # probes that a control's accuracy is the mean of
_ITERATIONS = 2000
_CONSTANT = 1e-6  # relative to the largest activation: float32's rounding varies by as much


@dataclass(frozen=True, eq=False)
class LinearProbe(ModelResult):
    """One linear classifier for each tap; accuracies are shares, 0 to 1, of held-out prompts.

    Rows (R) are the taps. A class's score is `weights . x + bias`, x the tap's value at the
    position, flattened; with two classes there is one score, and above 0 means the second class.
    """

    taps: tuple[str, ...]  # (R,) in the order in which they fire
    position: int
    classes: tuple[str, ...]  # (C,)
    accuracy: Floats  # (R,)
    control: Floats  # (R,) mean accuracy of probes trained and tested on shuffled labels
    majority: float  # accuracy of always predicting the commonest training label
    held_out: Ints  # (H,) indices of the prompts that were not trained on
    weights: Floats  # (R, C, width); (R, 1, width) with two classes
    bias: Floats  # (R, C) or (R, 1)

    def table(self) -> list[Row]:
        """One row for each tap."""
        columns = zip(self.taps, self.accuracy.tolist(), self.control.tolist(), strict=True)
        return [
            {"tap": tap, "accuracy": accuracy, "control": control, "majority": self.majority}
            for tap, accuracy, control in columns
        ]

    def render(self) -> RenderableType:
        """One line for each tap."""
        from probes.draw.titled_table import titled_table

        names = ("accuracy", "control", "majority")
        rows = [[row["tap"], *(f"{row[name]:.3f}" for name in names)] for row in self.table()]
        read = f"{counted(len(self.held_out), 'prompt')} held out"
        about = "linear probes", self.source, self.dtype, read
        return titled_table(about, ("tap", *names), rows, numbers=names)

    def __repr__(self) -> str:
        return (
            f"LinearProbe({self.source}, {len(self.taps)} taps, {len(self.classes)} classes, "
            f"best accuracy {self.accuracy.max():.3f}, majority {self.majority:.3f})"
        )


@explained_imports()
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

    tap: any tap of positions, or a glob for one probe a layer (`blocks.*.resid_post`). Values are
         standardised by the training prompts before fitting; the weights are of the raw values.
    position: which token of each prompt; negative ones count from the prompt's own end.
    held_out: share of the prompts, of every class alike, on which accuracy is measured.
    Needs scikit-learn: `pip install gpt2kit[probes]`. Raises MissingPackageError without it, and
    InputError for labels that do not fit.
    """
    from sklearn.model_selection import train_test_split

    check_integer("seed", seed, 0)
    classes, y = _classes(check_prompts(prompts), labels)
    flat = _flat_values(runner, prompts, tap, position)
    try:
        train, test = train_test_split(
            np.arange(len(y)), test_size=_share(held_out), random_state=seed, stratify=y
        )
    except ValueError as error:  # a class with one prompt, or a share that leaves no prompts
        raise InputError(f"held_out = {held_out} of {len(y)} prompts: {error}") from error
    rng = np.random.default_rng(seed)
    shuffled = [_shuffle_labels(y, (train, test), rng) for _ in range(_SHUFFLES)]
    fitted = [_fit_probe(x, y, train, test) for x in flat.values()]
    controls = [
        np.mean([_fit_probe(x, other, train, test)[0] for other in shuffled]) for x in flat.values()
    ]
    commonest = np.bincount(y[train]).argmax()
    return LinearProbe(
        **model_header(runner),
        taps=tuple(flat),
        position=position,
        classes=classes,
        accuracy=np.array([accuracy for accuracy, _, _ in fitted]),
        control=np.array(controls),
        majority=float((y[test] == commonest).mean()),
        held_out=np.sort(test),
        weights=np.stack([weights for _, weights, _ in fitted]),
        bias=np.stack([bias for _, _, bias in fitted]),
    )


def _classes(prompts: Prompts, labels: Any) -> tuple[tuple[str, ...], Ints]:
    """The classes in alphabetical order, and the class of each prompt."""
    if not isinstance(labels, Sequence | np.ndarray) or isinstance(labels, str):
        raise InputError(f"labels = {labels!r} must be a list with one label for each prompt")
    if len(labels) != len(prompts):
        raise InputError(f"{len(labels)} labels for {len(prompts)} prompts")
    classes, y = np.unique(np.array([str(label) for label in labels]), return_inverse=True)
    if len(classes) < 2:
        raise InputError("a probe needs labels of two classes or more; all are the same")
    return tuple(classes.tolist()), y


def _flat_values(runner: Runner, prompts: Prompts, tap: str, position: int) -> dict[str, Floats]:
    """Tap -> (prompts, width) values in float64. Raises InputError if widths differ."""
    found = collect(runner, prompts, taps=tap, position=position)
    flat: dict[str, Floats] = {
        name: x.reshape(len(x), -1).astype(np.float64) for name, x in found.items()
    }
    if len({x.shape[1] for x in flat.values()}) > 1:
        raise InputError(f"{tap!r} selects taps of different widths; name one kind of tap")
    return flat


def _share(held_out: Any) -> Any:
    """scikit-learn takes None as well, for a default of its own; that is refused here."""
    if not isinstance(held_out, float | int | np.number) or isinstance(held_out, bool):
        raise InputError(f"held_out = {held_out!r} must be a share of the prompts, such as 0.25")
    return held_out


def _shuffle_labels(y: Ints, parts: Sequence[Ints], rng: np.random.Generator) -> Ints:
    """Labels shuffled within each part, so that a part keeps its share of every class."""
    shuffled = y.copy()
    for part in parts:
        shuffled[part] = rng.permutation(y[part])
    return shuffled


def _fit_probe(x: Floats, y: NDArray[Any], train: Ints, test: Ints) -> tuple[float, Floats, Floats]:
    """Accuracy on the test rows, weights (C or 1, width) and bias (C or 1,) for raw values."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = x[train].mean(0), x[train].std(0)
    scale[scale <= _CONSTANT * np.abs(x[train]).max()] = 1.0
    standard = (x - mean) / scale
    model = LogisticRegression(max_iter=_ITERATIONS).fit(standard[train], y[train])
    weights = model.coef_ / scale
    return float(model.score(standard[test], y[test])), weights, model.intercept_ - weights @ mean
