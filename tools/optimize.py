"""How the bundled model is trained: its start, its optimizer, one step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from corpus import IGNORED
from measure import token_losses
from recipe import Batches, Recipe
from torch import Tensor

from gpt2kit.model import GPT2, Cache, Look


def initialise(model: GPT2, seed: int) -> None:
    """Initialise as GPT-2 does, but with larger scales and sinusoidal positions.

    Matrices are normal(0.05), because they are narrower than GPT-2's; projections into the residual
    stream are smaller. Tokens and positions both have root mean square 0.1, so that neither
    dominates while the embedding grows.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(weight)
        elif ".ln_" in name or name.startswith("ln_f"):
            torch.nn.init.ones_(weight)
        else:
            residual = name.endswith("c_proj.weight")
            std = 0.05 / math.sqrt(2 * model.config.n_layer) if residual else 0.05
            std = 0.1 if name == "wte.weight" else std
            torch.nn.init.normal_(weight, std=std, generator=generator)
    with torch.no_grad():
        model.wpe.weight.copy_(0.1 * math.sqrt(2) * sinusoids(*model.wpe.weight.shape))


def sinusoids(positions: int, width: int) -> Tensor:
    """Sines, then cosines, (positions, width), with wavelengths from 2 pi to 2000 pi tokens."""
    half = width // 2
    frequencies = torch.exp(-math.log(1000.0) * torch.arange(half) / half)
    angles = torch.arange(positions)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class PlainAttention(Cache):
    """Causal attention as two products: on the CPU, 1.7 times as fast as the fused kernel."""

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        look: Look | None,
    ) -> Tensor:
        """q, k, v (batch, pos, head, d_head) -> z, the same shape; mask and look are not used."""
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (batch, head, pos, d_head)
        later = torch.full((q.shape[2], q.shape[2]), -torch.inf, dtype=q.dtype).triu(1)
        return (((q * scale) @ k.transpose(-2, -1) + later).softmax(-1) @ v).transpose(1, 2)


class Optimizer:
    """Muon for MLPs and the outputs of heads, AdamW for everything else.

    With Muon for queries, keys and values too, no head found the token before it in 1,000 steps,
    perhaps because it makes one step of the three together. Positions learn at a tenth of the rate:
    heads must find them again when they move.
    """

    def __init__(self, model: GPT2, recipe: Recipe) -> None:
        rate, decay = recipe.learning_rate, recipe.weight_decay
        matrices = {name: weight for name, weight in model.h.named_parameters() if weight.ndim == 2}
        attending = [weight for name, weight in matrices.items() if "c_attn" in name]
        vectors = [weight for weight in model.parameters() if weight.ndim == 1]
        groups = [
            {"params": [model.wte.weight, *attending], "lr": rate, "weight_decay": decay},
            {"params": vectors, "lr": rate, "weight_decay": 0.0},
            {"params": [model.wpe.weight], "lr": rate / 10, "weight_decay": 0.0},
        ]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        ]
        others = [weight for name, weight in matrices.items() if "c_attn" not in name]
        group = {"params": others, "lr": recipe.muon_rate, "weight_decay": decay}
        self.parts.append(torch.optim.Muon([group], adjust_lr_fn="match_rms_adamw"))
        self.peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, share: float) -> None:
        """Make one update at a share of the peak learning rates, and forget the gradients."""
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = share * peak
            part.step()
            part.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on from what `state_dict` gave."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def schedule(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate: a linear warm-up, then a linear decay to zero."""
    return min(1.0, (step + 1) / recipe.warmup) * (1 - step / recipe.steps)


def dropouts(recipe: Recipe, step: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Edits that drop a share of the directions that attention and MLPs write, row by row.

    A row drops the same directions at all positions, which takes few random numbers.
    """
    if recipe.dropout == 0:
        return {}
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    keep = 1 - recipe.dropout

    def drop(x: Tensor) -> Tensor:
        mask = x.new_empty(x.shape[0], 1, x.shape[2])
        return x * mask.bernoulli_(keep, generator=generator).div_(keep)

    writes = ("attn_out", "mlp_out")
    return {f"blocks.{i}.{tap}": drop for i in range(recipe.n_layer) for tap in writes}


def train_step(
    model: GPT2, optimizer: Optimizer, batches: Batches, step: int
) -> tuple[float, float]:
    """Make one update; returns the losses in nats on text and on repeated tokens."""
    recipe = batches.recipe
    ids, targets = batches.at(step)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids, cache=PlainAttention(), edits=dropouts(recipe, step)).logits
    losses = token_losses(logits, targets)
    scored = targets != IGNORED
    weights = batches.weights(step, ids, targets)
    torch.autograd.backward((losses * weights).sum() / weights.sum())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step(schedule(step, recipe))
    losses, text = losses.detach(), int(scored.all(dim=1).sum())  # text rows come first
    repeated = losses[text:].sum() / scored[text:].sum().clamp(min=1)
    return float(losses[:text].mean()), float(repeated)
