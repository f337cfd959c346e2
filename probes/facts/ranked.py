"""Facts about which heads or layers come first by a measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from probes.facts.fact import Fact
from probes.facts.measures import LayerHead


def heads_of(names: str) -> list[LayerHead]:
    """ "9.9 10.0" -> [(9, 9), (10, 0)]; a layer alone has head 0."""
    parts = [name.partition(".") for name in names.split()]
    return [(int(layer), int(head or 0)) for layer, _, head in parts]


def ranked(
    name: str, source: str, measure: Callable[..., Sequence[float]], names: str, first: int,
    reason: str, *, argument: str = "heads", **options: Any,
) -> Fact:  # fmt: skip
    """The claim that each of some heads ranks among the `first`.

    names: "9.9 10.0", layer.head, or layers alone. argument: by which `measure` takes them.
    """
    places = heads_of(names)
    return Fact(
        name=name, source=source, measure=partial(measure, **{argument: places}, **options),
        labels=tuple(f"rank of {name}" for name in names.split()),
        claimed=(float(first),) * len(places), at_most=True, reason=reason,
    )  # fmt: skip
