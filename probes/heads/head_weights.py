"""The weights of one head, and layer norms without their gain and bias."""

from __future__ import annotations

import numpy as np

from gpt2kit.config import GPT2Config
from gpt2kit.readout import Floats
from gpt2kit.runner import Runner


def qkv_weight(runner: Runner, layer: int, part: str) -> tuple[Floats, Floats]:
    """(d_model, d_model) weight and (d_model,) bias of "q", "k" or "v", all heads side by side."""
    start, name = "qkv".index(part) * runner.config.n_embd, f"h.{layer}.attn.c_attn"
    columns = slice(start, start + runner.config.n_embd)
    return runner.weight(f"{name}.weight")[:, columns], runner.weight(f"{name}.bias")[columns]


def head_columns(config: GPT2Config, head: int) -> slice:
    """The columns of one head, in a matrix with the columns of all heads side by side."""
    return slice(head * config.d_head, (head + 1) * config.d_head)


def centred(x: Floats) -> Floats:
    """(…, d_model) with the mean over d_model subtracted."""
    out: Floats = x - x.mean(-1, keepdims=True)
    return out


def normalised(x: Floats, config: GPT2Config) -> Floats:
    """(…, d_model) through a layer norm without gain and bias."""
    out: Floats = centred(x) / np.sqrt(x.var(-1, keepdims=True) + config.layer_norm_epsilon)
    return out
