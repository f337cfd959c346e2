"""Training of a tuned lens. For what the lens is and how it reads, see `probes.lens.tuned_lens`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.checks import check_function, check_integer, check_number
from gpt2kit.defaults import Default
from gpt2kit.errors import InputError, NonFiniteError
from gpt2kit.finite import finite_run, is_finite
from gpt2kit.prompts import Prompt, counted, row_of_ids
from gpt2kit.readout import Floats, Ints
from gpt2kit.taps import residual_stream
from gpt2kit.torch_engine.require import require_torch
from probes.lens.tuned_lens import TunedLens, weight_digests

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2kit.model import GPT2
    from gpt2kit.torch_engine.runner import TorchRunner

OnStep = Callable[[int, Floats], None]


def train_tuned_lens(
    runner: TorchRunner,
    text_or_ids: Prompt,
    *,
    steps: int = 250,
    batch: int = 4,
    length: int = Default(128),
    lr: float = 1e-3,
    seed: int = 0,
    on_progress: OnStep | None = None,
) -> TunedLens:
    """Train a lens on text, of any length: Adam, its rate falling to 0, from the identity.

    Each step reads `batch` pieces of `length` tokens from random places in the text.
    on_progress: called after each step with the number of steps done and the step's losses
                 (layer,): KL to the final layer in nats, the mean over the step's tokens, before
                 the translators were changed.
    Raises InputError for a text shorter than one piece, NonFiniteError if the model overflows or
    the training diverges.
    """
    runner = require_torch(runner, "training a tuned lens")
    check_integer("steps", steps)
    check_integer("batch", batch)
    whole = isinstance(length, Default)  # a short text is one piece
    length = check_integer("length", length, 1, runner.config.n_positions)
    check_function("on_progress", on_progress)
    if not check_number("lr", lr) > 0:
        raise InputError(f"lr = {lr} must be above 0")
    ids = _text_ids(runner, text_or_ids)
    length = min(length, len(ids)) if whole else length
    if len(ids) < length:
        raise InputError(
            f"the text has {counted(len(ids), 'token')}, one piece is {length}; give more"
        )
    rng = np.random.default_rng(check_integer("seed", seed, low=0))

    def pieces() -> Iterator[Ints]:
        for _ in range(steps):
            starts = rng.integers(0, len(ids) - length + 1, batch)
            yield ids[starts[:, None] + np.arange(length)]

    weight, bias = _train(runner, pieces(), steps, lr, on_progress)
    return TunedLens(str(runner.source), weight_digests(runner), weight, bias)


def _train(
    runner: TorchRunner, pieces: Iterator[Ints], steps: int, lr: float, on_step: OnStep | None
) -> tuple[Floats, Floats]:
    """The trained A (layer, d_model, d_model) and b (layer, d_model).

    pieces: token ids (batch, length) for each of the `steps`.
    """
    import torch
    from torch import nn

    model, config, device = runner.model, runner.config, runner.device
    width, layers = config.n_embd, range(config.n_layer)
    with torch.inference_mode(False):  # a caller's inference mode would allow no training
        weights = [nn.Parameter(torch.zeros(width, width, device=device)) for _ in layers]
        biases = [nn.Parameter(torch.zeros(width, device=device)) for _ in layers]
        optimizer = torch.optim.Adam([*weights, *biases], lr=lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        for step, ids in enumerate(pieces, start=1):
            streams, final = _layer_streams(model, ids)
            losses = np.zeros(len(layers))
            for i, (h, weight, bias) in enumerate(zip(streams, weights, biases, strict=True)):
                with torch.enable_grad():
                    loss = _kl(model, h + h @ weight.T + bias, final)
                    loss.backward()  # type: ignore[no-untyped-call]  # frees this layer's logits
                losses[i] = loss.item()
            if not is_finite(losses):
                finite_run(runner, ids, last_only=True)  # if it is the model that overflows
                raise NonFiniteError(f"the loss is not finite at step {step}; give a lower lr")
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if on_step is not None:
                on_step(step, losses)
    return _stacked(weights), _stacked(biases)


def _stacked(parameters: Iterable[Tensor]) -> Floats:
    """(layer, …) off the device."""
    return np.stack([parameter.detach().cpu().numpy() for parameter in parameters])


def _text_ids(runner: TorchRunner, text_or_ids: Prompt) -> Ints:
    """(N,) token ids of a text of any length."""
    if isinstance(text_or_ids, str):
        if runner.tokenizer is None:
            raise InputError(f"{runner.source} has no tokenizer; give token ids")
        text_or_ids = runner.tokenizer.encode(text_or_ids)
    return row_of_ids(text_or_ids)


def _layer_streams(model: GPT2, ids: Ints) -> tuple[list[Tensor], Tensor]:
    """The residual streams that translators read, and the log-probabilities they should give.

    ids: (batch, pos). Returns streams (batch, pos, d_model), one for each layer, and the model's
    log-probabilities (batch, pos, vocab).
    """
    import torch

    taps = residual_stream(model.config.n_layer)[:-1]
    with torch.no_grad():
        out = model(torch.from_numpy(ids).to(model.wte.weight.device), taps=taps)
        return [out.taps[tap].float() for tap in taps], out.logits.float().log_softmax(-1)


def _kl(model: GPT2, resid: Tensor, final: Tensor) -> Tensor:
    """Mean KL in nats from the reading of residual vectors to the final log-probabilities."""
    logits = model.unembed(model.ln_f(resid.to(model.wte.weight.dtype))).float()
    return (final.exp() * (final - logits.log_softmax(-1))).sum(-1).mean()
