"""Keys and values in onnxruntime's memory, one kind of cache for each kind of graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from exporters.engine.decode_step import Decoder
from exporters.engine.ort_values import copy_of
from gpt2kit.batch import KVCache


class OnnxCache(KVCache):
    """Keys and values as a portable graph gave them, on the engine's device.

    slots: (batch, slots) bool, which places along the cached axis hold a token of that row; rows of
    unequal length have gaps where their padding ran.
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
    """Buffers (batch, head, max_length, d_head) that a fused graph writes into.

    decoder: the decode step over these buffers, once one was run. It stays valid whatever else
             writes into them.
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
        return InPlaceCache([copy_of(value) for value in self.past], self.lengths, self.max_length)
