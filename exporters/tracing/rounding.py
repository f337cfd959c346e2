"""Round a matrix to integers in blocks: onnxruntime's quantiser, then a search for better ranges.

The layout of the blocks is in `exporters.file.packing`. onnxruntime's quantiser is a private
function; only `quantiser` knows it. The public package onnxruntime.quantization calls the same one,
but sets up logging when it is imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporters.file.packing import block_values, middle, unpack_bits
from gpt2kit.errors import ExportError

# With few steps, a range narrower than the block's may round most weights more finely than it costs
# at the ends. These shares of the whole range are tried.
NARROWER = {8: (), 4: (0.95, 0.9, 0.85)}

Blocks = tuple[Tensor, Tensor, Tensor]  # integers (out, blocks, block), scales, zeros (out, blocks)


def round_matrix(weight: Tensor, bits: int, block: int, symmetric: bool) -> Blocks:
    """The matrix (out, in) in blocks, each with the range that rounds it best.

    symmetric: every zero point is in the middle of the integers' range.
    """
    best = _rounded(weight, 1.0, bits, block, symmetric)
    for share in NARROWER[bits]:
        best = _nearest(weight, best, _rounded(weight, share, bits, block, symmetric))
    return best


def quantiser(bits: int) -> Callable[..., Any]:
    """onnxruntime's private function that rounds a matrix to blocks of 8 or 4 bits.

    It takes (packed, values, scales, zeros, block, n_out, n_in, symmetric), where `values` is
    (in, out), and fills packed, scales and zeros. Raises ExportError if this version lacks it.
    """
    try:
        private = importlib.import_module("onnxruntime.capi._pybind_state")
        function: Callable[..., Any] = getattr(private, f"quantize_matmul_{bits}bits")
    except (ImportError, AttributeError) as error:
        raise ExportError(_unknown_quantiser(bits)) from error
    return function


def quantise_blocks(
    values: NDArray[np.float32], bits: int, block: int, symmetric: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """onnxruntime's rounding of a matrix (out, in): packed integers, scales, packed zero points.

    Raises ExportError if onnxruntime's quantiser is not the one that this code knows.
    """
    n_out, n_in = values.shape
    count = n_in // block
    packed = np.zeros((n_out, count, block * bits // 8), np.uint8)
    scales = np.zeros((n_out, count), np.float32)
    zeros = np.zeros((n_out, -(-count * bits // 8)), np.uint8)
    fill = quantiser(bits)
    try:
        fill(packed, np.ascontiguousarray(values.T), scales, zeros, block, n_out, n_in, symmetric)
    except TypeError as error:  # other arguments are expected
        raise ExportError(_unknown_quantiser(bits)) from error
    return packed, scales, zeros


def _unknown_quantiser(bits: int) -> str:
    return (
        f"onnxruntime {ort.__version__} has no quantize_matmul_{bits}bits as gpt2kit knows it, "
        "which quantisation needs; install the version in constraints.txt"
    )


def _rounded(weight: Tensor, share: float, bits: int, block: int, symmetric: bool) -> Blocks:
    """onnxruntime's rounding, with each block clamped to a share of its range, scales refitted."""
    blocks = weight.detach().reshape(len(weight), -1, block)
    low = share * blocks.amin(-1, keepdim=True).clamp(max=0)  # the range always contains 0
    high = share * blocks.amax(-1, keepdim=True).clamp(min=0)
    clamped = blocks.clamp(low, high).flatten(1).numpy()
    packed, scales, zeros = quantise_blocks(clamped, bits, block, symmetric)
    q = torch.from_numpy(unpack_bits(packed, bits))
    zero = torch.from_numpy(unpack_bits(zeros, bits))
    zero = torch.full_like(zero, middle(bits)) if symmetric else zero
    zero = zero[:, : blocks.shape[1]]
    steps = q.float() - zero[:, :, None].float()
    # Least squares: the scale that brings scale * steps nearest to the weights. Minimising
    # sum((scale * steps - weights)^2) gives scale = sum(steps * weights) / sum(steps^2).
    fitted = (steps * blocks).sum(-1) / steps.square().sum(-1)
    scale = torch.where(steps.any(-1), fitted, torch.from_numpy(scales))
    return q, scale.half(), zero


def _nearest(weight: Tensor, one: Blocks, other: Blocks) -> Blocks:
    """For each block, the rounding that is nearer to the weights."""
    blocks = weight.detach().reshape(one[0].shape)
    errors = [(_dequantised(*rounded) - blocks).square().sum(-1) for rounded in (one, other)]
    better = errors[1] < errors[0]  # (out, blocks)
    whole = (better[:, :, None], better, better)
    q, scales, zeros = (torch.where(*parts) for parts in zip(whole, other, one, strict=True))
    return q, scales, zeros


def _dequantised(q: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    return torch.from_numpy(block_values(q.numpy(), scales.numpy(), zeros.numpy()))
