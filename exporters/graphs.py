"""The two graphs that are traced: the same module behind the same names, for two kinds of caller.

Both take and give what the ecosystem's exports do:

    input_ids       (batch, sequence)                int64
    attention_mask  (batch, past + sequence)         int64, 1 where there is a token
    position_ids    (batch, sequence)                int64
    past_key_values.{i}.key|value, present.{i}.key|value  (batch, head, length, d_head)
    logits          (batch, sequence, vocab)         float32
    {tap}           axes as in `gpt2kit.taps`, in the dtype of the weights (float32 for bfloat16,
                    which numpy does not have)

`Portable` is standard operators only. The past is what is in it, and may be empty; padding may lie
anywhere that `attention_mask` says.

`Fused` is onnxruntime's GroupQueryAttention. Past and present may be one buffer longer than what it
holds, which is then updated in place. Tokens must come first in each row of `attention_mask`
(padding on the right); any other mask sends positions out of their table, which onnxruntime
refuses on the CPU, and makes the logits NaN. On the CPU, a batch of several rows may continue a
past only by one token a run. A further input `logits_positions`, (1 or batch, kept) int64, says
which columns of `input_ids` get logits, (batch, kept, vocab); -1 is the last token of each row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters.quantize import PackedTable
from gpt2kit.model import GPT2, Cache, Hooks

Past = list[tuple[Tensor, Tensor]]


class Portable(nn.Module):
    """Standard operators, any padding."""

    def __init__(self, model: GPT2, taps: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.taps = model, taps

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_values: Past
    ) -> tuple[Tensor, ...]:
        """The graph's inputs -> logits, the keys and values, the taps."""
        queries = torch.arange(input_ids.shape[1]) + past_key_values[0][0].shape[2]
        keys = torch.arange(attention_mask.shape[1])
        causal = keys[None, :] <= queries[:, None]
        mask = causal[None, None] & attention_mask[:, None, None, :].bool()
        hooks, cache = Hooks(self.model.config.n_layer, self.taps, {}), _Concat(past_key_values)
        x = self.model.hidden(input_ids, hooks, positions=position_ids, mask=mask, cache=cache)
        return _logits(self.model, x), *cache.present, *_values(hooks, self.taps)


class Fused(nn.Module):
    """onnxruntime's attention over a cache updated in place."""

    def __init__(self, model: GPT2, taps: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.taps = model, taps

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Past,
        logits_positions: Tensor,
    ) -> tuple[Tensor, ...]:
        """The graph's inputs -> logits, the keys and values, the taps."""
        sequence, total = input_ids.shape[1], attention_mask.shape[1]
        lengths = attention_mask.sum(1)  # (batch,)
        tokens_first = torch.arange(total)[None] < lengths[:, None]
        misplaced = (tokens_first != attention_mask.bool()).any(1, keepdim=True)
        positions = position_ids + misplaced * self.model.config.n_positions
        cache = _InPlace(past_key_values, lengths, attention_mask)
        hooks = Hooks(self.model.config.n_layer, self.taps, {})
        x = self.model.hidden(input_ids, hooks, positions=positions, cache=cache)
        last = (lengths[:, None] - 1 - (total - sequence)).clamp(min=0)  # (batch, 1)
        column = torch.where(logits_positions < 0, last, logits_positions)  # (batch, kept)
        row = torch.arange(x.shape[0])[:, None] * sequence
        x = F.embedding(row + column, x.flatten(0, 1))  # (batch, kept, d_model)
        x = x.masked_fill(misplaced[:, :, None], float("nan"))  # should a device not refuse
        return _logits(self.model, x), *cache.present, *_values(hooks, self.taps)


class _Concat(Cache):
    """What came in, with the new keys and values at its end."""

    def __init__(self, past: Past) -> None:
        self.past, self.present = past, list[Tensor]()

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        old_k, old_v = self.past[layer]
        k, v = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
        self.present += [k, v]
        return k, v


class _InPlace(Cache):
    """GroupQueryAttention, which appends and attends in one node."""

    def __init__(self, past: Past, lengths: Tensor, attention_mask: Tensor) -> None:
        self.past, self.present = past, list[Tensor]()
        self.last = (lengths - 1).to(torch.int32)  # (batch,)
        total = torch.onnx.ops.symbolic(
            "Shape",
            (attention_mask,),
            attrs={"start": 1, "end": 2},
            dtype=torch.int64,
            shape=(1,),
            version=15,
        )
        self.total = total.reshape(()).to(torch.int32)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("scores and patterns stay inside the operator")

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        batch, pos, head, d_head = q.shape
        old_k, old_v = self.past[layer]
        z, new_k, new_v = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (q.flatten(2), k.flatten(2), v.flatten(2), old_k, old_v, self.last, self.total),
            attrs={"num_heads": head, "kv_num_heads": head, "scale": scale},
            dtypes=(q.dtype,) * 3,
            shapes=((batch, pos, head * d_head), old_k.shape, old_v.shape),
            version=1,
        )
        self.present += [new_k, new_v]
        return z.view(q.shape)


def _values(hooks: Hooks, taps: tuple[str, ...]) -> list[Tensor]:
    values = [hooks.values[tap] for tap in taps]
    return [x.float() if x.dtype is torch.bfloat16 else x for x in values]


def _logits(model: GPT2, x: Tensor) -> Tensor:
    """ln_f (batch, pos, d_model) -> logits (batch, pos, vocab), float32.

    A Gemm that transposes as it reads: the tied matrix stays one initializer. A MatMul would have
    its transpose folded into a second copy.
    """
    head: nn.Module = model.wte if model.config.tie_word_embeddings else model.lm_head
    if isinstance(head, PackedTable):
        return head.weight.multiply(x)
    flat = torch.onnx.ops.symbolic(
        "Gemm",
        (x.flatten(0, 1), model.unembedding),
        attrs={"transB": 1},
        dtype=x.dtype,
        shape=(x.shape[0] * x.shape[1], model.config.vocab_size),
        version=13,
    )
    return flat.view(x.shape[0], x.shape[1], -1).float()
