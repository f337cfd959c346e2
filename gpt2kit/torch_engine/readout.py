"""The torch engine's sums over the vocabulary; `gpt2kit.readout` joins them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gpt2kit.linear import linear
from gpt2kit.logits import largest
from gpt2kit.model import GPT2, at_least_float32
from gpt2kit.readout import Floats, Ints, Sums

VECTORS = 1024  # that meet the vocabulary together
FEW = 32  # whose logits may be held whole: a lens of one position, as in generation


def width(vectors: int, device: torch.device) -> int:
    """How many tokens' logits to work out at a time, for so many vectors: on a CPU few enough to
    stay in its caches, logits and weights alike."""
    if device.type != "cpu":
        return 16384
    return 512 if vectors > FEW else 1 << 20


def largest_logits(model: GPT2, x: Tensor, k: int) -> tuple[Floats, Ints]:
    """ln_f (batch, pos, d_model) -> the k largest logits, largest first, and their tokens."""
    if not k:
        return np.empty((*x.shape[:-1], 0), np.float32), np.empty((*x.shape[:-1], 0), np.int64)
    size, step = len(model.unembedding), width(x.shape[0] * x.shape[1], x.device)
    if size <= step and x.device.type == "cpu":
        # numpy selects k of a vocabulary faster than torch does
        return largest(at_least_float32(model.unembed(x)).numpy(), k)
    top = at_least_float32(x).new_full((*x.shape[:-1], k), -torch.inf)
    top_ids = torch.zeros_like(top, dtype=torch.int64)
    for start in range(0, size, step):
        logits = at_least_float32(linear(x, model.unembedding[start : start + step].T))
        _keep_top(top, top_ids, logits, logits.amax(-1), start)
    return top.cpu().numpy(), top_ids.cpu().numpy()


def sums(model: GPT2, x: Tensor, targets: Tensor, refers: bool, top_k: int) -> Sums:
    """See `gpt2kit.readout.Read`; x what comes out of ln_f, (row, group, d_model), targets
    (row, group, n)."""
    wide, vectors = at_least_float32(x), x.shape[:2]
    chosen = wide.new_empty(targets.shape)
    for n, ids in enumerate(targets.unbind(-1)):
        chosen[..., n] = (at_least_float32(model.unembedding[ids]) * wide).sum(-1)
    top = wide.new_full((*vectors, top_k), -torch.inf)
    top_ids, above = torch.zeros_like(top, dtype=torch.int64), torch.zeros_like(targets)
    size, step = len(model.unembedding), width(vectors.numel(), x.device)
    starts = range(0, size, step)
    # Made beforehand: small results kept between large ones would tear the heap into holes.
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
        if refers:  # one product holds every group's mean under every other's weights
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
    """Merge the largest logits (…, …, token) into those so far, largest first: few vectors have any
    that are larger. NaN counts as larger, so that it is not overlooked."""
    rows = (~(high <= top[..., -1])).flatten().nonzero()[:, 0]
    if not len(rows):
        return
    logits, top, top_ids = (part.flatten(0, 1) for part in (logits, top, top_ids))
    found = logits if len(rows) == len(logits) else logits[rows]  # at first, all of them
    new = found.topk(min(top.shape[-1], logits.shape[-1]))
    best = torch.cat([top[rows], new.values], -1).topk(top.shape[-1])
    top_ids[rows] = torch.cat([top_ids[rows], new.indices + start], -1).gather(-1, best.indices)
    top[rows] = best.values


def _above(logits: Tensor, chosen: Tensor, places: Tensor, other: Tensor) -> Tensor:
    """(row, group, n) how many logits are larger than each target's; never its own, however it was
    rounded. other: memory for as many numbers (a sum of bool copies it to int64 first)."""
    last = logits.shape[-1] - 1
    itself = logits.gather(-1, places.clamp(0, last)) > chosen
    itself &= (places >= 0) & (places <= last)
    above = -itself.long()
    for n, one in enumerate(chosen.unbind(-1)):
        above[..., n] += torch.gt(logits, one[..., None], out=other).sum(-1).long()
    return above
