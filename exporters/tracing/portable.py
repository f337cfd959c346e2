"""The portable graph: standard operators only, padding anywhere, a cache that grows."""

from __future__ import annotations

import torch
from torch import Tensor

from exporters.tracing.traced_module import EditTensors, Past, TracedModule
from gpt2kit.model import Cache


class PortableModule(TracedModule):
    """Standard operators. The past may be empty; `attention_mask` says where padding is."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Past,
        edit_tensors: EditTensors = (),
    ) -> tuple[Tensor, ...]:
        """The graph's inputs -> logits, the advanced cache, the taps."""
        queries = torch.arange(input_ids.shape[1]) + past_key_values[0][0].shape[2]
        keys = torch.arange(attention_mask.shape[1])
        causal = keys[None, :] <= queries[:, None]
        mask = causal[None, None] & attention_mask[:, None, None, :].bool()
        hooks, cache = self.hooks(edit_tensors), ConcatenatedCache(past_key_values)
        x = self.model.hidden(input_ids, hooks, positions=position_ids, mask=mask, cache=cache)
        return self.outputs(x, cache.present, hooks)


class ConcatenatedCache(Cache):
    """The past, with the new keys and values after it."""

    def __init__(self, past: Past) -> None:
        self.past, self.present = past, list[Tensor]()

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `Cache.update`."""
        old_k, old_v = self.past[layer]
        k, v = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
        self.present += [k, v]
        return k, v
