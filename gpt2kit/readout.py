"""Readout: next-token statistics of residual vectors, computed in tiles.

An engine multiplies a tile of vectors with one piece of the unembedding after another and returns
sums over each piece (`Sums`). This module cuts the vectors into tiles and joins the sums, for both
engines. Nothing of size vectors x vocabulary is held. Softmax in pieces: Milakov and Gimelshein
2018, "Online normalizer calculation for softmax", arXiv 1805.02867; entropy and KL divergence are
joined in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2kit.checks import check_finite, check_integers, check_numbers, check_top_k
from gpt2kit.config import GPT2Config
from gpt2kit.errors import InputError

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Readout:
    """Next-token statistics of residual vectors read through ln_f and the unembedding.

    Leading axes (…) are the residual vectors' own; logarithms are natural.
    top_ids, top_logprobs: (…, top_k), likeliest first.
    log_z:   (…) log-sum-exp of the logits, so that logit = log-probability + log_z.
    entropy: (…) nats.
    kl:      (…) nats, KL(reference || this), or None without a reference.
    target_logprobs, target_ranks: (…, targets), or None; rank 0 is the likeliest token.
    """

    top_ids: Ints
    top_logprobs: Floats
    log_z: Floats
    entropy: Floats
    kl: Floats | None = None
    target_logprobs: Floats | None = None
    target_ranks: Ints | None = None


@dataclass(frozen=True)
class Sums:
    """What an engine computes for a tile of vectors: sums over each piece of the vocabulary.

    The vectors of a tile are (row, group). x are a vector's logits in one piece, p is the softmax
    of x over this piece alone.
    base:  (piece, row, group) subtracted from all x first, to keep exp(x - base) in range.
    log_z: (piece, row, group) log sum exp(x - base).
    mean:  (piece, row, group) sum p (x - base).
    reference_mean: (piece, row, group) the same with p of the row's last group, which is the
           reference; None without one.
    top, top_ids: (row, group, at least top_k) the largest logits of all pieces, in any order.
    chosen: (row, group, targets) the targets' logits.
    above: (row, group, targets) number of logits that are larger than the target's.
    """

    base: Floats
    log_z: Floats
    mean: Floats
    reference_mean: Floats | None
    top: Floats
    top_ids: Ints
    chosen: Floats
    above: Ints


# Vectors (row, group, d_model), targets (row, group, n), whether the last group is a reference, and
# top_k -> Sums
Read = Callable[[Floats, Ints, bool, int], Sums]


def tiled(
    resid: Floats,
    targets: ArrayLike | None,
    reference: Floats | None,
    *,
    config: GPT2Config,
    dtype: str,
    top_k: int,
    read: Read,
    vectors: int,
) -> Readout:
    """Readout of resid (…, d_model). For resid, targets, reference, see `Runner.readout`.

    vectors: number of vectors in one tile.
    """
    top_k = check_top_k(top_k, config.vocab_size)
    resid = check_residual(resid, config.n_embd, dtype)
    shape = resid.shape[:-1]
    groups, reference = _grouped(resid, reference, config.n_embd, dtype)
    count, rows = groups.shape[:2]
    wanted = _targets(targets, shape, (count, rows), config.vocab_size)
    refers = reference is not None
    # The engine needs the reference's logits too. The reference becomes one more group, unless it
    # is the last group already, as it is when a lens compares layers with the final one.
    extra = None if reference is None or np.array_equal(reference, groups[-1]) else reference
    tiles = -(-rows // max(1, vectors // (count + (extra is not None))))
    step = -(-rows // tiles)  # so that all tiles but the last have one size
    found = []
    for start in range(0, rows, step):
        x, ids = groups[:, start : start + step], wanted[:, start : start + step]
        if extra is not None:
            x = np.concatenate([x, extra[None, start : start + step]])
            ids = np.concatenate([ids, ids[-1:]])
        found.append(_join(read(x.swapaxes(0, 1), ids.swapaxes(0, 1), refers, top_k), top_k))
    left_out = set() if refers else {"kl"}
    if targets is None:
        left_out |= {"target_logprobs", "target_ranks"}
    merged = {}
    for name in found[0].keys() - left_out:
        whole = np.concatenate([part[name] for part in found])[:, :count].swapaxes(0, 1)
        merged[name] = whole.reshape((*shape, *whole.shape[2:]))
    return Readout(**merged)


def check_residual(resid: Any, width: int, dtype: str) -> Floats:
    """Return residual vectors (…, width), whose numbers `dtype` can hold, as a float array.

    Raises InputError for anything else.
    """
    vectors = check_numbers("resid", resid)
    if not vectors.ndim or vectors.shape[-1] != width:
        shape = vectors.shape
        raise InputError(f"resid: vectors of shape {shape} given, the model's are {width} wide")
    check_finite("resid", vectors, dtype)
    return vectors


def _grouped(
    resid: Floats, reference: Floats | None, width: int, dtype: str
) -> tuple[Floats, Floats | None]:
    """Resid as (group, row, d_model), the reference as (row, d_model) for all groups."""
    if not resid.size:
        raise InputError(f"resid: vectors of shape {resid.shape} given: at least one is needed")
    if reference is None:
        return resid.reshape(1, -1, width), None
    reference = check_numbers("reference", reference)
    axes = reference.shape[:-1]
    ends = resid.shape[:-1][resid.ndim - reference.ndim :] if reference.ndim else None
    if reference.shape[-1:] != (width,) or ends != axes:
        raise InputError(f"reference {reference.shape} does not end the axes of {resid.shape}")
    check_finite("reference", reference, dtype)
    reference = reference.reshape(-1, width)
    return resid.reshape(-1, len(reference), width), reference


def _targets(
    targets: ArrayLike | None, shape: tuple[int, ...], rows: tuple[int, int], vocab: int
) -> Ints:
    """Target ids (group, row, n), checked; n is 0 without targets."""
    if targets is None:
        return np.zeros((*rows, 0), np.int64)
    given = np.atleast_1d(check_integers("targets", targets))
    if ((given < 0) | (given >= vocab)).any():
        raise InputError(f"targets: a token id is outside the vocabulary of {vocab}")
    try:
        wanted = np.broadcast_to(given, (*shape, given.shape[-1]))
    except ValueError as error:
        raise InputError(
            f"targets of shape {given.shape} do not broadcast against {shape}"
        ) from error
    return wanted.reshape(*rows, given.shape[-1])


def _join(sums: Sums, top_k: int) -> dict[str, NDArray[Any]]:
    """The fields of Readout for one tile, (row, group, …), from the sums over each piece.

    KL is against the last group. Computed in float64.
    """
    base = sums.base.astype(np.float64)
    log_z_of = base + sums.log_z
    most = log_z_of.max(0)
    log_z = most + np.log(np.exp(log_z_of - most).sum(0))
    share = np.exp(log_z_of - log_z)  # probability of each piece
    entropy = log_z - (share * (base + sums.mean)).sum(0)
    kl = np.zeros_like(log_z)
    if sums.reference_mean is not None:
        # KL(r || p) = log Z - E_r[x] - H(r). E_r[x] of the reference itself is summed in the same
        # way, so that the KL of the reference from itself is exactly 0.
        expected = (share[:, :, -1:] * (base + sums.reference_mean)).sum(0)
        kl = log_z - expected
        kl = kl - kl[:, -1:]
    order = np.argsort(-sums.top, axis=-1, kind="stable")[..., :top_k]
    top, top_ids = (np.take_along_axis(x, order, -1) for x in (sums.top, sums.top_ids))
    out = {
        "log_z": log_z,
        "entropy": entropy,
        "kl": kl,
        "top_logprobs": top - log_z[..., None],
        "target_logprobs": sums.chosen - log_z[..., None],
    }
    narrow = {name: x.astype(sums.chosen.dtype) for name, x in out.items()}
    return {"top_ids": top_ids, "target_ranks": sums.above, **narrow}
