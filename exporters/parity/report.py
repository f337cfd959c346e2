"""The result of a parity check: the worst error of every quantity, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from exporters.parity.cost import Cost
from gpt2kit.errors import ParityError
from gpt2kit.result import ModelResult, Row
from gpt2kit.result_data import from_plain, to_plain

if TYPE_CHECKING:
    from rich.console import RenderableType

Worst = dict[str, tuple[float, str]]


@dataclass(frozen=True, eq=False)
class Report(ModelResult):
    """What was compared and how far apart the engines were.

    source, dtype: of the file; dtype is "float32", "float16", "bfloat16", or how it is quantised.
    tolerance: the largest error allowed.
    worst: quantity ("logits", "present.3.key", or a tap) -> (error, the case it occurred in),
        in the order of the forward pass.
    top1, positions: at `top1` of `positions` positions both engines rank the same token first.
    missed: positions where they do not, and torch holds the two tokens apart by more than the
        tolerance. None for a quantised file: at its tolerance nearly any two tokens tie, so its
        cost decides instead.
    cost: what quantisation did to the predictions; None unless the file is quantised.
    """

    tolerance: float
    cases: tuple[str, ...]
    worst: Worst
    top1: int
    positions: int
    missed: int | None
    cost: Cost | None = None

    @classmethod
    def result_kind(cls) -> str:
        """What saved reports are called."""
        return "parity report"

    @property
    def diverged(self) -> str | None:
        """The first quantity of the forward pass that is out of tolerance."""
        return next(
            (name for name, (error, _) in self.worst.items() if not error <= self.tolerance), None
        )

    @property
    def passed(self) -> bool:
        """Whether the engines agree.

        Every quantity must be within tolerance and the same token must lead everywhere; of a
        quantised file, the cost must be within its bound.
        """
        affordable = self.cost is None or self.cost.within_bound
        return self.diverged is None and not self.missed and affordable

    def raise_if_failed(self) -> None:
        """Raise ParityError, which names the first divergence, unless the engines agree."""
        if self.diverged:
            error, case = self.worst[self.diverged]
            raise ParityError(
                f"torch and ONNX part at {self.diverged} in '{case}': error {error:.2e}, the "
                f"tolerance for {self.dtype} is {self.tolerance:.0e}"
            )
        if self.missed:
            raise ParityError(f"torch and ONNX rank another token first at {self.missed} positions")
        if self.cost is not None and not self.cost.within_bound:
            raise ParityError(
                f"{self.dtype} costs this model too much: a KL divergence of {self.cost.kl:.3g} "
                f"nats, the bound is {self.cost.bound:g}; take int8, or leave --quantize out"
            )

    def to_dict(self) -> dict[str, Any]:
        """See `Result.to_dict`. "top1" is the pair (top1, positions); the verdict is added."""
        data = super().to_dict()
        data["top1"] = [data["top1"], data.pop("positions")]
        cost = data.pop("cost")
        verdict = {"passed": self.passed, "diverged": self.diverged}
        return data | verdict | ({"cost": cost | {"bound": self.cost.bound}} if self.cost else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """See `Result.from_dict`."""
        cls.check_header(data)
        pair = data.get("top1")
        if isinstance(pair, list) and len(pair) == 2:
            data = {**data, "top1": pair[0], "positions": pair[1]}
        return from_plain(cls, data)

    def summary(self) -> dict[str, Any]:
        """The report in a few entries, as the metadata of a file holds it."""
        name = max(self.worst, key=lambda name: self.worst[name][0])
        few = {"kind": "parity summary", "cases": len(self.cases)}
        return self.to_dict() | few | {"worst": [name, *to_plain(self.worst[name])]}

    def table(self) -> list[Row]:
        """One row per quantity, in the order of the forward pass."""
        return [
            {"quantity": name, "error": to_plain(error), "case": case}
            for name, (error, case) in self.worst.items()
        ]

    def kinds(self) -> dict[str, tuple[float, str, str]]:
        """Kind of quantity -> its worst error, the case, and the full name of the quantity.

        A kind is "logits", "cached keys", "cached values", or a tap without its layer.
        """
        out: dict[str, tuple[float, str, str]] = {}
        for name, (error, case) in self.worst.items():
            kind = name.rsplit(".", 1)[-1]
            kind = {"key": "cached keys", "value": "cached values"}.get(kind, kind)
            if kind not in out or not error <= out[kind][0]:
                out[kind] = error, case, name
        return out

    def render(self) -> RenderableType:
        """The worst error of each kind of quantity, and the verdict."""
        from exporters.parity import report_view as view

        rows = [(kind, error, name, case) for kind, (error, case, name) in self.kinds().items()]
        verdict = f"{view.agreement(self.passed)} (tolerance {self.tolerance:.0e} for {self.dtype})"
        lines = [f"same top token at {self.top1} of {self.positions} positions", verdict]
        lines += self.cost.lines() if self.cost else []
        lines += [f"they part first at {self.diverged}"] if self.diverged else []
        return view.draw_errors(rows, self.tolerance, lines)

    def __repr__(self) -> str:
        verdict = "passed" if self.passed else f"parts at {self.diverged or 'the top token'}"
        return f"Report({self.source}: {self.dtype}, {len(self.cases)} cases, {verdict})"
