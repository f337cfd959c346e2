"""Quantised blocks: bytes, integers and the floats that they stand for."""

import numpy as np
import pytest

from exporters.file.packing import block_values, dequantise, pack_bits, unpack_bits


def test_two_integers_of_four_bits_share_a_byte_low_bits_first():
    assert pack_bits(np.array([1, 2, 15], np.uint8), 4).tolist() == [0x21, 0x0F]
    assert unpack_bits(np.array([0x21, 0x0F], np.uint8), 4).tolist() == [1, 2, 15, 0]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(6,), (3, 4), (2, 3, 16)])
def test_packed_integers_are_read_back(bits, shape):
    integers = np.random.default_rng(0).integers(0, 1 << bits, shape).astype(np.uint8)
    packed = pack_bits(integers, bits)
    assert packed.shape == (*shape[:-1], shape[-1] * bits // 8)
    np.testing.assert_array_equal(unpack_bits(packed, bits), integers)


def test_a_weight_is_its_distance_from_the_zero_point_times_the_scale():
    integers = np.array([[[0, 8, 15], [3, 4, 5]]], np.uint8)  # (out 1, blocks 2, block 3)
    scales = np.array([[0.5, 2.0]], np.float16)
    zeros = np.array([[8, 4]], np.uint8)
    values = block_values(integers, scales, zeros)
    assert values.tolist() == [[[-4, 0, 3.5], [-2, 0, 2]]]
    assert block_values(integers, scales, 8)[0, 1].tolist() == [-10, -8, -6]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_matrix_is_dequantised_block_by_block(bits, symmetric):
    rng, (rows, blocks, block) = np.random.default_rng(1), (5, 3, 4)  # an odd number of blocks
    integers = rng.integers(0, 1 << bits, (rows, blocks, block)).astype(np.uint8)
    scales = rng.uniform(0.5, 2, (rows, blocks)).astype(np.float16)
    zeros = rng.integers(0, 1 << bits, (rows, blocks)).astype(np.uint8)
    stored = None if symmetric else pack_bits(zeros, bits)
    found = dequantise(pack_bits(integers, bits), scales, stored, bits)
    for row in range(rows):
        for column in range(blocks * block):
            b = column // block
            point = (128 if bits == 8 else 8) if symmetric else int(zeros[row, b])
            want = (int(integers[row, b, column % block]) - point) * np.float32(scales[row, b])
            assert found[row, column] == want
