"""Layers, heads and neurons as users number them, checked."""

from __future__ import annotations

from gpt2kit.checks import check_integer
from gpt2kit.config import GPT2Config
from gpt2kit.errors import InputError
from gpt2kit.taps import resolve_one


def tap_at(config: GPT2Config, layer: int, name: str) -> tuple[str, int]:
    """The canonical tap `name` of a layer, and the layer counted from 0.

    layer: a negative one counts from the end. Raises InputError unless it is an integer, TapError
    if the model has no such layer.
    """
    layer = check_integer("layer", layer, low=None)
    tap = resolve_one(f"blocks.{layer}.{name}", config.n_layer)
    return tap, int(tap.split(".")[1])


def check_head(config: GPT2Config, head: int) -> int:
    """A head, counted from 0. Raises InputError if a layer has no such head."""
    return _check_part("head", head, config.n_head)


def check_neuron(config: GPT2Config, neuron: int) -> int:
    """A neuron of an MLP, counted from 0. Raises InputError if a layer has no such neuron."""
    return _check_part("neuron", neuron, config.d_mlp)


def _check_part(name: str, number: int, count: int) -> int:
    number = check_integer(name, number, low=None)
    if not 0 <= number < count:
        raise InputError(f"{name} {number} does not exist; a layer has {name}s 0 to {count - 1}")
    return number
