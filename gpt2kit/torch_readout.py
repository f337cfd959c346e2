"""What the torch engine has to say of the vocabulary's pieces; `gpt2kit.readout` joins it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gpt2kit.linear import linear
from gpt2kit.model import GPT2, at_least_float32
from gpt2kit.readout import FEW, Floats, Ints, Piece
from gpt2kit.sampling import largest

VECTORS = 1024  # that meet the vocabulary together


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
        new = logits.topk(min(k, logits.shape[-1]))
        best = torch.cat([top, new.values], -1).topk(k)
        ids = torch.cat([top_ids, new.indices + start], -1).gather(-1, best.indices)
        top.copy_(best.values), top_ids.copy_(ids)  # in place: what stays must not move about
    return top.cpu().numpy(), top_ids.cpu().numpy()


class TorchTile:
    """See `gpt2kit.readout.Tile`; resid (group, row, d_model), targets (group, row, n)."""

    def __init__(self, model: GPT2, resid: Tensor, targets: Tensor, refers: bool) -> None:
        self.unembedding, self.targets, self.refers = model.unembedding, targets, refers
        self.x = model.ln_f(resid)
        self._chosen = at_least_float32(self.x).new_empty(targets.shape)
        for group, (x, ids) in enumerate(zip(self.x, targets, strict=True)):
            columns = at_least_float32(self.unembedding[ids])  # (row, n, d_model)
            self._chosen[group] = (columns @ at_least_float32(x)[:, :, None])[:, :, 0]
        self.chosen: Floats = self._chosen.cpu().numpy()

    def meet(self, start: int, stop: int, top: Floats) -> Piece:
        """Read the logits of tokens start to stop."""
        x = at_least_float32(linear(self.x, self.unembedding[start:stop].T))  # (group, row, token)
        high = x.amax(-1)
        found = self._top(x, high, torch.from_numpy(top).to(high))
        found["top_ids"] += start
        found["above"] = self._above(x, self.targets - start)
        x -= high[..., None]
        weights, product = x.exp(), torch.empty_like(x)
        if self.refers:
            found["rx"] = torch.mul(x, weights[-1], out=product).sum(-1)
        found["zx"] = torch.mul(x, weights, out=product).sum(-1)
        found |= {"high": high, "z": weights.sum(-1)}
        return Piece(**{name: value.cpu().numpy() for name, value in found.items()})

    @staticmethod
    def _top(x: Tensor, high: Tensor, top: Tensor) -> dict[str, Tensor]:
        """The largest logits of the rows that have any to tell."""
        k = min(top.shape[-1], x.shape[-1])
        values = high.new_full((*high.shape, k), -torch.inf)
        ids = torch.zeros_like(values, dtype=torch.int64)
        better = high > top[..., -1]
        values[better], ids[better] = x[better].topk(k)
        return {"top": values, "top_ids": ids}

    def _above(self, x: Tensor, places: Tensor) -> Tensor:
        """How many logits are larger than each target's; never its own, however it was rounded."""
        last = x.shape[-1] - 1
        itself = x.gather(-1, places.clamp(0, last)) > self._chosen
        itself &= (places >= 0) & (places <= last)
        larger = torch.empty_like(x)  # as numbers: a sum of bool copies it to int64 first
        above = -itself.long()
        for n, one in enumerate(self._chosen.unbind(-1)):
            above[..., n] += torch.gt(x, one[..., None], out=larger).sum(-1).long()
        return above
