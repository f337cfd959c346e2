"""Quantised matrices as integers: how the bytes of a file hold them, and the floats they stand for.

A matrix (out, in) is cut into blocks along `in`. Each block has unsigned integers of 8 or 4 bits,
one scale, and one zero point; a weight is (integer - zero point) * scale. Two integers of 4 bits
share a byte, low bits first. This is the layout of onnxruntime's MatMulNBits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS = {"int8": (8, 8), "int4": (4, 8), "int4-all": (4, 4)}  # of the layers, of the unembedding
Integers = NDArray[np.uint8]


def pack_bits(integers: Integers, bits: int) -> Integers:
    """Integers (…, n) as bytes (…, n * bits / 8, rounded up)."""
    if bits == 8:
        return integers
    odd = [(0, 0)] * (integers.ndim - 1) + [(0, integers.shape[-1] % 2)]
    pairs = np.pad(integers, odd)
    return pairs[..., ::2] | pairs[..., 1::2] << np.uint8(4)


def unpack_bits(packed: Integers, bits: int) -> Integers:
    """Bytes (…, n) as integers (…, n * 8 / bits)."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def middle(bits: int) -> int:
    """The zero point of a symmetric block, which is not stored."""
    return 1 << (bits - 1)


def block_values(
    integers: Integers, scales: NDArray[Any], zeros: Integers | int
) -> NDArray[np.float32]:
    """Integers (out, blocks, block) as the float32 weights that they stand for, same shape.

    scales: (out, blocks). zeros: the same, or one zero point for all blocks.
    """
    values = integers.astype(np.float32)
    values -= zeros if isinstance(zeros, int) else zeros[..., None]
    values *= scales.astype(np.float32)[..., None]
    return values


def dequantise(
    packed: Integers, scales: NDArray[Any], zeros: Integers | None, bits: int
) -> NDArray[np.float32]:
    """The matrix (out, in), float32.

    packed: (out, in * bits / 8) bytes, or any shape of as many. scales: (out, blocks).
    zeros: (out, blocks * bits / 8, rounded up) bytes; None if every block is symmetric.
    """
    rows, blocks = scales.shape
    integers = unpack_bits(packed.reshape(rows, blocks, -1), bits)
    if zeros is None:
        values = block_values(integers, scales, middle(bits))
    else:
        points = unpack_bits(zeros.reshape(rows, -1), bits)[:, :blocks]
        values = block_values(integers, scales, points)
    return values.reshape(rows, -1)
