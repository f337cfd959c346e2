"""Keys and values in onnxruntime's memory, and the decode step that runs over them."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from exporters.engine.sessions import run_options
from exporters.file.names import LOGITS_POSITIONS
from gpt2kit.batch import Batch, KVCache
from gpt2kit.taps import axes_of

if TYPE_CHECKING:
    from exporters.engine.runner import OnnxRunner

Changes = Mapping[str, NDArray[np.float32]]  # input -> value, for the edits of one run


class OnnxCache(KVCache):
    """Keys and values as the graph gave them, on the engine's device.

    slots: (batch, slots) bool, which of the places along the cached axis hold a token of that row;
    rows of unequal length have gaps where their padding ran.
    """

    def __init__(
        self,
        past: Sequence[ort.OrtValue],
        slots: NDArray[np.bool_],
        lengths: NDArray[np.int64],
        max_length: int,
    ) -> None:
        super().__init__(lengths, max_length)
        self.past, self.slots = past, slots

    def copy(self) -> OnnxCache:
        """An independent cache with the same content (its tensors are never written again)."""
        return OnnxCache(self.past, self.slots, self.lengths, self.max_length)


class InPlaceCache(KVCache):
    """Buffers (batch, head, max_length, d_head) that the fused graph writes into.

    decoder: what runs one more token a row over these very buffers, once it has been needed; it
             stays right whatever else writes into them.
    """

    def __init__(
        self,
        past: Sequence[ort.OrtValue],
        lengths: NDArray[np.int64],
        max_length: int,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__(lengths, max_length)
        self.past, self.decoder = past, decoder

    def copy(self) -> InPlaceCache:
        """An independent cache with the same content."""
        past = [zeros(x.shape(), x.element_type(), x.device_name()) for x in self.past]
        for new, old in zip(past, self.past, strict=True):
            new.update_inplace(old)
        return InPlaceCache(past, self.lengths, self.max_length)


class Decoder:
    """One token a row, again and again, with nothing bound, allocated or shaped anew.

    All inputs and outputs keep their addresses and shapes, the mask as wide as the cache; so on
    CUDA the step is captured once as a graph and replayed.
    """

    _captured = itertools.count(1)

    def __init__(self, runner: OnnxRunner, past: Sequence[ort.OrtValue], width: int) -> None:
        rows = past[0].shape()[0]
        self.device = device = runner.device
        self.session, self.places = runner.session, np.arange(width)
        self.inputs = {
            name: _on_device(np.zeros((rows, columns), np.int64), device)
            for name, columns in (("input_ids", 1), ("position_ids", 1), ("attention_mask", width))
        }
        logits = np.zeros((rows, 1, runner.config.vocab_size), np.float32)
        self.logits = _on_device(logits, device)
        # What was bound cannot be unbound. An edit's input goes back to a value that changes
        # nothing, always the same one: a captured graph reads it where it lay.
        self.changed: set[str] = set()
        self.unchanged: dict[str, ort.OrtValue] = {}
        self.binding = runner.session.io_binding()
        fixed = {LOGITS_POSITIONS: _on_device(np.array([[-1]]), device)}
        fixed |= dict(zip(runner.past_names, past, strict=True))
        for name, value in {**self.inputs, **fixed}.items():
            self.binding.bind_ortvalue_input(name, value)
        presents = dict(zip(runner.present_names, past, strict=True))
        for name, value in {"logits": self.logits, **presents}.items():
            self.binding.bind_ortvalue_output(name, value)
        self.options = runner.run_options
        if runner.cuda_graphs:
            number = next(self._captured)
            self.options = run_options(graph=number)
            weakref.finalize(self, self.session.release_captured_graph, number)

    def __call__(self, batch: Batch, changes: Changes) -> ort.OrtValue:
        """Advance every row by its one token; returns logits (batch, 1, vocab) on the device, valid
        until the next call."""
        for name in self.changed - changes.keys():
            self.binding.bind_ortvalue_input(name, self.unchanged[name])
        for name, change in changes.items():
            self.binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(change))
            if name not in self.unchanged:
                self.unchanged[name] = _on_device(_identity(name), self.device)
        self.changed = set(changes)
        starts = batch.starts[:, None]
        for name, array in (
            ("input_ids", batch.ids),
            ("position_ids", starts),
            ("attention_mask", (self.places <= starts).astype(np.int64)),
        ):
            self.inputs[name].update_inplace(np.ascontiguousarray(array))
        options = run_options() if changes else self.options  # a CUDA graph knows no edits
        self.session.run_with_iobinding(self.binding, options)
        return self.logits


def _on_device(array: NDArray[Any], device: str) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(array, device)


def zeros(shape: Sequence[int], kind: int, device: str) -> ort.OrtValue:
    """Zeros of an ONNX element type; numpy lends bfloat16 its bytes."""
    zeros = np.zeros(shape, np.float32 if kind == TensorProto.FLOAT else np.uint16)
    value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(zeros, kind)
    if device == "cpu":
        return value
    there = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), kind, device)
    there.update_inplace(value)
    return there


def _identity(name: str) -> NDArray[np.float32]:
    """What changes nothing, for one input of an edit."""
    tap, part = name.rsplit(".", 1)
    return np.full((1,) * len(axes_of(tap)), float(part == "keep"), np.float32)
