"""Batches hold as many rows as the limit allows, keep their order, and are never empty."""

import pytest

from probes.core import batching
from probes.core.batching import batches_by_tokens, row_batches


@pytest.mark.parametrize(("limit", "sizes"), [(12, [3, 3, 1]), (4, [1] * 7), (1, [1] * 7)])
def test_copies_fill_batches_up_to_the_limit(monkeypatch, limit, sizes):
    monkeypatch.setattr(batching, "COPIES_POSITIONS", limit)
    parts = [list(part) for part in row_batches(range(7), 4)]
    assert [len(part) for part in parts] == sizes
    assert sum(parts, []) == list(range(7))  # noqa: RUF017


def test_prompts_of_unequal_length_count_with_their_padding(monkeypatch):
    monkeypatch.setattr(batching, "PROMPTS_POSITIONS", 10)
    rows = ["ab", "abcde", "a", "abc", "abcdefghijklm", "ab"]
    parts = list(batches_by_tokens(rows))
    assert parts == [["ab", "abcde"], ["a", "abc"], ["abcdefghijklm"], ["ab"]]
    assert list(batches_by_tokens([])) == []
