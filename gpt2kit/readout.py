"""Readout: next-token statistics of residual vectors, worked out in tiles.

What an engine must bring is two functions on a few rows of vectors; the walk over layers and
positions, which never holds layers x positions x vocabulary, is the same for every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2kit.config import GPT2Config
from gpt2kit.errors import InputError

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
TILE_BYTES = 64 << 20  # of float32 logits held at a time


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


# (rows, d_model) -> what the engine needs to know of the distributions that KL is taken from.
ReferenceOf = Callable[[Floats], Any]
# (rows, d_model), targets (rows, n) or None, such a reference or None -> the fields of Readout.
Statistics = Callable[[Floats, Ints | None, Any], Mapping[str, NDArray[Any]]]


def tiled(
    resid: Floats,
    targets: ArrayLike | None,
    reference: Floats | None,
    *,
    config: GPT2Config,
    top_k: int,
    reference_of: ReferenceOf,
    statistics: Statistics,
) -> Readout:
    """Readout of resid (…, d_model), a few rows at a time; arguments as in `Runner.readout`."""
    if not 1 <= top_k <= config.vocab_size:
        raise InputError(f"top_k = {top_k} must be from 1 to the vocabulary's {config.vocab_size}")
    shape, width = resid.shape[:-1], resid.shape[-1]
    if width != config.n_embd:
        raise InputError(f"vectors of width {width} given, the model's are {config.n_embd} wide")
    if reference is None:
        rows = resid.size // width
    else:
        rows = reference.size // width
        if (
            reference.shape[-1] != width
            or shape[resid.ndim - reference.ndim :] != (reference.shape[:-1])
        ):
            raise InputError(f"reference {reference.shape} does not end the axes of {resid.shape}")
        reference = reference.reshape(rows, width)
    groups = resid.reshape(-1, rows, width)
    wanted = None
    if targets is not None:
        given = np.atleast_1d(np.asarray(targets, np.int64))
        if ((given < 0) | (given >= config.vocab_size)).any():
            raise InputError(f"a target id is outside the vocabulary of {config.vocab_size}")
        try:
            wanted = np.broadcast_to(given, (*shape, given.shape[-1]))
        except ValueError as error:
            raise InputError(
                f"targets of shape {given.shape} do not broadcast against {shape}"
            ) from error
        wanted = wanted.reshape(len(groups), rows, given.shape[-1])
    step = max(1, TILE_BYTES // (4 * config.vocab_size))
    found: list[list[Mapping[str, NDArray[Any]]]] = [[] for _ in groups]
    for start in range(0, rows, step):
        part = slice(start, start + step)
        against = None if reference is None else reference_of(reference[part])
        for i, vectors in enumerate(groups):
            ids = None if wanted is None else wanted[i, part]
            found[i].append(statistics(vectors[part], ids, against))
    merged = {
        name: np.stack([np.concatenate([tile[name] for tile in tiles]) for tiles in found])
        for name in found[0][0]
    }
    return Readout(**{name: x.reshape((*shape, *x.shape[2:])) for name, x in merged.items()})
