"""Weights rewritten so that they are easier to read, with the predictions left as they are.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits": a layer norm's gain and
bias are linear and can be part of the matrices that read it, and it removes the mean over d_model,
which need then not be written; nor does a softmax see what all logits have in common.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gpt2kit.errors import InputError
from gpt2kit.torch_engine.require import require_torch

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2kit.torch_engine.runner import TorchRunner


def processed(
    runner: TorchRunner,
    *,
    fold_ln: bool = True,
    centre_writing: bool = True,
    centre_unembed: bool = True,
) -> TorchRunner:
    """A runner over a separate model with the same log-probabilities; `runner` stays as it is.

    fold_ln: gains and biases of ln_1 and ln_2 go into c_attn and c_fc, the gain of ln_f into the
        unembedding. What is left of ln_1 and ln_2 is gain 1 and bias 0. The bias of ln_f, which
        would need a bias for each token, stays a vector, divided by the gain; a coordinate
        whose gain is 0 stays as it was.
    centre_writing: everything that is added to the residual stream (both embeddings, and
        c_proj of attention and MLP) has mean 0 over d_model.
    centre_unembed: each coordinate of the unembedding has mean 0 over the vocabulary. This moves
        all logits of a position by one number; the two others leave logits as they are.

    Embedding and unembedding are two matrices in the new model (`tie_word_embeddings` False).
    Equality holds to the rounding of the model's dtype. `source` says what was done. Raises
    InputError if nothing is asked for.
    """
    import torch

    from gpt2kit.model import GPT2
    from gpt2kit.torch_engine.runner import TorchRunner

    require_torch(runner, "rewriting weights")
    steps = {
        "folded": fold_ln,
        "writing centred": centre_writing,
        "unembedding centred": centre_unembed,
    }
    done = ", ".join(name for name, wanted in steps.items() if wanted)
    if not done:
        raise InputError("all three steps are off, nothing is left to do; use the runner itself")
    weights = {
        name: x.detach().to(torch.promote_types(x.dtype, torch.float32), copy=True)
        for name, x in runner.model.state_dict().items()
    }
    weights.setdefault("lm_head.weight", weights["wte.weight"].clone())
    if fold_ln:
        _fold(weights, runner.config.n_layer)
    if centre_writing:
        _centre_writing(weights)
    if centre_unembed:
        weights["lm_head.weight"] -= weights["lm_head.weight"].mean(0)
    with torch.device("meta"):
        model = GPT2(replace(runner.config, tie_word_embeddings=False))
    dtype = runner.model.wte.weight.dtype
    model.load_state_dict({name: x.to(dtype) for name, x in weights.items()}, assign=True)
    source = replace(runner.source, model=f"{runner.source.model} ({done})")
    return TorchRunner(model.eval().requires_grad_(False), runner.tokenizer, source)


def _fold(weights: dict[str, Tensor], n_layer: int) -> None:
    """(x g + b) W + c = x (g W) + (b W + c): every layer norm into what reads it."""
    for i in range(n_layer):
        for norm, reader in (("ln_1", "attn.c_attn"), ("ln_2", "mlp.c_fc")):
            gain, bias = weights[f"h.{i}.{norm}.weight"], weights[f"h.{i}.{norm}.bias"]
            matrix = weights[f"h.{i}.{reader}.weight"]  # (d_model, out)
            weights[f"h.{i}.{reader}.bias"] += bias @ matrix
            matrix *= gain[:, None]
            gain.fill_(1)
            bias.zero_()
    gain, bias = weights["ln_f.weight"], weights["ln_f.bias"]
    used = gain != 0  # (x g + b) W = (x + b / g) (g W), but where g is 0
    weights["lm_head.weight"] *= gain.where(used, 1)
    weights["ln_f.bias"] = (bias / gain).where(used, bias)
    weights["ln_f.weight"] = used.to(gain.dtype)


def _centre_writing(weights: dict[str, Tensor]) -> None:
    """d_model is the last axis of all that is added to the residual stream."""
    for name, x in weights.items():
        if name.startswith(("wte.", "wpe.")) or ".c_proj." in name:
            x -= x.mean(-1, keepdim=True)
