"""Statistics of distributions: their definitions and their bounds."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.special import log_softmax

from probes.core.statistics import (
    entropy,
    js_divergence,
    kl_divergence,
    max_prob,
    rank,
    total_variation,
)
from tests.conftest import close

LOG_2 = np.log(2)

ROUNDING = 1e-12

SIZE = 7


@st.composite
def log_probs(draw):
    """(3, 7) log-probabilities, some of them -inf, from nearly uniform to nearly certain."""
    logits = draw(arrays(np.float64, (3, SIZE), elements=st.floats(-300, 300)))
    out = draw(arrays(np.bool_, (3, SIZE)))
    out[:, draw(st.integers(0, SIZE - 1))] = False  # some token stays possible
    return log_softmax(np.where(out, -np.inf, logits * draw(st.sampled_from([1e-3, 0.1, 1]))), -1)


@settings(max_examples=60, deadline=None)
@given(log_probs(), log_probs())
def test_each_statistic_equals_its_definition(p, q):
    a, b = np.exp(p), np.exp(q)
    close(entropy(p), stats.entropy(a, axis=-1), 1e-9)
    # scipy's jensenshannon takes a root, which is NaN where rounding makes the sum negative.
    halves = [stats.entropy(x, (a + b) / 2, axis=-1) / 2 for x in (a, b)]
    close(js_divergence(p, q), sum(halves), 1e-9)
    close(total_variation(p, q), np.where(a > b, a - b, 0).sum(-1), 1e-9)
    close(max_prob(p), a.max(-1))
    impossible = ((b == 0) & (a > 0)).any(-1)  # that some token is, for q but not for p
    some = np.isfinite(kl_divergence(p, q))
    assert (some | impossible).all()
    plain = stats.entropy(a[~impossible], b[~impossible], axis=-1)
    close(kl_divergence(p, q)[~impossible], plain, 1e-7)
    for id_ in range(SIZE):
        got = rank(p, np.full(3, id_))
        assert got.tolist() == [sorted(row, reverse=True).index(row[id_]) for row in p.tolist()]


@settings(max_examples=100, deadline=None)
@given(log_probs(), log_probs())
def test_each_statistic_stays_in_its_bounds(p, q):
    h, kl, js = entropy(p), kl_divergence(p, q), js_divergence(p, q)
    tv = total_variation(p, q)
    assert ((h >= -ROUNDING) & (h <= np.log(SIZE) + ROUNDING)).all()
    assert (kl >= -ROUNDING).all()
    assert ((js >= -ROUNDING) & (js <= LOG_2 + ROUNDING)).all()
    assert ((tv >= 0) & (tv <= 1 + ROUNDING)).all()
    assert ((max_prob(p) >= 1 / SIZE - ROUNDING) & (max_prob(p) <= 1 + ROUNDING)).all()
    assert (2 * tv**2 <= kl + ROUNDING).all()  # Pinsker
    assert (js <= tv * LOG_2 + ROUNDING).all()  # Lin 1991
    np.testing.assert_allclose(js_divergence(q, p), js, atol=ROUNDING)
    np.testing.assert_allclose(total_variation(q, p), tv, atol=ROUNDING)
    for same in (kl_divergence(p, p), js_divergence(p, p), total_variation(p, p)):
        np.testing.assert_allclose(same, 0, atol=ROUNDING)


def test_distributions_without_a_common_token_are_as_far_apart_as_can_be():
    with np.errstate(divide="ignore"):
        p, q = np.log([[0.5, 0.5, 0, 0]]), np.log([[0, 0, 0.2, 0.8]])
    close(js_divergence(p, q), [LOG_2], 1e-12)
    close(total_variation(p, q), [1.0], 1e-12)
    assert kl_divergence(p, q).tolist() == [np.inf]
    close(entropy(p), [LOG_2], 1e-12)
