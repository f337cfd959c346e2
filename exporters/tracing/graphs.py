"""The two graphs that are traced: the same module behind the same names, for two kinds of caller.

Both take and give what the ecosystem's exports do:

    input_ids       (batch, sequence)                int64
    attention_mask  (batch, past + sequence)         int64, 1 where there is a token
    position_ids    (batch, sequence)                int64
    past_key_values.{i}.key|value, present.{i}.key|value  (batch, head, length, d_head)
    logits          (batch, sequence, vocab)         float32
    {tap}           axes as in `gpt2kit.taps`, in the dtype of the weights (float32 for bfloat16,
                    which numpy does not have)
    {tap}.keep|add  the value at a tap becomes keep * value + add; float32, each axis of the size of
                    the tap's or 1. Optional: by default 1 and 0, of size 1.

`Portable` is standard operators only. The past is what is in it, and may be empty; padding may lie
anywhere that `attention_mask` says.

`Fused` is onnxruntime's GroupQueryAttention. Past and present may be one buffer longer than what it
holds, which is then updated in place. Tokens must come first in each row of `attention_mask`
(padding on the right); any other mask sends positions out of their table, which onnxruntime
refuses on the CPU, and makes the logits NaN. On the CPU, a batch of several rows may continue a
past only by one token a run. A further input `logits_positions`, (1 or batch, kept) int64, says
which columns of `input_ids` get logits, (batch, kept, vocab); -1 is the last token of each row, and
a column beyond the last is refused or gives NaN.
Scores and patterns, where a tap or an edit wants them, are computed beside that operator from the
keys it has cached; only an edit of them makes it give way to what is computed so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters.tracing.quantize import PackedTable
from gpt2kit.model import GPT2, Cache, Hooks, Look
from gpt2kit.taps import SCORES, axes_of

Past = list[tuple[Tensor, Tensor]]
Changes = list[tuple[Tensor, Tensor]]  # keep and add of every editable tap


class Portable(nn.Module):
    """Standard operators, any padding."""

    def __init__(self, model: GPT2, taps: Sequence[str], edits: Sequence[str]) -> None:
        super().__init__()
        self.model, self.taps, self.edits = model, taps, edits

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Past,
        changes: Changes,
    ) -> tuple[Tensor, ...]:
        """The graph's inputs -> logits, the keys and values, the taps."""
        queries = torch.arange(input_ids.shape[1]) + past_key_values[0][0].shape[2]
        keys = torch.arange(attention_mask.shape[1])
        causal = keys[None, :] <= queries[:, None]
        mask = causal[None, None] & attention_mask[:, None, None, :].bool()
        hooks, cache = _hooks(self, changes), _Concat(past_key_values)
        x = self.model.hidden(input_ids, hooks, positions=position_ids, mask=mask, cache=cache)
        return _logits(self.model, x), *cache.present, *_values(hooks, self.taps)


class Fused(nn.Module):
    """onnxruntime's attention over a cache updated in place."""

    def __init__(self, model: GPT2, taps: Sequence[str], edits: Sequence[str]) -> None:
        super().__init__()
        self.model, self.taps, self.edits = model, taps, edits

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Past,
        logits_positions: Tensor,
        changes: Changes,
    ) -> tuple[Tensor, ...]:
        """The graph's inputs -> logits, the keys and values, the taps."""
        # A decode step is so short that each of these small nodes counts. Sizes go only where
        # operators read them on the host: any other operand made of them would be copied to the
        # GPU at each step, and such a step cannot be captured as a CUDA graph.
        batch, sequence, total = *input_ids.shape, attention_mask.shape[1]
        last = attention_mask.sum(1) - 1  # (batch,) where the last token should be
        end = last[:, None]
        found = (attention_mask * torch.arange(total)).amax(1, keepdim=True)  # and where it is
        # (batch, 1) 0; for a row whose tokens do not come first, more than there are positions
        misplaced = (found - end) * (self.model.config.n_positions + 1)
        positions = position_ids + misplaced
        inside = {int(tap.split(".")[1]) for tap in self.edits if axes_of(tap) == SCORES}
        cache = _InPlace(past_key_values, last, attention_mask, inside)
        queries = end + torch.arange(1 - sequence, 1)  # (batch, sequence), if none is padding
        queries = queries - queries[:, :1].clamp(max=0)  # the row's first query stands at 0 or more
        mask = (torch.arange(total) <= queries[:, :, None])[:, None]  # (batch, 1, query, key)
        hooks = _hooks(self, changes)
        x = self.model.hidden(input_ids, hooks, positions=positions, mask=mask, cache=cache)
        # (batch, 1) the column of the row's last token
        final = (attention_mask[:, -sequence:].sum(1, keepdim=True) - 1).clamp(min=0)
        column = logits_positions + misplaced  # (batch, kept)
        column = torch.where(column < 0, final, column)
        row = torch.arange(0, batch * sequence, sequence)[:, None]
        x = F.embedding(row + column, x.flatten(0, 1))  # (batch, kept, d_model)
        beyond = column > torch.arange(sequence)[-1:]  # should a device not refuse
        x = x.masked_fill(beyond[:, :, None], float("nan"))
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
    """GroupQueryAttention, which appends and attends in one node.

    inside: the layers whose scores or pattern are edited.
    """

    def __init__(self, past: Past, last: Tensor, attention_mask: Tensor, inside: set[int]) -> None:
        self.past, self.present, self.inside = past, list[Tensor](), inside
        self.last = last.to(torch.int32)  # (batch,)
        self.keys = attention_mask.shape[1]
        self.end = torch.onnx.ops.symbolic(
            "Shape",
            (attention_mask,),
            attrs={"start": 1, "end": 2},
            dtype=torch.int64,
            shape=(1,),
            version=15,
        )
        self.total = self.end.reshape(()).to(torch.int32)

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        look: Look | None,
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
        if look is not None:
            seen = look(q.transpose(1, 2), self._held(new_k), self._held(new_v), mask)
            if layer in self.inside:
                return seen.transpose(1, 2)
        return z.view(q.shape)

    def _held(self, buffer: Tensor) -> Tensor:
        """(batch, head, max_length, d_head) -> (batch, head, key, d_head), what is attended to."""
        batch, head, _, d_head = buffer.shape
        return _symbolic(
            "Slice",
            (buffer, torch.tensor([0]), self.end, torch.tensor([2])),
            buffer.dtype,
            (batch, head, self.keys, d_head),
        )


def _symbolic(op: str, inputs: Sequence[Tensor], dtype: torch.dtype, shape: Any) -> Tensor:
    """One standard operator, put into the trace as it is."""
    return torch.onnx.ops.symbolic(op, inputs, dtype=dtype, shape=shape, version=13)


def _hooks(graph: Portable | Fused, changes: Changes) -> Hooks:
    edits = {
        tap: partial(_affine, *change) for tap, change in zip(graph.edits, changes, strict=True)
    }
    return Hooks(graph.model.config.n_layer, graph.taps, edits)


def _affine(keep: Tensor, add: Tensor, x: Tensor) -> Tensor:
    """keep * x + add; traced as they are, since torch would settle now which axes broadcast."""
    kept = _symbolic("Mul", (x, keep.to(x.dtype)), x.dtype, x.shape)
    return _symbolic("Add", (kept, add.to(x.dtype)), x.dtype, x.shape)


def _values(hooks: Hooks, taps: Sequence[str]) -> list[Tensor]:
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
    return flat.view(*x.shape[:2], model.config.vocab_size).float()
