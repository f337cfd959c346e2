"""The table of taps: named places in the forward pass whose values can be read and edited.

These names of axes are used throughout the project:

    batch     prompts run together           head      attention head
    pos       token position, absolute       query     position that attends
    d_model   width of the residual stream   key       position attended to
    d_head    width of one head              d_mlp     hidden width of an MLP

A tap has one canonical name. Aliases resolve to it: `blocks.3.resid_pre` is `blocks.2.resid_post`,
layers may be negative, and TransformerLens' hook names are known.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Generic, TypeVar

from gpt2kit.checks import short
from gpt2kit.errors import TapError
from gpt2kit.tap_aliases import BLOCK_HOOKS, MODEL_HOOKS

RESID = ("batch", "pos", "d_model")
HEAD = ("batch", "pos", "head", "d_head")
SCORES = ("batch", "head", "query", "key")
MLP = ("batch", "pos", "d_mlp")
SCALE = ("batch", "pos", "one")

_BEFORE = {"embed": RESID, "pos_embed": RESID, "blocks.0.resid_pre": RESID}
_BLOCK = {  # in the order in which they fire
    "ln_1_scale": SCALE,
    "q": HEAD,
    "k": HEAD,
    "v": HEAD,
    "attn_scores": SCORES,
    "pattern": SCORES,
    "z": HEAD,
    "head_out": ("batch", "pos", "head", "d_model"),
    "attn_out": RESID,
    "resid_mid": RESID,
    "ln_2_scale": SCALE,
    "mlp_pre": MLP,
    "mlp_post": MLP,
    "mlp_out": RESID,
    "resid_post": RESID,
}
_AFTER = {"ln_f_scale": SCALE, "ln_f": RESID}

_AXES = {axis for axes in (RESID, HEAD, SCORES, MLP, SCALE) for axis in axes}
_PLACE = re.compile(r"-?[0-9]*|.*[:=,\s].*")  # 9, 2:5, head=9, "3, 4", or nothing
LAYER_CHOICE = re.compile(r"(?<=\.)\[!?[0-9-]+\](?=\.)")  # blocks.[01].z: a choice of layers
Array = TypeVar("Array")


@cache
def tap_axes(n_layer: int) -> dict[str, tuple[str, ...]]:
    """Every canonical tap of a model with `n_layer` layers -> its axes, in the order they fire."""
    blocks = {f"blocks.{i}.{tap}": axes for i in range(n_layer) for tap, axes in _BLOCK.items()}
    return {**_BEFORE, **blocks, **_AFTER}


def axes_of(name: str) -> tuple[str, ...]:
    """Axes of a canonical tap name."""
    return {**_BEFORE, **_BLOCK, **_AFTER}[name if name in _BEFORE else name.rsplit(".", 1)[-1]]


@cache
def residual_stream(n_layer: int) -> tuple[str, ...]:
    """The residual stream from embedding to last layer: n_layer + 1 taps.

    Entry i is what layer i reads; the last entry is what ln_f reads.
    """
    return "blocks.0.resid_pre", *(f"blocks.{i}.resid_post" for i in range(n_layer))


@cache
def _aliases(n_layer: int) -> dict[str, str]:
    """Every accepted spelling without wildcards -> canonical name."""
    names = {name: name for name in tap_axes(n_layer)} | MODEL_HOOKS
    for i in range(n_layer):
        if i:
            names[f"blocks.{i}.resid_pre"] = f"blocks.{i - 1}.resid_post"
        for hook, tap in BLOCK_HOOKS.items():
            names[f"blocks.{i}.{hook}"] = names[f"blocks.{i}.{tap}"]
    return names


def resolve(
    patterns: str | Iterable[str], n_layer: int, *, argument: str = "taps"
) -> tuple[str, ...]:
    """Canonical names of the taps that `patterns` select, each once, in the order they fire.

    A pattern is a tap name, an alias, or a glob of either (`blocks.*.resid_post`); layer numbers
    may be negative (`blocks.-1.z`), and brackets hold characters to choose from (`blocks.[01].z`).
    argument: what the caller calls `patterns`, for errors. Raises TapError if a pattern selects
    nothing, with the nearest name, or if its brackets look like a place in a tap.
    """
    if not isinstance(patterns, Iterable):
        raise TapError(f"{argument} = {short(patterns)} must be a tap's name or a list of names")
    aliases = _aliases(n_layer)
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise TapError(f"{argument}: {short(pattern)} is not a tap's name, which is text")
        wanted = _from_start(pattern, n_layer)
        if wanted in aliases:
            chosen.add(aliases[wanted])
            continue
        if _names_a_place(pattern):
            raise TapError(
                f"{argument}: {pattern!r} names a place in a tap; name the tap alone (an Edit "
                "takes the place by its axis, head=9 or pos=2)"
            )
        found = {aliases[name] for name in fnmatch.filter(aliases, wanted)}
        if not found:
            raise TapError(f"unknown tap {pattern!r}{_hint(wanted, n_layer)}")
        chosen |= found
    return tuple(name for name in tap_axes(n_layer) if name in chosen) if chosen else ()


def _names_a_place(pattern: str) -> bool:
    """Whether brackets in a pattern look like a place: `z[pos:2]`, `z[head]`, `z[9]`.

    Read as a glob, such a pattern would select other taps than the user meant.
    """
    rest = LAYER_CHOICE.sub("", pattern)
    inside = re.findall(r"\[([^\]]*)\]", rest)
    return any(part in _AXES or _PLACE.fullmatch(part) for part in inside)


def _from_start(pattern: str, n_layer: int) -> str:
    """Count a negative layer from the start: `blocks.-1.z` is `blocks.11.z` of 12 layers."""
    return re.sub(
        r"^blocks\.(-[0-9]+)\.", lambda found: f"blocks.{int(found[1]) + n_layer}.", pattern
    )


def resolve_one(name: str, n_layer: int) -> str:
    """The canonical name of exactly one tap. Raises TapError for a pattern that selects several."""
    if not isinstance(name, str):
        raise TapError(f"{short(name)} is not a tap's name, which is text")
    found = resolve(name, n_layer, argument="tap")
    if len(found) > 1:
        raise TapError(f"{name!r} selects {len(found)} taps ({found[0]}, …); name one")
    return found[0]


def _hint(name: str, n_layer: int) -> str:
    """The end of the message about an unknown tap: what the user may have meant."""
    layer = re.match(r"blocks\.(-?[0-9]+)\.", name)
    if layer and not 0 <= int(layer[1]) < n_layer:
        return f"; the model has layers 0 to {n_layer - 1}"
    near = difflib.get_close_matches(name, _aliases(n_layer), n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return "; see `gpt2kit taps` for the list"


class TapDict(Mapping[str, Array], Generic[Array]):
    """Tap values by name. Any spelling of a tap finds it; iteration gives canonical names."""

    def __init__(self, values: Mapping[str, Array], n_layer: int) -> None:
        self._values, self._n_layer = dict(values), n_layer

    def __getitem__(self, name: str) -> Array:
        tap = resolve_one(name, self._n_layer)
        if tap not in self._values:
            have = ", ".join(self._values) or "none"
            raise TapError(f"tap {name!r} was not asked for in this run; it holds: {have}")
        return self._values[tap]

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and resolve_one(name, self._n_layer) in self._values
        except TapError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k}: {tuple(getattr(v, 'shape', ()))}" for k, v in self.items())
        return f"TapDict({shapes})"
