"""Statistics of next-token distributions.

Each function takes log-probabilities (…, vocab), natural logarithms, and computes in float64. A
token of probability 0 (log-probability -inf) adds 0 to a sum, the limit of p log p.
Jensen-Shannon divergence: Lin 1991, "Divergence measures based on the Shannon entropy".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2kit.readout import Ints

Doubles = NDArray[np.float64]


def entropy(log_p: ArrayLike) -> Doubles:
    """(…, vocab) -> (…) entropy in nats, -sum p log p; from 0 to log(vocab)."""
    log = _as_float64(log_p)
    return -_expected(log, log)


def kl_divergence(log_p: ArrayLike, log_q: ArrayLike) -> Doubles:
    """KL(p || q) in nats, sum p (log p - log q).

    At least 0; infinite if q gives probability 0 to a token that p allows.
    """
    p, q = _as_float64(log_p), _as_float64(log_q)
    with np.errstate(invalid="ignore"):  # -inf - -inf, for tokens that p gives probability 0
        return _expected(p, p - q)


def js_divergence(log_p: ArrayLike, log_q: ArrayLike) -> Doubles:
    """Jensen-Shannon divergence in nats: the mean of KL(p || m) and KL(q || m), m = (p + q) / 2.

    Symmetric in p and q; from 0 to log 2.
    """
    p, q = _as_float64(log_p), _as_float64(log_q)
    m = np.logaddexp(p, q) - np.log(2)
    return (kl_divergence(p, m) + kl_divergence(q, m)) / 2


def total_variation(log_p: ArrayLike, log_q: ArrayLike) -> Doubles:
    """Half the sum of |p - q|: the largest difference in probability of any set of tokens.

    From 0 to 1.
    """
    p, q = np.exp(_as_float64(log_p)), np.exp(_as_float64(log_q))
    half: Doubles = np.abs(p - q).sum(-1) / 2
    return half


def rank(log_p: ArrayLike, ids: ArrayLike) -> Ints:
    """(…, vocab), token ids (…) -> (…) number of likelier tokens; 0 means the likeliest."""
    log, at = _as_float64(log_p), np.asarray(ids, np.int64)[..., None]
    above: Ints = (log > np.take_along_axis(log, at, -1)).sum(-1)
    return above


def max_prob(log_p: ArrayLike) -> Doubles:
    """(…, vocab) -> (…) probability of the likeliest token."""
    top: Doubles = np.exp(_as_float64(log_p).max(-1))
    return top


def _as_float64(log_p: ArrayLike) -> Doubles:
    return np.asarray(log_p, np.float64)


def _expected(log_p: Doubles, values: Doubles) -> Doubles:
    """(…) sum over the vocabulary of p * values; `values` are ignored where p is 0."""
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        mean: Doubles = np.where(p > 0, p * values, 0.0).sum(-1)
    return mean
