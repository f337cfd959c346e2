"""Weight-only quantisation to 8 or 4 bits, packed by onnxruntime's own quantiser.

A matrix is cut into blocks along its input axis; each block has integers, a float16 scale and a
zero point. onnxruntime multiplies them as they are (MatMulNBits at accuracy level 4: activations
are rounded to 8 bits a block, products are summed in whole numbers). The unembedding has 8 bits
unless it is asked for in 4 ("int4-all"), and the embedding reads the very same copy. Biases, norms
and positions stay float32.

The packed model is the module that is traced, with its matrices replaced; `dequantised` is the same
weights as plain floats, to compare with.
"""

from __future__ import annotations

import numpy as np
import torch
from onnxruntime.capi import _pybind_state as quantiser
from torch import Tensor, nn

from gpt2kit.errors import ExportError
from gpt2kit.model import GPT2, Conv1D

BITS = {"int8": (8, 8), "int4": (4, 8), "int4-all": (4, 4)}  # of the blocks, of the unembedding
LONGEST_BLOCK = {8: 128, 4: 64}  # weights that share a scale
LONGEST_HEAD_BLOCK = {8: 128, 4: 32}
SHORTEST_BLOCK = 16
# Shares of a block's range that are tried besides the whole: with few steps, a narrower range may
# round most weights more finely than it costs at the ends.
NARROWER = {8: (), 4: (0.95, 0.9, 0.85)}

_Blocks = tuple[Tensor, Tensor, Tensor]  # (out, blocks, block), scales and zeros (out, blocks)


class Packed(nn.Module):
    """A matrix (out, in) as whole numbers in blocks along `in`."""

    def __init__(self, weight: Tensor, bits: int, block: int, symmetric: bool = False) -> None:
        super().__init__()
        self.n_out, self.n_in = weight.shape
        self.bits, self.block = bits, min(block, self.n_in & -self.n_in)  # must divide n_in
        best = _rounded(weight, 1.0, bits, self.block, symmetric)
        for share in NARROWER[bits]:
            other = _rounded(weight, share, bits, self.block, symmetric)
            best = _nearest(weight, best, other)
        self.packed: Tensor  # (out, blocks, block * bits / 8) uint8
        self.scales: Tensor  # (out, blocks) float16
        self.zeros: Tensor | None  # (out, blocks * bits / 8, rounded up) uint8; None is the middle
        packed, scales, zeros = best
        self.register_buffer("packed", _pack(packed, bits))
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", None if symmetric else _pack(zeros, bits))

    def dequantised(self) -> Tensor:
        """(out, in) float32."""
        if self.zeros is None:
            zeros = torch.full_like(self.scales, 1 << self.bits - 1)
        else:
            zeros = _unpack(self.zeros, self.bits)[:, : self.scales.shape[1]]
        return _values(_unpack(self.packed, self.bits), self.scales, zeros).flatten(1)

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (…, in) -> (…, out), as one node of a trace."""
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
    """Conv1D over a packed matrix."""

    def __init__(self, linear: Conv1D, bits: int) -> None:
        super().__init__()
        self.weight = Packed(linear.weight.T, bits, LONGEST_BLOCK[bits])
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        return self.weight.multiply(x, self.bias)


class PackedTable(nn.Module):
    """Embedding and unembedding over one packed matrix (vocab, d_model).

    In 4 bits it is symmetric: the two operators pack 4-bit zero points unlike each other.
    """

    def __init__(self, table: nn.Embedding, bits: int) -> None:
        super().__init__()
        self.weight = Packed(table.weight, bits, LONGEST_HEAD_BLOCK[bits], symmetric=bits == 4)

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, pos) -> (batch, pos, d_model)."""
        w = self.weight
        parts = torch.onnx.ops.symbolic(
            "com.microsoft::GatherBlockQuantized",
            (
                w.packed,
                ids,
                w.scales.float()[:, :, None],
                None if w.zeros is None else w.zeros[:, :, None],
            ),
            attrs={"gather_axis": 0, "quantize_axis": 2, "block_size": w.block, "bits": w.bits},
            dtype=torch.float32,
            shape=(*ids.shape, w.n_in // w.block, w.block),
            version=1,
        )
        return parts.flatten(2)


def pack(model: GPT2, kind: str) -> GPT2:
    """Pack the matrices of `model` in place; it can then be traced, not run."""
    if model.config.n_embd % SHORTEST_BLOCK:
        raise ExportError(
            f"a d_model of {model.config.n_embd} cannot be quantised: it is not a multiple of "
            f"{SHORTEST_BLOCK}"
        )
    bits, head_bits = BITS[kind]
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            model.set_submodule(name, PackedLinear(module, bits))
    for name in ("wte",) if model.config.tie_word_embeddings else ("wte", "lm_head"):
        table = model.get_submodule(name)
        assert isinstance(table, nn.Embedding)
        model.set_submodule(name, PackedTable(table, head_bits))
    return model


def unpack(model: GPT2) -> GPT2:
    """The plain float32 model that a packed one stands for."""
    weights = {name: x for name, x in model.state_dict().items() if ".weight." not in name}
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            weights[f"{name}.weight"] = module.weight.dequantised().T.contiguous()
        elif isinstance(module, PackedTable):
            weights[f"{name}.weight"] = module.weight.dequantised()
    with torch.device("meta"):
        out = GPT2(model.config)
    out.load_state_dict(weights, assign=True)
    return out.eval().requires_grad_(False)


def _rounded(weight: Tensor, share: float, bits: int, block: int, symmetric: bool) -> _Blocks:
    """How onnxruntime rounds a matrix (out, in) whose blocks are cut to a share of their range."""
    blocks = weight.detach().reshape(len(weight), -1, block)
    low = share * blocks.amin(-1, keepdim=True).clamp(max=0)  # the range always has 0 in it
    high = share * blocks.amax(-1, keepdim=True).clamp(min=0)
    values = blocks.clamp(low, high).flatten(1).T.contiguous().numpy()
    count = blocks.shape[1]
    packed = np.zeros((len(weight), count, block * bits // 8), np.uint8)
    scales = np.zeros((len(weight), count), np.float32)
    zeros = np.zeros((len(weight), -(-count * bits // 8)), np.uint8)
    # What onnxruntime.quantization calls; that package would set up logging when imported.
    fill = quantiser.quantize_matmul_8bits if bits == 8 else quantiser.quantize_matmul_4bits
    fill(packed, values, scales, zeros, block, len(weight), weight.shape[1], symmetric)
    q, zero = (_unpack(torch.from_numpy(x), bits) for x in (packed, zeros))
    zero = torch.full_like(zero, 1 << bits - 1) if symmetric else zero
    zero = zero[:, :count]
    steps = q.float() - zero[:, :, None].float()
    # Of all scales, that which brings these whole numbers nearest to the weights.
    fitted = (steps * blocks).sum(-1) / steps.square().sum(-1)
    scale = torch.where(steps.any(-1), fitted, torch.from_numpy(scales))
    return q, scale.half(), zero


def _nearest(weight: Tensor, one: _Blocks, other: _Blocks) -> _Blocks:
    """Of each block, that rounding which is nearer to the weights."""
    blocks = weight.detach().reshape(one[0].shape)
    errors = [(_values(*rounded) - blocks).square().sum(-1) for rounded in (one, other)]
    better = errors[1] < errors[0]  # (out, blocks)
    whole = (better[:, :, None], better, better)
    q, scales, zeros = (torch.where(*parts) for parts in zip(whole, other, one, strict=True))
    return q, scales, zeros


def _values(q: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """Whole numbers (out, blocks, block) -> what they stand for, float32."""
    return (q.float() - zeros[:, :, None].float()) * scales[:, :, None].float()


def _pack(x: Tensor, bits: int) -> Tensor:
    """Whole numbers (…, n) -> bytes (…, n * bits / 8, rounded up), low bits first."""
    if bits == 8:
        return x
    x = nn.functional.pad(x, (0, x.shape[-1] % 2))
    return x[..., ::2] | x[..., 1::2] << 4


def _unpack(x: Tensor, bits: int) -> Tensor:
    """Bytes (…, n) -> whole numbers (…, n * 8 / bits), low bits first."""
    return x if bits == 8 else torch.stack([x & 15, x >> 4], -1).flatten(-2)
