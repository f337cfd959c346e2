"""The torch engine's key-value cache, and how a run writes into it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gpt2kit.batch import Batch, KVCache
from gpt2kit.model import Cache
from gpt2kit.readout import Ints


class TorchCache(KVCache):
    """Preallocated keys and values: two tensors (layer, batch, head, max_length, d_head)."""

    def __init__(self, keys: Tensor, values: Tensor, lengths: Ints) -> None:
        super().__init__(lengths, keys.shape[3])
        self.keys, self.values = keys, values

    def copy(self) -> TorchCache:
        """An independent cache with the same content."""
        return TorchCache(self.keys.clone(), self.values.clone(), self.lengths.copy())


class CacheWriter(Cache):
    """Writes the keys and values of one run into a cache, at their absolute positions."""

    def __init__(self, cache: TorchCache, batch: Batch) -> None:
        self.cache, self.batch = cache, batch
        if not batch.uniform:  # (tokens,) row, column and position of every token, no padding
            rows, columns = np.nonzero(np.arange(batch.ids.shape[1]) < batch.lengths[:, None])
            place = (rows, columns, batch.starts[rows] + columns)
            self.rows, self.columns, self.positions = map(torch.from_numpy, place)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (batch, head, pos, d_head); return all keys and values so far."""
        return self._write(self.cache.keys[layer], k), self._write(self.cache.values[layer], v)

    def _write(self, buffer: Tensor, new: Tensor) -> Tensor:
        """Write `new` into `buffer`; return the part of the buffer that is in use."""
        if self.batch.uniform:
            start = int(self.batch.starts[0])
            end = start + new.shape[2]
            buffer[:, :, start:end] = new
            return buffer[:, :, :end]
        buffer[self.rows, :, self.positions] = new[self.rows, :, self.columns]
        return buffer[:, :, : self.batch.end]
