"""What the tools measure on stories: every token is scored once, and the baseline adds up."""

import numpy as np
import pytest
from corpus import IGNORED, Stories, windows
from measure import loss_of
from ngram import KneserNey

from gpt2kit import Edit
from gpt2kit.logits import log_softmax
from tests.conftest import close, random_ids


def stories(*lengths: int, vocab: int = 250) -> Stories:
    return Stories([random_ids(n, seed=n, vocab=vocab) for n in lengths], bytes=sum(lengths))


@pytest.mark.parametrize(("width", "stride"), [(8, 4), (8, 8), (5, 2)])
def test_windows_score_every_token_once(width, stride):
    some = stories(2, 8, 9, 10, 31)
    found = [np.concatenate(part) for part in zip(*windows(some, width, stride), strict=True)]
    targets = found[1][found[1] != IGNORED]
    np.testing.assert_array_equal(targets, np.concatenate([story[1:] for story in some.tokens]))
    assert some.scored == len(targets)


def test_a_window_begins_with_the_context_of_its_targets():
    (story,) = stories(20).tokens
    for ids, targets in windows(Stories([story], 20), 8, 4):
        for row, target in zip(ids.numpy(), targets.numpy(), strict=True):
            scored = np.flatnonzero(target != IGNORED)
            place = int(np.flatnonzero(story == target[scored[0]])[0])
            np.testing.assert_array_equal(story[place - scored[0] - 1 :][: scored[-1] + 1],
                                          row[: scored[-1] + 1])  # fmt: skip
            assert scored[0] >= 4 or place == 1


def test_the_loss_of_short_stories_is_the_mean_over_their_tokens(torch_runner):
    some = stories(3, 12, 30)
    nats = 0.0
    for story in some.tokens:
        logp = log_softmax(torch_runner.run(story).logits[0].astype(np.float64))
        nats -= logp[np.arange(len(story) - 1), story[1:]].sum()
    close(loss_of(torch_runner, some), nats / 42)


def test_a_loss_without_a_head_is_another_loss(torch_runner):
    some = stories(30)
    without = loss_of(torch_runner, some, [Edit.zero("blocks.0.z", head=1)])
    assert abs(without - loss_of(torch_runner, some)) > 1e-3


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_probabilities_of_the_next_token_sum_to_one(order):
    vocab = 7
    model = KneserNey(random_ids(300, vocab=vocab - 1), order, vocab)  # token 6 is never seen
    for context in ([0, 1, 2], [3, 3, 3], [6, 6, 6]):
        nexts = [model.probabilities(np.array([*context, token]))[-1] for token in range(vocab)]
        assert min(nexts) > 0
        assert sum(nexts) == pytest.approx(1)


def test_a_bigram_model_by_hand():
    # Four bigrams are seen once, two twice, one three times, and one four times, so that all
    # discounts can be estimated: Y = 4 / (4 + 2 * 2) = 1 / 2.
    pairs = [(0, 1)] * 4 + [(1, 0)] * 3 + [(0, 2)] * 2 + [(2, 0)] * 2
    pairs += [(1, 2), (2, 1), (1, 1), (2, 2)]
    model = KneserNey(np.array(walk(pairs)), 2, 3)
    d1, d2, d3 = 1 - 2 * 0.5 * 2 / 4, 2 - 3 * 0.5 * 1 / 2, 3 - 4 * 0.5 * 1 / 1
    # 0 is followed by 1 four times and by 2 twice; 1 has three left neighbours of the eight kinds.
    lower = model_of_left_neighbours({0: 2, 1: 3, 2: 3})
    want = (4 - d3) / 6 + (d3 + d2) / 6 * lower[1]
    assert model.probabilities(np.array([0, 1]))[0] == pytest.approx(want)
    want = (1 - d1) / 5 + (d3 + d1 + d1) / 5 * lower[2]
    assert model.probabilities(np.array([1, 2]))[0] == pytest.approx(want)


def walk(pairs: list[tuple[int, int]]) -> list[int]:
    """A text whose bigrams are these pairs, in some order (Hierholzer)."""
    left, stack, text = list(pairs), [pairs[0][0]], list[int]()
    while stack:
        following = next((pair for pair in left if pair[0] == stack[-1]), None)
        if following is None:
            text.append(stack.pop())
        else:
            left.remove(following)
            stack.append(following[1])
    assert len(text) == len(pairs) + 1
    return text[::-1]


def model_of_left_neighbours(counts: dict[int, int]) -> dict[int, float]:
    """p of the unigrams. No count is 1, so that every discount is a half."""
    total = sum(counts.values())
    return {t: (n - 0.5) / total + 0.5 * len(counts) / total / 3 for t, n in counts.items()}
