"""Weights rewritten so that they are easier to read; the predictions stay the same.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". A layer norm's gain and
bias are linear, so the matrices that read the norm can absorb them. A layer norm subtracts the mean
over d_model, so no matrix needs to write one. A softmax ignores a constant added to all logits.
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
    """A runner over a new model with the same log-probabilities (torch only).

    fold_ln: fold gains and biases of ln_1 and ln_2 into c_attn and c_fc, and the gain of ln_f into
        the unembedding. ln_1 and ln_2 keep gain 1 and bias 0. The bias of ln_f stays a vector,
        divided by the gain, as folding it would need a bias for each token; a coordinate whose gain
        is 0 keeps its bias.
    centre_writing: give everything that is added to the residual stream (both embeddings, and
        c_proj of attention and MLP) mean 0 over d_model.
    centre_unembed: give each coordinate of the unembedding mean 0 over the vocabulary. This shifts
        all logits of a position by one number; the other two steps do not change logits.

    `runner` is unchanged. Embedding and unembedding are two matrices in the new model
    (`tie_word_embeddings` False).
    Equality holds up to the rounding of the model's dtype. `source` names the steps. Raises
    InputError if all steps are off, CheckpointError if a new weight becomes infinite in that dtype.
    """
    import torch

    from gpt2kit.model import GPT2
    from gpt2kit.torch_engine.dtypes import converted
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
        _fold_layer_norms(weights, runner.config.n_layer)
    if centre_writing:
        _centre_writing(weights)
    if centre_unembed:
        weights["lm_head.weight"] -= weights["lm_head.weight"].mean(0)
    dtype = runner.model.wte.weight.dtype
    model = GPT2.from_weights(
        replace(runner.config, tie_word_embeddings=False),
        {name: converted(name, x, dtype, x.device) for name, x in weights.items()},
    )
    source = replace(runner.source, model=f"{runner.source.model} ({done})")
    return TorchRunner(model, runner.tokenizer, source, runner.generation)


def _fold_layer_norms(weights: dict[str, Tensor], n_layer: int) -> None:
    """Fold every layer norm into its reader: (x g + b) W + c = x (g W) + (b W + c)."""
    for i in range(n_layer):
        for norm, reader in (("ln_1", "attn.c_attn"), ("ln_2", "mlp.c_fc")):
            gain, bias = weights[f"h.{i}.{norm}.weight"], weights[f"h.{i}.{norm}.bias"]
            matrix = weights[f"h.{i}.{reader}.weight"]  # (d_model, out)
            weights[f"h.{i}.{reader}.bias"] += bias @ matrix
            matrix *= gain[:, None]
            gain.fill_(1)
            bias.zero_()
    gain, bias = weights["ln_f.weight"], weights["ln_f.bias"]
    used = gain != 0  # (x g + b) W = (x + b / g) (g W) holds where g is not 0
    weights["lm_head.weight"] *= gain.where(used, 1)
    weights["ln_f.bias"] = (bias / gain).where(used, bias)
    weights["ln_f.weight"] = used.to(gain.dtype)


def _centre_writing(weights: dict[str, Tensor]) -> None:
    """Subtract the mean over d_model, the last axis of every weight that writes to the stream."""
    for name, x in weights.items():
        if name.startswith(("wte.", "wpe.")) or ".c_proj." in name:
            x -= x.mean(-1, keepdim=True)
