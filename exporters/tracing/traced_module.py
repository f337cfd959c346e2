"""What the portable and the fused graph share: inputs and outputs, edits, and the unembedding.

Both graphs have the inputs and outputs of other exporters' GPT-2 files:

    input_ids       (batch, sequence)                int64
    attention_mask  (batch, past + sequence)         int64, 1 where there is a token
    position_ids    (batch, sequence)                int64
    past_key_values.{i}.key|value, present.{i}.key|value  (batch, head, length, d_head)
    logits          (batch, sequence, vocab)         float32
    {tap}           axes as in `gpt2kit.taps`, in the dtype of the weights (float32 for bfloat16,
                    which numpy lacks)
    {tap}.keep|add  the value at a tap becomes keep * value + add; float32, each axis of the size of
                    the tap's, or 1. Optional; the defaults, 1 and 0, change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from exporters.tracing.packed_modules import PackedTable
from gpt2kit.model import GPT2, Hooks

Past = list[tuple[Tensor, Tensor]]  # keys and values of every layer
EditTensors = Sequence[tuple[Tensor, Tensor]]  # keep and add of every editable tap


class TracedModule(nn.Module):
    """A model behind the inputs and outputs of a file.

    taps, edits: canonical names of the taps that become outputs, and of those with inputs.
    """

    def __init__(self, model: GPT2, taps: Sequence[str], edits: Sequence[str]) -> None:
        super().__init__()
        self.model, self.taps, self.edits = model, taps, edits

    def hooks(self, edit_tensors: EditTensors) -> Hooks:
        """Hooks that keep the taps and apply the edits."""
        pairs = zip(self.edits, edit_tensors, strict=True)
        edits = {tap: partial(apply_edit, *tensors) for tap, tensors in pairs}
        return Hooks(self.model.config.n_layer, self.taps, edits)

    def outputs(self, x: Tensor, present: list[Tensor], hooks: Hooks) -> tuple[Tensor, ...]:
        """All outputs in their order. x: the value of ln_f (batch, pos, d_model)."""
        logits = traced_logits(self.model, x)
        values = [hooks.values[tap] for tap in self.taps]
        values = [x.float() if x.dtype is torch.bfloat16 else x for x in values]
        return logits, *present, *values


def apply_edit(keep: Tensor, add: Tensor, x: Tensor) -> Tensor:
    """keep * x + add.

    Traced as the ONNX operators themselves: torch would decide at trace time which axes broadcast,
    but a caller may give an edit the size of an axis, or 1, from run to run.
    """
    kept = symbolic("Mul", (x, keep.to(x.dtype)), x.dtype, x.shape)
    return symbolic("Add", (kept, add.to(x.dtype)), x.dtype, x.shape)


def symbolic(op: str, inputs: Sequence[Tensor], dtype: torch.dtype, shape: Any) -> Tensor:
    """One standard ONNX operator, put into the trace as it is."""
    return torch.onnx.ops.symbolic(op, inputs, dtype=dtype, shape=shape, version=13)


def traced_logits(model: GPT2, x: Tensor) -> Tensor:
    """The value of ln_f (batch, pos, d_model) -> logits (batch, pos, vocab), float32.

    Traced as a Gemm that transposes the matrix as it reads it, so a tied embedding stays one
    initializer. For a MatMul, the exporter would store the transposed matrix as a second copy.
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
