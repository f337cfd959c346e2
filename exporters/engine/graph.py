"""What both graphs share: the request of a run, and one call of onnxruntime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from exporters.engine.edit_feeds import EditFeeds, required_identities
from exporters.engine.file_sessions import FileSessions
from exporters.engine.ort_values import ELEMENT, zeros
from exporters.file.names import LOGITS_POSITIONS, past_names, present_names
from gpt2kit.batch import Batch, CacheT, RunInput
from gpt2kit.config import GPT2Config
from gpt2kit.readout import Floats
from gpt2kit.runner import Run
from gpt2kit.taps import TapDict


@dataclass(frozen=True)
class Request(RunInput[CacheT]):
    """The checked arguments of one run, all of which this file carries.

    outputs: names to fetch: the taps, and "logits" unless the run leaves them out. edited: the taps
    that are edited.
    """

    outputs: tuple[str, ...]
    edited: tuple[str, ...]
    last_only: bool
    top_k: int | None


@dataclass(frozen=True)
class GraphCall:
    """One call of onnxruntime.

    mask: (batch, keys) bool, which keys are tokens. past: keys and values that go in. outputs:
    names to fetch. presents: outputs with keys and values to keep, and the buffer to write each
    into, or None for memory of the engine's own. logits_positions: columns that get logits, in a
    graph that has this input.
    """

    batch: Batch
    mask: NDArray[np.bool_]
    past: Sequence[ort.OrtValue]
    outputs: Sequence[str]
    presents: Mapping[str, ort.OrtValue | None]
    edits: EditFeeds = field(default_factory=dict)
    logits_positions: NDArray[np.int64] | None = None


class Graph(ABC, Generic[CacheT]):
    """One profile of exported graph: how its inputs are made, and how its cache goes on."""

    cache_type: type[CacheT]

    def __init__(self, sessions: FileSessions, config: GPT2Config, dtype: str) -> None:
        self.sessions, self.config = sessions, config
        self.dtype, self.element = dtype, ELEMENT[dtype]
        self.identities = required_identities(sessions.lean)
        self.past_names = past_names(config.n_layer)
        self.present_names = present_names(config.n_layer)

    @abstractmethod
    def run(self, request: Request[CacheT]) -> Run:
        """Run a request.

        With top_k, a graph may give all logits, or choose the largest itself.
        """

    @abstractmethod
    def new_cache(self, batch_size: int, length: int) -> CacheT:
        """An empty cache."""

    def empty(self, batch_size: int, length: int = 0) -> list[ort.OrtValue]:
        """Keys and values of every layer: zeros (batch, head, length, d_head).

        If length is 0, one tensor serves every layer.
        """
        c, count = self.config, len(self.past_names)
        shape = (batch_size, c.n_head, length, c.d_head)
        device = self.sessions.device
        if not length:
            return [zeros(shape, self.element, device)] * count
        return [zeros(shape, self.element, device) for _ in range(count)]

    def execute(self, call: GraphCall) -> list[ort.OrtValue]:
        """Call onnxruntime. Returns `outputs` on the CPU, then `presents` on the device."""
        session = self.sessions.carrying(call.outputs)
        binding = session.io_binding()
        self.sessions.attempt(lambda: self._bind_inputs(binding, call))
        for name in call.outputs:
            binding.bind_output(name, "cpu")
        for name, buffer in call.presents.items():
            if buffer is None:
                binding.bind_output(name, self.sessions.device)
            else:
                binding.bind_ortvalue_output(name, buffer)
        options = self.sessions.run_options
        self.sessions.attempt(lambda: session.run_with_iobinding(binding, options))
        outputs: list[ort.OrtValue] = binding.get_outputs()
        return outputs

    def _bind_inputs(self, binding: ort.IOBinding, call: GraphCall) -> None:
        batch = call.batch
        positions = batch.positions(self.config.n_positions)
        feeds = {
            "input_ids": batch.ids,
            "attention_mask": call.mask.astype(np.int64),
            "position_ids": np.broadcast_to(positions, batch.ids.shape),
        }
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        optional: dict[str, NDArray[Any]] = {**self.identities, **call.edits}
        if call.logits_positions is not None:
            optional[LOGITS_POSITIONS] = call.logits_positions
        for name, array in optional.items():  # bind_cpu_input refuses optional inputs
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, past in zip(self.past_names, call.past, strict=True):
            binding.bind_ortvalue_input(name, past)

    def tap_dict(self, taps: Mapping[str, Floats]) -> TapDict[Floats]:
        """Taps as a run returns them: float16, which only graphs compute in, becomes float32."""
        wide = {
            tap: x.astype(np.float32) if x.dtype == np.float16 else x for tap, x in taps.items()
        }
        return TapDict(wide, self.config.n_layer)
