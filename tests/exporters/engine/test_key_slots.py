"""The key axis of a growing cache, from absolute positions to slots and back; chunks of a run."""

import numpy as np
import pytest

from exporters.engine.key_slots import close_gaps, spread_keys
from exporters.engine.run_chunks import join_outputs, split_run
from gpt2kit.batch import Batch

PATTERN, SLOTS = "blocks.0.pattern", np.array([[1, 1, 1, 1], [1, 0, 0, 1]], bool)


def test_keys_of_a_row_with_a_gap_move_to_its_slots_and_back():
    keys = np.arange(1.0, 9).reshape(2, 1, 1, 4)  # (batch, head, query, key)
    spread = spread_keys(keys, SLOTS, fill=-1)
    assert spread[:, 0, 0].tolist() == [[1, 2, 3, 4], [5, -1, -1, 6]]
    closed = close_gaps(spread, PATTERN, SLOTS, end=4)
    assert closed[:, 0, 0].tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]


def test_what_needs_no_move_is_returned_as_it_is():
    every = np.ones((2, 4), bool)
    keys = np.arange(8.0).reshape(2, 1, 1, 4)
    assert spread_keys(keys, every, fill=0) is keys
    assert spread_keys(keys[..., :1], SLOTS, fill=0).shape == (2, 1, 1, 1)
    assert close_gaps(keys, PATTERN, every, end=3).shape == (2, 1, 1, 3)
    assert close_gaps(keys, "blocks.0.z", SLOTS, end=3) is keys


@pytest.mark.parametrize("size", [2, 3, 5])
def test_one_row_splits_into_chunks_that_go_on_where_the_last_ended(size):
    batch = Batch(np.arange(10, 15)[None], np.array([5]), np.array([7]))
    chunks = split_run(batch, size)
    assert np.concatenate([chunk.ids for chunk in chunks], axis=1).tolist() == batch.ids.tolist()
    assert [int(chunk.starts[0]) for chunk in chunks] == list(range(7, 12, size))
    assert chunks[-1].end == batch.end


def test_a_row_that_has_ended_repeats_its_last_token_in_place():
    batch = Batch(np.array([[1, 2, 3], [4, 0, 0]]), np.array([3, 1]), np.array([5, 6]))
    chunks = split_run(batch, 1)
    assert [chunk.ids[:, 0].tolist() for chunk in chunks] == [[1, 4], [2, 4], [3, 4]]
    assert [chunk.starts.tolist() for chunk in chunks] == [[5, 6], [6, 6], [7, 6]]


def test_scores_of_early_chunks_have_later_keys_as_zeros():
    chunks = [np.ones((1, 2, 3, keys)) for keys in (3, 6)]  # (batch, head, query, key)
    joined = join_outputs(chunks, PATTERN, end=6)
    assert joined.shape == (1, 2, 6, 6)
    assert joined[0, 0].sum(-1).tolist() == [3, 3, 3, 6, 6, 6]
    assert join_outputs([np.ones((1, 2, 4))] * 2, "blocks.0.resid_post", end=9).shape == (1, 4, 4)
