"""Training of a tuned lens; what it is and how it reads: `probes.lens.tuned_lens`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.errors import InputError
from gpt2kit.prompts import Prompt, counted, row_of_ids
from gpt2kit.readout import Floats, Ints
from gpt2kit.torch_engine.require import require_torch
from probes.lens.tuned_lens import TunedLens, digests

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2kit.model import GPT2
    from gpt2kit.torch_engine.runner import TorchRunner


def train_tuned_lens(
    runner: TorchRunner,
    text_or_ids: Prompt,
    *,
    steps: int = 250,
    batch: int = 4,
    length: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    on_progress: Callable[[int, Floats], None] | None = None,
) -> TunedLens:
    """Train a lens on text, of any length: Adam, its rate falling to 0, from the identity.

    Each step reads `batch` pieces of `length` tokens from random places in the text.
    on_progress: called with the number of steps done and (layer,) the KL to the final layer in
                 nats, a mean over the step's tokens, as it was before the step.
    Raises InputError for a text shorter than one piece.
    """
    import torch
    from torch import nn

    require_torch(runner, "training a tuned lens")
    ids = _pieces(runner, text_or_ids, steps=steps, batch=batch, length=length, lr=lr)
    model, config = runner.model, runner.config
    width, layers = config.n_embd, range(config.n_layer)
    rng = np.random.default_rng(seed)
    with torch.inference_mode(False):  # a caller's would leave nothing to train
        weights = [nn.Parameter(torch.zeros(width, width, device=runner.device)) for _ in layers]
        biases = [nn.Parameter(torch.zeros(width, device=runner.device)) for _ in layers]
        optimizer = torch.optim.Adam([*weights, *biases], lr=lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        for step in range(1, steps + 1):
            starts = rng.integers(0, len(ids) - length + 1, batch)
            streams, final = _streams(model, ids[starts[:, None] + np.arange(length)])
            losses = np.zeros(config.n_layer)
            for i, (h, weight, bias) in enumerate(zip(streams, weights, biases, strict=True)):
                with torch.enable_grad():
                    loss = _kl(model, h + h @ weight.T + bias, final)
                    loss.backward()  # type: ignore[no-untyped-call]  # frees this layer's logits
                losses[i] = loss.item()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if on_progress is not None:
                on_progress(step, losses)
    trained = [torch.stack([x.detach().cpu() for x in xs]).numpy() for xs in (weights, biases)]
    return TunedLens(str(runner.source), digests(runner), *trained)


def _pieces(runner: TorchRunner, text_or_ids: Prompt, *, length: int, **counts: float) -> Ints:
    """The ids of a text, long enough for one piece."""
    for name, value in counts.items():
        if not value > 0:
            raise InputError(f"{name} = {value} must be above 0")
    if not 1 <= length <= runner.config.n_positions:
        raise InputError(f"length = {length} must be from 1 to {runner.config.n_positions}")
    if isinstance(text_or_ids, str):
        if runner.tokenizer is None:
            raise InputError(f"{runner.source} has no tokenizer; give token ids")
        text_or_ids = runner.tokenizer.encode(text_or_ids)
    ids = row_of_ids(text_or_ids)
    if len(ids) < length:
        raise InputError(
            f"the text has {counted(len(ids), 'token')}, one piece is {length}; give more"
        )
    return ids


def _streams(model: GPT2, ids: Ints) -> tuple[list[Tensor], Tensor]:
    """Ids (batch, pos) -> the streams that translators read, (batch, pos, d_model) each, and the
    final log-probabilities (batch, pos, vocab)."""
    import torch

    last = model.config.n_layer - 1
    taps = ["blocks.0.resid_pre", *(f"blocks.{i}.resid_post" for i in range(last))]
    with torch.no_grad():
        out = model(torch.from_numpy(ids).to(model.wte.weight.device), taps=taps)
        return [out.taps[tap].float() for tap in taps], out.logits.float().log_softmax(-1)


def _kl(model: GPT2, resid: Tensor, final: Tensor) -> Tensor:
    """Mean KL(final || what resid is read as) in nats."""
    logits = model.unembed(model.ln_f(resid.to(model.wte.weight.dtype))).float()
    return (final.exp() * (final - logits.log_softmax(-1))).sum(-1).mean()
