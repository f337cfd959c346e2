"""One token more in every row, with all inputs and outputs bound once."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from exporters.engine.edit_feeds import EditFeeds, identity_feed
from exporters.engine.ort_values import on_device
from exporters.engine.sessions import run_options
from exporters.file.names import LOGITS_POSITIONS
from gpt2kit.batch import Batch


@dataclass(frozen=True)
class StepGraph:
    """What a decode step needs to know of an opened file.

    past_names, present_names: inputs and outputs with keys and values. identities: edits that must
    be fed in every run. run_options: for runs that capture no CUDA graph. cuda_graphs: whether the
    session can capture them.
    """

    session: ort.InferenceSession
    device: str
    vocab_size: int
    past_names: Sequence[str]
    present_names: Sequence[str]
    identities: EditFeeds
    run_options: ort.RunOptions
    cuda_graphs: bool


class Decoder:
    """A decode step over the buffers of one cache; no run of it binds, allocates or shapes anew.

    All inputs and outputs keep their addresses and shapes (the mask is as wide as the cache), so
    that on CUDA the step can be captured once as a graph and replayed.
    """

    _graph_numbers = itertools.count(1)

    def __init__(self, graph: StepGraph, past: Sequence[ort.OrtValue], width: int) -> None:
        rows = past[0].shape()[0]
        self.session, self._device, self._places = graph.session, graph.device, np.arange(width)
        self._inputs = {
            name: on_device(np.zeros((rows, columns), np.int64), graph.device)
            for name, columns in (("input_ids", 1), ("position_ids", 1), ("attention_mask", width))
        }
        logits = np.zeros((rows, 1, graph.vocab_size), np.float32)
        self.logits = on_device(logits, graph.device)
        self._binding = graph.session.io_binding()
        self._bind_buffers(graph, past)
        # A bound input cannot be unbound. After an edit, its inputs go back to values that change
        # nothing. They are always the same values: a captured CUDA graph reads them where they lay.
        self._edited: set[str] = set()
        self._identities = {
            name: on_device(value, graph.device) for name, value in graph.identities.items()
        }
        for name, value in self._identities.items():
            self._binding.bind_ortvalue_input(name, value)
        self._plain_options = graph.run_options
        self._options = self._capturing_options() if graph.cuda_graphs else graph.run_options

    def _bind_buffers(self, graph: StepGraph, past: Sequence[ort.OrtValue]) -> None:
        """Bind the inputs, the cache as past and present, and the logits of the last token."""
        inputs = {
            **self._inputs,
            LOGITS_POSITIONS: on_device(np.array([[-1]]), graph.device),
            **dict(zip(graph.past_names, past, strict=True)),
        }
        for name, value in inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        presents = dict(zip(graph.present_names, past, strict=True))
        for name, value in {"logits": self.logits, **presents}.items():
            self._binding.bind_ortvalue_output(name, value)

    def _capturing_options(self) -> ort.RunOptions:
        """Options that capture a CUDA graph in the first run and replay it in later ones."""
        number = next(self._graph_numbers)
        weakref.finalize(self, self.session.release_captured_graph, number)
        return run_options(number)

    def __call__(self, batch: Batch, edits: EditFeeds) -> ort.OrtValue:
        """Advance every row by its one token.

        Returns logits (batch, 1, vocab) on the device, valid until the next call.
        """
        self._bind_edits(edits)
        starts = batch.starts[:, None]
        self._set("input_ids", batch.ids)
        self._set("position_ids", starts)
        self._set("attention_mask", (self._places <= starts).astype(np.int64))
        options = self._plain_options if edits else self._options  # a captured graph has no edits
        self.session.run_with_iobinding(self._binding, options)
        return self.logits

    def _set(self, name: str, array: np.ndarray) -> None:
        self._inputs[name].update_inplace(np.ascontiguousarray(array))

    def _bind_edits(self, edits: EditFeeds) -> None:
        """Bind the inputs of these edits, and reset the edits of the previous step."""
        for name in self._edited - edits.keys():
            self._binding.bind_ortvalue_input(name, self._identities[name])
        for name, value in edits.items():
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
            if name not in self._identities:
                self._identities[name] = on_device(identity_feed(name), self._device)
        self._edited = set(edits)
