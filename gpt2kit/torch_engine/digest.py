"""The sha256 that identifies a model's weights."""

from __future__ import annotations

import hashlib

import torch

from gpt2kit.model import GPT2, at_least_float32


def weights_sha256(model: GPT2, rounded: torch.dtype | None = None) -> str:
    """Digest of every weight: its name, dtype, shape and bytes, in the order of the module.

    rounded: convert the weights to this dtype first. Half precision is hashed as float32, as in a
             file exported in that dtype. By default the weights are hashed as they are.
    """
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        x = weight if rounded is None else at_least_float32(weight.to(rounded))
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
