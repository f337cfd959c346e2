"""The sha256 that identifies a model's weights."""

from __future__ import annotations

import hashlib

import torch

from gpt2kit.model import GPT2


def weights_sha256(model: GPT2, rounded: torch.dtype | None = None) -> str:
    """Digest of every weight: its name, dtype, shape and bytes, in the order of the module.

    rounded: round the weights to this dtype and hash them as float32, which is the digest of a
             file exported in this dtype. By default the weights are hashed as they are.
    """
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        x = weight if rounded is None else weight.to(rounded).float()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
