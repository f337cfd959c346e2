"""Which taps a sweep goes over, and which places of each tap it tries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from gpt2kit.errors import InputError, TapError
from gpt2kit.prompts import Selection, counted, select
from gpt2kit.readout import Floats, Ints
from gpt2kit.taps import axes_of, resolve_one, tap_axes

Place = Mapping[str, int]  # part of a tap: axis -> index; all of every axis that it does not name
OUTSIDE_BLOCKS = tuple(tap for tap in tap_axes(1) if not tap.startswith("blocks."))


@dataclass(frozen=True)
class Places:
    """The places that are tried in each of the swept taps.

    axes: "layer" (or "tap"), then the axes tried index by index. shape: the sizes of the latter.
    heads, positions, keys: the indices tried; None where the axis is taken as a whole.
    """

    each: tuple[Place, ...]
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
        each_position: bool,
    ) -> Places:
        """The places of `tap`.

        sizes: of "head", and of "position" if positions or keys are tried.
        heads: by default every head, one by one. keys: by default all together.
        positions: by default all together; one by one with `each_position` if `tap` has no heads.
        Raises InputError for an axis that `tap` lacks, or an index outside it.
        """
        axes = axes_of(tap)
        has_heads = "head" in axes
        for chosen, axis in ((heads, "head"), (keys, "key")):
            if chosen is not None and axis not in axes:
                raise InputError(f"{tap} has no {axis}s to choose from; its axes are {axes}")
        tried: dict[str, Ints] = {}
        if has_heads:
            tried["head"] = select(heads, sizes["head"], "heads")
        if positions is not None or (each_position and not has_heads):
            tried["position"] = select(positions, sizes["position"], "positions")
        if keys is not None:
            tried["key"] = select(keys, sizes["position"], "keys")
        names = {"position": "query" if "query" in axes else "pos"}
        places = (
            {names.get(axis, axis): int(i) for axis, i in zip(tried, place, strict=True)}
            for place in product(*tried.values())
        )
        return cls(
            tuple(places),
            ("tap" if tap in OUTSIDE_BLOCKS else "layer", *tried),
            tuple(map(len, tried.values())),
            *(tried.get(axis) for axis in ("head", "position", "key")),
        )


def slices_of(place: Place, tap: str) -> tuple[int | slice, ...]:
    """The place as an index of the tap's value without its batch axis."""
    return tuple(place.get(axis, slice(None)) for axis in axes_of(tap)[1:])


def swept_taps(over: str, n_layer: int) -> tuple[str, ...]:
    """The tap `over` of every block, bottom to top, or the one tap outside the blocks.

    Raises TapError for an unknown one.
    """
    if not isinstance(over, str):
        raise InputError(f"over = {over!r} must be the name of a tap, such as 'z' or 'embed'")
    if over in OUTSIDE_BLOCKS:
        return (over,)
    if over.startswith("blocks."):
        name = over.split(".", 2)[-1]
        raise TapError(f"over = {over!r}: a sweep goes over every layer; name {name!r} alone")
    return tuple(resolve_one(f"blocks.{i}.{over}", n_layer) for i in range(n_layer))


def layer_of(tap: str, n_layer: int) -> int:
    """The first layer whose computation an edit of the tap changes.

    -1 for the embeddings; n_layer for the last residual stream and everything after it.
    """
    if tap in OUTSIDE_BLOCKS:
        return n_layer if tap.startswith("ln_f") else -1
    _, layer, kind = tap.split(".")
    return int(layer) + (kind == "resid_post")


def sizes_in_words(axes: Sequence[str], values: Floats) -> str:
    """ "12 layers x 12 heads"."""
    return " x ".join(counted(n, axis) for n, axis in zip(values.shape, axes, strict=True))
