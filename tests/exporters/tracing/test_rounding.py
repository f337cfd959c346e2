"""onnxruntime's private quantiser does what a hand-rounded block says, or its absence is told."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from exporters.file.packing import dequantise, unpack_bits
from exporters.tracing import rounding
from exporters.tracing.rounding import quantise_blocks, round_matrix
from gpt2kit.errors import ExportError

# Blocks of 16 weights whose step is exactly 1: rounding by hand is a subtraction.
ASYMMETRIC = {  # bits -> weights from -zero point to -zero point + the largest integer
    4: (np.arange(-3, 13), 3),
    8: (np.array([-55, 200, *range(14)]), 55),
}
SYMMETRIC = {4: np.arange(-8, 8), 8: np.array([-128, *range(15)])}


@pytest.mark.parametrize("bits", [4, 8])
def test_a_block_is_rounded_as_by_hand(bits):
    weights, zero = ASYMMETRIC[bits]
    packed, scales, zeros = quantise_blocks(weights[None].astype(np.float32), bits, 16, False)
    assert unpack_bits(packed, bits)[0, 0].tolist() == (weights + zero).tolist()
    assert scales.tolist() == [[1.0]]
    assert unpack_bits(zeros, bits)[0, 0] == zero
    np.testing.assert_array_equal(dequantise(packed, scales, zeros, bits), weights[None])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_symmetric_block_is_rounded_as_by_hand(bits):
    weights = SYMMETRIC[bits]
    packed, scales, _ = quantise_blocks(weights[None].astype(np.float32), bits, 16, True)
    assert unpack_bits(packed, bits)[0, 0].tolist() == (weights + 2 ** (bits - 1)).tolist()
    assert scales.tolist() == [[1.0]]
    np.testing.assert_array_equal(dequantise(packed, scales, None, bits), weights[None])


def test_blocks_and_rows_are_laid_out_as_the_matrix_is():
    """Each block is a multiple of one pattern, so that its scale says which block it is."""
    pattern = np.arange(-3, 13, dtype=np.float32)
    factors = np.array([[1, 2, 4], [8, 16, 32]], np.float32)  # (out, blocks)
    weights = (factors[:, :, None] * pattern).reshape(2, 48)
    packed, scales, zeros = quantise_blocks(weights, 4, 16, False)
    np.testing.assert_array_equal(scales, factors)
    np.testing.assert_array_equal(dequantise(packed, scales, zeros, 4), weights)


def test_rounding_finds_a_better_range_and_scale():
    weights = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    q, scales, zeros = round_matrix(weights, 4, 16, False)
    found = rounding.block_values(q.numpy(), scales.numpy(), zeros.numpy()).reshape(8, 64)
    packed, plain_scales, plain_zeros = quantise_blocks(weights.numpy(), 4, 16, False)
    plain = dequantise(packed, plain_scales, plain_zeros, 4)
    assert np.square(found - weights.numpy()).sum() < np.square(plain - weights.numpy()).sum()


@pytest.mark.parametrize(
    "module",
    [
        SimpleNamespace(),
        SimpleNamespace(quantize_matmul_8bits=lambda values: None),
    ],
    ids=["missing", "other arguments"],
)
def test_a_version_with_another_quantiser_is_one_error(monkeypatch, module):
    monkeypatch.setattr(rounding.importlib, "import_module", lambda name: module)
    with pytest.raises(ExportError, match=r"^onnxruntime \S+ has no quantize_matmul_8bits as gpt2"):
        quantise_blocks(np.zeros((2, 16), np.float32), 8, 16, False)


def test_a_version_without_the_module_is_the_same_error(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(rounding.importlib, "import_module", missing)
    with pytest.raises(ExportError, match="install the version in constraints"):
        rounding.quantiser(4)
