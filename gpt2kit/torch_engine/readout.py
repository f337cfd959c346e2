"""Sums over the vocabulary on torch, one piece after another; `gpt2kit.readout` joins them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gpt2kit.linear import linear
from gpt2kit.logits import largest
from gpt2kit.model import GPT2, at_least_float32
from gpt2kit.readout import Floats, Ints, Sums

VECTORS = 1024  # vectors in one tile
FEW = 32  # with at most this many vectors, all logits are held: a lens of one generated token


def width(vectors: int, device: torch.device) -> int:
    """Number of tokens in one piece of the vocabulary, for this many vectors.

    On a CPU, small enough that the logits and weights of a piece stay in its caches.
    """
    if device.type != "cpu":
        return 16384
    return 512 if vectors > FEW else 1 << 20


def largest_logits(model: GPT2, x: Tensor, k: int) -> tuple[Floats, Ints]:
    """ln_f (batch, pos, d_model) -> the k largest logits, largest first, and their tokens."""
    if not k:
        return np.empty((*x.shape[:-1], 0), np.float32), np.empty((*x.shape[:-1], 0), np.int64)
    size, step = len(model.unembedding), width(x.shape[0] * x.shape[1], x.device)
    if size <= step and x.device.type == "cpu":
        # numpy selects the k largest of a vocabulary faster than torch does
        return largest(at_least_float32(model.unembed(x)).numpy(), k)
    top = at_least_float32(x).new_full((*x.shape[:-1], k), -torch.inf)
    top_ids = torch.zeros_like(top, dtype=torch.int64)
    for start in range(0, size, step):
        logits = at_least_float32(linear(x, model.unembedding[start : start + step].T))
        _keep_top(top, top_ids, logits, logits.amax(-1), start)
    return top.cpu().numpy(), top_ids.cpu().numpy()


def sums(model: GPT2, x: Tensor, targets: Tensor, refers: bool, top_k: int) -> Sums:
    """See `gpt2kit.readout.Read`. x: (row, group, d_model) output of ln_f. targets: (row, group, n)
    token ids."""
    wide, vectors = at_least_float32(x), x.shape[:2]
    chosen = wide.new_empty(targets.shape)
    for n, ids in enumerate(targets.unbind(-1)):
        chosen[..., n] = (at_least_float32(model.unembedding[ids]) * wide).sum(-1)
    top = wide.new_full((*vectors, top_k), -torch.inf)
    top_ids, above = torch.zeros_like(top, dtype=torch.int64), torch.zeros_like(targets)
    size, step = len(model.unembedding), width(vectors.numel(), x.device)
    starts = range(0, size, step)
    # Allocated first: small results between large temporary arrays would fragment the heap.
    base, z, mean, reference_mean = wide.new_empty((4, len(starts), *vectors))
    for i, start in enumerate(starts):
        piece = model.unembedding[start : start + step]
        logits = at_least_float32(linear(x, piece.T))  # (row, group, token)
        high = torch.amax(logits, -1, out=base[i])
        _keep_top(top, top_ids, logits, high, start)
        other = torch.empty_like(logits)
        above += _above(logits, chosen, targets - start, other)
        logits -= high[..., None]
        weights = torch.exp(logits, out=other)
        total = torch.sum(weights, -1, out=z[i])
        if refers:  # means[:, i, j]: mean of the logits of group j under the softmax of group i
            means = torch.bmm(weights, logits.transpose(1, 2))
            torch.div(means.diagonal(dim1=1, dim2=2), total, out=mean[i])
            torch.div(means[:, -1], total[:, -1:], out=reference_mean[i])
        else:
            torch.div(weights.mul_(logits).sum(-1), total, out=mean[i])
    return Sums(
        base=base.cpu().numpy(),
        log_z=z.log_().cpu().numpy(),
        mean=mean.cpu().numpy(),
        reference_mean=reference_mean.cpu().numpy() if refers else None,
        top=top.cpu().numpy(),
        top_ids=top_ids.cpu().numpy(),
        chosen=chosen.cpu().numpy(),
        above=above.cpu().numpy(),
    )


def _keep_top(top: Tensor, top_ids: Tensor, logits: Tensor, high: Tensor, start: int) -> None:
    """Merge the logits of a piece, (row, group, token), into the largest so far, in place.

    high: (row, group) the largest logit of the piece. start: the piece's first token. Only vectors
    with a new large logit are touched, which are few after the first pieces. NaN counts as larger
    than any number, so that it shows up in the result.
    """
    rows = (~(high <= top[..., -1])).flatten().nonzero()[:, 0]
    if not len(rows):
        return
    logits, top, top_ids = (part.flatten(0, 1) for part in (logits, top, top_ids))
    found = logits if len(rows) == len(logits) else logits[rows]  # no copy for the first piece
    new = found.topk(min(top.shape[-1], logits.shape[-1]))
    best = torch.cat([top[rows], new.values], -1).topk(top.shape[-1])
    top_ids[rows] = torch.cat([top_ids[rows], new.indices + start], -1).gather(-1, best.indices)
    top[rows] = best.values


def _above(logits: Tensor, chosen: Tensor, places: Tensor, other: Tensor) -> Tensor:
    """(row, group, n) number of logits of a piece that are larger than each target's.

    places: the targets' places in the piece. A target's own logit, which may be rounded otherwise
    here than in `chosen`, is not counted. other: memory of the size of `logits`; comparing into
    floats is cheaper than summing bool, which torch first copies to int64.
    """
    last = logits.shape[-1] - 1
    itself = logits.gather(-1, places.clamp(0, last)) > chosen
    itself &= (places >= 0) & (places <= last)
    above = -itself.long()
    for n, one in enumerate(chosen.unbind(-1)):
        above[..., n] += torch.gt(logits, one[..., None], out=other).sum(-1).long()
    return above
