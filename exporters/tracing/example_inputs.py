"""The inputs that a module is traced with, their names, and their variable axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from exporters.file.names import LOGITS_POSITIONS, edit_names, past_names
from exporters.tracing.plan import Plan
from gpt2kit.config import GPT2Config
from gpt2kit.taps import axes_of
from gpt2kit.torch_engine.dtypes import DTYPES

# torch takes two axes of equal size for the same one, and sizes 0 and 1 for constants; so all sizes
# differ and are above 1, and none ends up in the graph as a number.
_BATCH, _SEQUENCE, _LOGITS, _PAST = 2, 3, 4, 5
_EDIT_SIZES = tuple(range(2, 10))

Axes = dict[int, str]  # variable axis -> its name


@dataclass
class ExampleInputs:
    """Arguments of the module's `forward`, in order.

    names: one for each tensor. axes: as `values`, with an `Axes` in place of each tensor.
    """

    values: list[Any]
    names: list[str]
    axes: list[Any]

    def add(self, names: list[str], value: Any, axes: Any) -> None:
        """Append one argument."""
        self.names += names
        self.values.append(value)
        self.axes.append(axes)


def example_inputs(config: GPT2Config, plan: Plan) -> ExampleInputs:
    """What the module of this plan is traced with."""
    tokens = {0: "batch_size", 1: "sequence_length"}
    all_tokens = {0: "batch_size", 1: "total_sequence_length"}
    inputs = ExampleInputs([], [], [])
    inputs.add(["input_ids"], _ones(_SEQUENCE), tokens)
    inputs.add(["attention_mask"], _ones(_PAST + _SEQUENCE), all_tokens)
    inputs.add(["position_ids"], _ones(_SEQUENCE), tokens)
    _add_past(inputs, config, DTYPES[plan.dtype])
    if plan.profile == "fused":
        columns = torch.zeros(_BATCH, _LOGITS, dtype=torch.long)
        inputs.add([LOGITS_POSITIONS], columns, {0: "logits_batch", 1: "logits_length"})
    if plan.edits:  # for an empty list, torch would leave every axis without its name
        _add_edits(inputs, plan.edits)
    return inputs


def _ones(length: int) -> torch.Tensor:
    return torch.ones(_BATCH, length, dtype=torch.long)


def _add_past(inputs: ExampleInputs, config: GPT2Config, dtype: torch.dtype) -> None:
    shape = (_BATCH, config.n_head, _PAST, config.d_head)
    axes = {0: "batch_size", 2: "past_sequence_length"}
    past = [
        tuple(torch.zeros(shape, dtype=dtype) for _ in ("key", "value"))
        for _ in range(config.n_layer)
    ]
    inputs.add(past_names(config.n_layer), past, [(axes, axes)] * config.n_layer)


def _add_edits(inputs: ExampleInputs, taps: tuple[str, ...]) -> None:
    """Two tensors a tap; each of their axes varies on its own, as it may be 1."""
    names: list[str] = []
    values, axes = [], []
    for n, tap in enumerate(taps):
        rank = len(axes_of(tap))
        names += edit_names(tap)
        values.append(tuple(torch.ones(_EDIT_SIZES[:rank]) for _ in ("keep", "add")))
        axes.append(
            tuple({i: f"edit_{n}_{part}_{i}" for i in range(rank)} for part in ("keep", "add"))
        )
    inputs.add(names, values, axes)
