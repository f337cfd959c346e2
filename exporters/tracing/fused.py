"""The fused graph: onnxruntime's GroupQueryAttention over a cache that is updated in place.

Past and present may be the same buffer, longer than what it holds.

- Tokens must come first in each row of `attention_mask` (padding on the right). For any other mask,
  the graph makes position ids that the table of positions lacks: onnxruntime refuses them on the
  CPU, and gives NaN on CUDA.
- On the CPU, a batch of several rows may continue a past only by one token at a time.
- The optional input `logits_positions`, (1 or batch, kept) int64, names the columns of `input_ids`
  that get logits, (batch, kept, vocab); -1 is the last token of each row. By default, every column
  does. A column beyond the last is refused or gives NaN; at most as many are kept as there are.
- GroupQueryAttention does not give its scores and pattern. Where a tap or an edit needs them, they
  are computed beside the operator, from the keys in its cache; if one is edited, the attention
  computed that way replaces the operator's output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.tracing.traced_module import EditTensors, Past, TracedModule, symbolic
from gpt2kit.model import Cache, Look
from gpt2kit.taps import SCORES, axes_of


class FusedModule(TracedModule):
    """GroupQueryAttention. A decode step is so short that each small node counts.

    Sizes go only where operators read them on the host. Any other operand made of a size would be
    copied to the GPU at each step, and a step with a copy cannot be captured as a CUDA graph.
    """

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Past,
        logits_positions: Tensor,
        edit_tensors: EditTensors = (),
    ) -> tuple[Tensor, ...]:
        """The graph's inputs -> logits, the advanced cache, the taps."""
        batch, sequence, total = *input_ids.shape, attention_mask.shape[1]
        last = attention_mask.sum(1) - 1  # (batch,) where the last token should be
        end = last[:, None]
        misplaced = self._misplaced(attention_mask, end, total)
        positions = position_ids + misplaced
        layers = {int(tap.split(".")[1]) for tap in self.edits if axes_of(tap) == SCORES}
        cache = GroupQueryCache(past_key_values, last, attention_mask, layers)
        mask = _causal_mask(end, sequence, total)
        hooks = self.hooks(edit_tensors)
        x = self.model.hidden(input_ids, hooks, positions=positions, mask=mask, cache=cache)
        # (batch, 1) the column of each row's last token
        final = (attention_mask[:, -sequence:].sum(1, keepdim=True) - 1).clamp(min=0)
        shape = batch, logits_positions.shape[1]  # (batch, kept)
        columns = symbolic("Add", (logits_positions, misplaced), torch.int64, shape)
        columns = torch.where(columns < 0, final, columns)
        x = _at_columns(x, columns, batch, sequence)
        return self.outputs(x, cache.present, hooks)

    def _misplaced(self, attention_mask: Tensor, end: Tensor, total: int) -> Tensor:
        """(batch, 1): 0 where the tokens of a row come first, else more than n_positions.

        Added to positions and columns, it sends the row out of every table. end: (batch, 1) where
        the last token should be; it is compared with where the last token is.
        """
        found = (attention_mask * torch.arange(total)).amax(1, keepdim=True)
        return (found - end) * (self.model.config.n_positions + 1)


def _causal_mask(end: Tensor, sequence: int, total: int) -> Tensor:
    """(batch, 1, query, key), for scores that are computed beside the operator.

    end: (batch, 1) the key of the last token, which is the last query if nothing is padding. The
    first query of a row is never before key 0.
    """
    queries = end + torch.arange(1 - sequence, 1)  # (batch, sequence)
    queries = queries - queries[:, :1].clamp(max=0)
    return (torch.arange(total) <= queries[:, :, None])[:, None]


def _at_columns(x: Tensor, columns: Tensor, batch: int, sequence: int) -> Tensor:
    """The columns of x (batch, pos, d_model) that get logits: (batch, kept, d_model).

    The lookup is an embedding over the columns of all rows, which is one Gather. A column beyond
    the last would read the next row's token; where the device does not refuse it, it gives NaN.
    """
    row = torch.arange(0, batch * sequence, sequence)[:, None]
    x = F.embedding(row + columns, x.flatten(0, 1))
    beyond = columns > torch.arange(sequence)[-1:]
    return x.masked_fill(beyond[:, :, None], float("nan"))


class GroupQueryCache(Cache):
    """GroupQueryAttention, which appends to the cache and attends in one node.

    last: (batch,) the key of each row's last token.
    edited: the layers whose scores or pattern are edited.
    """

    def __init__(self, past: Past, last: Tensor, attention_mask: Tensor, edited: set[int]) -> None:
        self.past, self.present, self.edited = past, list[Tensor](), edited
        self.last = last.to(torch.int32)
        self.keys = attention_mask.shape[1]
        # The size of the mask as (1,): a Shape node, whose result stays on the host.
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
        """See `Cache.attend`."""
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
            recomputed = look(q.transpose(1, 2), self._filled(new_k), self._filled(new_v), mask)
            if layer in self.edited:
                return recomputed.transpose(1, 2)
        return z.view(q.shape)

    def _filled(self, buffer: Tensor) -> Tensor:
        """(batch, head, max_length, d_head) -> (batch, head, key, d_head), without free space."""
        batch, head, _, d_head = buffer.shape
        return symbolic(
            "Slice",
            (buffer, torch.tensor([0]), self.end, torch.tensor([2])),
            buffer.dtype,
            (batch, head, self.keys, d_head),
        )
