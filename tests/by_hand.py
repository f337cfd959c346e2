"""A second, plain implementation of GPT-2: full sequences, no cache, no fused kernels.

Tests compare the real model with it. It was written from the papers' formulas, not from model.py.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gpt2kit import GPT2


def forward(
    model: GPT2, ids: np.ndarray, change: dict[str, Callable[[Tensor], Tensor]] | None = None
) -> dict[str, np.ndarray]:
    """The values of every tap, and `logits`. change: tap -> function that edits its value."""
    config, weights, change = model.config, model.state_dict(), change or {}
    values: dict[str, Tensor] = {}

    def keep(name: str, x: Tensor) -> Tensor:
        values[name] = change.get(name, lambda same: same)(x)
        return values[name]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str, tap: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred**2).mean(-1, keepdim=True)
        scale = keep(tap, torch.sqrt(variance + config.layer_norm_epsilon))
        return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    tokens = torch.as_tensor(ids)
    batch, pos = tokens.shape
    width = config.n_embd // config.n_head
    future = torch.arange(pos)[None, :] > torch.arange(pos)[:, None]
    embed = keep("embed", weights["wte.weight"][tokens])
    x = embed + keep("pos_embed", weights["wpe.weight"][:pos].repeat(batch, 1, 1))
    x = keep("blocks.0.resid_pre", x)
    for i in range(config.n_layer):
        tap, part = f"blocks.{i}", f"h.{i}"
        qkv = linear(norm(x, f"{part}.ln_1", f"{tap}.ln_1_scale"), f"{part}.attn.c_attn")
        q, k, v = (
            keep(f"{tap}.{name}", y.reshape(batch, pos, config.n_head, width))
            for name, y in zip("qkv", qkv.chunk(3, -1), strict=True)
        )
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k)
        if config.scale_attn_weights:
            scores = scores / width**0.5
        if config.scale_attn_by_inverse_layer_idx:
            scores = scores / (i + 1)
        scores = keep(f"{tap}.attn_scores", scores)
        odds = torch.exp(scores - scores.amax(-1, keepdim=True)).masked_fill(future, 0)
        pattern = odds / odds.sum(-1, keepdim=True)
        if f"{tap}.pattern" in change:  # an edit of the pattern does not reach into the future
            pattern = change[f"{tap}.pattern"](pattern).masked_fill(future, 0)
        values[f"{tap}.pattern"] = pattern
        z = keep(f"{tap}.z", torch.einsum("bhqk,bkhe->bqhe", pattern, v))
        per_head = weights[f"{part}.attn.c_proj.weight"].reshape(config.n_head, width, -1)
        head_out = keep(f"{tap}.head_out", torch.einsum("bqhe,hed->bqhd", z, per_head))
        attn_out = head_out.sum(2) + weights[f"{part}.attn.c_proj.bias"]
        x = keep(f"{tap}.resid_mid", x + keep(f"{tap}.attn_out", attn_out))
        pre = linear(norm(x, f"{part}.ln_2", f"{tap}.ln_2_scale"), f"{part}.mlp.c_fc")
        post = keep(f"{tap}.mlp_post", model.h[i].mlp.act(keep(f"{tap}.mlp_pre", pre)))
        mlp_out = keep(f"{tap}.mlp_out", linear(post, f"{part}.mlp.c_proj"))
        x = keep(f"{tap}.resid_post", x + mlp_out)
    x = keep("ln_f", norm(x, "ln_f", "ln_f_scale"))
    keep("logits", x @ weights.get("lm_head.weight", weights["wte.weight"]).T)
    return {name: value.numpy() for name, value in values.items()}
