"""Readout: next-token statistics of residual vectors, worked out in tiles.

An engine multiplies a few vectors with a piece of the unembedding and sums up what it sees; the
walk over vectors and vocabulary, and the joining of the sums, are the same for every engine.
Softmax over a stream: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax",
arXiv 1805.02867; entropy and KL divergence go the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2kit.config import GPT2Config
from gpt2kit.errors import InputError

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
FEW = 32  # vectors whose logits may be held whole: a lens of one position, as in generation


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
class Piece:
    """What a tile of vectors has to say of one piece of the vocabulary; all (group, row, …).

    With x the logits, h the largest of them in the piece, and r, h_r those of the last group:
    high: h. z: sum e^(x-h). zx: sum e^(x-h) (x-h). rx: sum e^(r-h_r) (x-h), if the last group is a
    reference.
    top, top_ids: the largest logits, in any order, -inf where there are fewer.
    above: (group, row, targets) how many logits are larger than the target's.
    """

    high: Floats
    z: Floats
    zx: Floats
    top: Floats
    top_ids: Ints
    above: Ints
    rx: Floats | None = None


class Tile(Protocol):
    """Residual vectors (group, row, d_model) in an engine.

    chosen: (group, row, targets) the targets' logits.
    """

    chosen: Floats

    def meet(self, start: int, stop: int, top: Floats) -> Piece:
        """Read these tokens' logits.

        top: (group, row, top_k) the largest so far; what does not exceed the last of a row's need
        not be told.
        """
        ...


# (group, row, d_model), targets (group, row, n), whether the last group is a reference
OpenTile = Callable[[Floats, Ints, bool], Tile]


def tiled(
    resid: Floats,
    targets: ArrayLike | None,
    reference: Floats | None,
    *,
    config: GPT2Config,
    top_k: int,
    open_tile: OpenTile,
    vectors: int,
    width: int,
) -> Readout:
    """Readout of resid (…, d_model); the first arguments are those of `Runner.readout`.

    vectors, width: how many vectors meet how many tokens at a time.
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
    step = max(1, vectors // (count + apart))
    found = []
    for start in range(0, rows, step):
        x, ids = groups[:, start : start + step], wanted[:, start : start + step]
        if reference is not None and apart:
            x = np.concatenate([x, reference[None, start : start + step]])
            ids = np.concatenate([ids, ids[-1:]])
        tile = open_tile(x, ids, refers)
        found.append(_stream(tile, x.shape[:2], config.vocab_size, width, top_k))
    left_out = set() if refers else {"kl"}
    if targets is None:
        left_out |= {"target_logprobs", "target_ranks"}
    merged = {}
    for name in found[0].keys() - left_out:
        whole = np.concatenate([read[name] for read in found], axis=1)[:count]
        merged[name] = whole.reshape((*shape, *whole.shape[2:]))
    return Readout(**merged)


def check_width(resid: Floats, width: int) -> None:
    """Raise InputError unless these are residual vectors (…, width)."""
    if not resid.ndim or resid.shape[-1] != width:
        raise InputError(f"vectors of shape {resid.shape} given, the model's are {width} wide")


def _grouped(resid: Floats, reference: Floats | None, width: int) -> tuple[Floats, Floats | None]:
    """Resid as (group, row, d_model), the reference as (row, d_model) against each group."""
    check_width(resid, width)
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


def _stream(
    tile: Tile, rows: tuple[int, ...], vocab: int, width: int, top_k: int
) -> dict[str, NDArray[Any]]:
    """Let a tile meet the whole vocabulary, and join what it says of the pieces: Readout's fields,
    (group, row, …), KL against the last group."""
    top, top_ids = np.full((*rows, top_k), -np.inf), np.zeros((*rows, top_k), np.int64)
    ranks = np.zeros(tile.chosen.shape, np.int64)
    starts = range(0, vocab, width)
    # Made beforehand: small results kept between large ones would tear the heap into holes.
    high, z_of, zx_of, rx_of = np.empty((4, len(starts), *rows))
    for i, start in enumerate(starts):
        piece = tile.meet(start, min(start + width, vocab), top)
        high[i], z_of[i], zx_of[i] = piece.high, piece.z, piece.zx
        rx_of[i] = 0 if piece.rx is None else piece.rx
        ranks += piece.above
        _keep_top(top, top_ids, piece)
        del piece
    most = high.max(0)
    below, share = high - most, np.exp(high - most)
    z = (share * z_of).sum(0)
    log = np.log(z)
    log_z = log + most
    entropy = log - (share * (zx_of + z_of * below)).sum(0) / z
    expected = (share[:, -1:] * (rx_of + z_of[:, -1:] * below)).sum(0) / z[-1]
    out = {
        "log_z": log_z,
        "entropy": entropy,
        "kl": log - expected - entropy[-1],  # KL(r || p) = log Z - E_r[x] - H(r)
        "top_logprobs": top - log_z[..., None],
        "target_logprobs": tile.chosen - log_z[..., None],
    }
    narrow = {name: x.astype(tile.chosen.dtype) for name, x in out.items()}
    return {"top_ids": top_ids, "target_ranks": ranks, **narrow}


def _keep_top(top: Floats, top_ids: Ints, piece: Piece) -> None:
    """Merge the largest logits of a piece into those so far, largest first."""
    better = piece.high > top[..., -1]
    values = np.concatenate([top[better], piece.top[better]], -1)
    ids = np.concatenate([top_ids[better], piece.top_ids[better]], -1)
    order = np.argsort(-values, axis=-1, kind="stable")[:, : top.shape[-1]]
    top[better] = np.take_along_axis(values, order, -1)
    top_ids[better] = np.take_along_axis(ids, order, -1)
