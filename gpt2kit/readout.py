"""Readout: next-token statistics of residual vectors, worked out in tiles.

An engine multiplies a few vectors with the unembedding, piece by piece, and sums up what it sees;
the walk over vectors and the joining of the pieces are the same for every engine. Softmax in
pieces: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", arXiv 1805.02867;
entropy and KL divergence go the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2kit.config import GPT2Config
from gpt2kit.errors import InputError

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Readout:
    """Next-token statistics of residual vectors read through ln_f and the unembedding.

    Leading axes (…) are those of the residual vectors; logarithms are natural.
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
    """What an engine has to say of a tile of vectors, piece by piece of the vocabulary.

    Vectors are (row, group); x are a vector's logits in a piece, p their softmax within it.
    base:  (piece, row, group) subtracted from all x beforehand, to keep what is summed small.
    log_z: (piece, row, group) log sum exp(x - base).
    mean:  (piece, row, group) sum p (x - base).
    reference_mean: (piece, row, group) the same with p of the row's last group, if that is a
           reference; else None.
    top, top_ids: (row, group, at least top_k) the largest logits of all pieces, in any order.
    chosen: (row, group, targets) the targets' logits.
    above: (row, group, targets) how many logits are larger than the target's.
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
    top_k: int,
    read: Read,
    vectors: int,
) -> Readout:
    """Readout of resid (…, d_model); the first arguments are those of `Runner.readout`.

    vectors: how many meet the vocabulary at a time.
    """
    if not 1 <= top_k <= config.vocab_size:
        raise InputError(f"top_k = {top_k} must be from 1 to the vocabulary's {config.vocab_size}")
    shape = resid.shape[:-1]
    groups, reference = _grouped(resid, reference, config.n_embd)
    wanted = _targets(targets, shape, groups.shape[:2], config.vocab_size)
    count, rows = groups.shape[:2]
    refers = reference is not None
    # It rides along as one more group, for its logits are needed too; often it is the last one.
    apart = reference is not None and not np.array_equal(reference, groups[-1])
    tiles = -(-rows // max(1, vectors // (count + apart)))
    step = -(-rows // tiles)  # all of one size, but for the last
    found = []
    for start in range(0, rows, step):
        x, ids = groups[:, start : start + step], wanted[:, start : start + step]
        if reference is not None and apart:
            x = np.concatenate([x, reference[None, start : start + step]])
            ids = np.concatenate([ids, ids[-1:]])
        sums = read(x.swapaxes(0, 1), ids.swapaxes(0, 1), refers, top_k)
        found.append(_join(sums, top_k))
    left_out = set() if refers else {"kl"}
    if targets is None:
        left_out |= {"target_logprobs", "target_ranks"}
    merged = {}
    for name in found[0].keys() - left_out:
        whole = np.concatenate([part[name] for part in found])[:, :count].swapaxes(0, 1)
        merged[name] = whole.reshape((*shape, *whole.shape[2:]))
    return Readout(**merged)


def check_width(resid: Floats, width: int) -> None:
    """Raise InputError unless these are residual vectors (…, width)."""
    if not resid.ndim or resid.shape[-1] != width:
        raise InputError(f"vectors of shape {resid.shape} given, the model's are {width} wide")


def _grouped(resid: Floats, reference: Floats | None, width: int) -> tuple[Floats, Floats | None]:
    """Resid as (group, row, d_model), the reference as (row, d_model) against each group."""
    check_width(resid, width)
    if not resid.size:
        raise InputError(f"vectors of shape {resid.shape} given: at least one is wanted")
    if reference is None:
        return resid.reshape(1, -1, width), None
    axes = reference.shape[:-1]
    if reference.shape[-1] != width or resid.shape[:-1][resid.ndim - reference.ndim :] != axes:
        raise InputError(f"reference {reference.shape} does not end the axes of {resid.shape}")
    reference = reference.reshape(-1, width)
    return resid.reshape(-1, len(reference), width), reference


def _targets(
    targets: ArrayLike | None, shape: tuple[int, ...], rows: tuple[int, ...], vocab: int
) -> Ints:
    """Target ids (group, row, n), checked."""
    if targets is None:
        return np.zeros((*rows, 0), np.int64)
    given = np.atleast_1d(np.asarray(targets, np.int64))
    if ((given < 0) | (given >= vocab)).any():
        raise InputError(f"a target id is outside the vocabulary of {vocab}")
    try:
        wanted = np.broadcast_to(given, (*shape, given.shape[-1]))
    except ValueError as error:
        raise InputError(
            f"targets of shape {given.shape} do not broadcast against {shape}"
        ) from error
    return wanted.reshape(*rows, given.shape[-1])


def _join(sums: Sums, top_k: int) -> dict[str, NDArray[Any]]:
    """What a tile's pieces say together: Readout's fields, (row, group, …), KL against the last
    group; worked out in float64."""
    base = sums.base.astype(np.float64)
    log_z_of = base + sums.log_z
    most = log_z_of.max(0)
    log_z = most + np.log(np.exp(log_z_of - most).sum(0))
    share = np.exp(log_z_of - log_z)  # of each piece in the whole
    entropy = log_z - (share * (base + sums.mean)).sum(0)
    kl = np.zeros_like(log_z)
    if sums.reference_mean is not None:
        # KL(r || p) = log Z - E_r[x] - H(r), all of E_r from the same sums
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
