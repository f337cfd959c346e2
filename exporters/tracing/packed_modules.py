"""Quantised matrices as modules: traced, they become onnxruntime's operators for such matrices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exporters.file.packing import dequantise, middle, pack_bits
from exporters.tracing.rounding import round_matrix
from gpt2kit.model import Conv1D

LONGEST_BLOCK = {8: 128, 4: 64}  # bits -> weights that share a scale
LONGEST_HEAD_BLOCK = {8: 128, 4: 32}


class Packed(nn.Module):
    """A matrix (out, in) as integers in blocks along `in`.

    block: the longest block wanted; it is shortened to a power of two that divides `in`.
    symmetric: leave the zero points out; they are in the middle.
    """

    packed: Tensor  # (out, blocks, block * bits / 8) uint8
    scales: Tensor  # (out, blocks) float16
    zeros: Tensor | None  # (out, blocks * bits / 8, rounded up) uint8; None if symmetric

    def __init__(self, weight: Tensor, bits: int, block: int, symmetric: bool = False) -> None:
        super().__init__()
        self.n_out, self.n_in = weight.shape
        self.bits, self.block = bits, min(block, self.n_in & -self.n_in)
        integers, scales, zeros = round_matrix(weight, bits, self.block, symmetric)
        packed, packed_zeros = (
            torch.from_numpy(pack_bits(x.numpy(), bits)) for x in (integers, zeros)
        )
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", None if symmetric else packed_zeros)

    def dequantised(self) -> Tensor:
        """(out, in) float32: the weights that the integers stand for."""
        zeros = None if self.zeros is None else self.zeros.numpy()
        weight = dequantise(self.packed.numpy(), self.scales.numpy(), zeros, self.bits)
        return torch.from_numpy(weight)

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (…, in) -> (…, out), traced as one MatMulNBits.

        At accuracy level 4, onnxruntime rounds activations to 8 bits a block and sums products of
        integers. It wants float32 scales; the file stores them as float16 and casts them.
        """
        return torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            (x, self.packed, self.scales.float(), self.zeros, None, bias),
            attrs={
                "K": self.n_in,
                "N": self.n_out,
                "bits": self.bits,
                "block_size": self.block,
                "accuracy_level": 4,
            },
            dtype=torch.float32,
            shape=(*x.shape[:-1], self.n_out),
            version=1,
        )


class PackedLinear(nn.Module):
    """A `Conv1D` whose matrix is packed."""

    def __init__(self, linear: Conv1D, bits: int) -> None:
        super().__init__()
        self.weight = Packed(linear.weight.T, bits, LONGEST_BLOCK[bits])
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        return self.weight.multiply(x, self.bias)


class PackedTable(nn.Module):
    """Embedding and unembedding that read one packed matrix (vocab, d_model).

    In 4 bits it is symmetric, so that no zero points have to be unpacked.
    """

    def __init__(self, table: nn.Embedding, bits: int) -> None:
        super().__init__()
        self.weight = Packed(table.weight, bits, LONGEST_HEAD_BLOCK[bits], symmetric=bits == 4)

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, pos) -> (batch, pos, d_model), in standard operators.

        onnxruntime's GatherBlockQuantized would be one node, but some of its builds for browsers
        lack it.
        """
        w = self.weight
        integers = _gather(w.packed, ids).float()  # (batch, pos, blocks, bytes)
        if w.bits == 4:  # in floats, as CUDA shifts no bits
            high = (integers / 16).floor()
            integers = torch.stack([integers - 16 * high, high], -1).flatten(-2)
        zeros = middle(w.bits) if w.zeros is None else _gather(w.zeros, ids).float()[..., None]
        return ((integers - zeros) * _gather(w.scales, ids).float()[..., None]).flatten(2)


def _gather(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of a table: (vocab, …), (batch, pos) -> (batch, pos, …)."""
    return torch.onnx.ops.symbolic(
        "Gather", (table, ids), dtype=table.dtype, shape=(*ids.shape, *table.shape[1:]), version=13
    )
