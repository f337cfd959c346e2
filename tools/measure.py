"""Measurements of the bundled model: loss on stories, and the n-gram baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from corpus import IGNORED, Corpus, Stories, windows
from ngram import KneserNey
from tokenizers import Tokenizer
from torch.nn import functional as F

import gpt2kit
from gpt2kit import Edit, TorchRunner
from gpt2kit.finite import finite_run
from gpt2kit.model import GPT2
from gpt2kit.runner import Runner


def open_model(folder: Path, corpus: Corpus) -> TorchRunner:
    """The model in `folder`. Raises SystemExit unless its tokenizer is the one of these stories."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if tokenizer.get_vocab() != corpus.tokenizer.get_vocab():
        raise SystemExit(f"{folder}: its tokenizer was not trained on these stories")
    return gpt2kit.load(folder, device="cpu")


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy per token in nats, (batch, pos); 0 where the target is ignored."""
    flat = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(targets.shape)


def loss_of(runner: Runner, stories: Stories, edits: Sequence[Edit] = ()) -> float:
    """Loss in nats per token, with at least half a window of context."""
    width = runner.config.n_positions
    nats = 0.0
    for ids, targets in windows(stories, width, width // 2):
        logits = torch.from_numpy(finite_run(runner, ids.numpy(), edits=edits).logits)
        nats += float(token_losses(logits, targets).double().sum())
    return nats / stories.scored


def quick_loss(model: GPT2, stories: Stories) -> float:
    """Loss in nats per token in bfloat16, with windows that do not overlap; shown in training."""
    width = model.config.n_positions
    nats = 0.0
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        for ids, targets in windows(stories, width, width):
            nats += float(token_losses(model(ids).logits, targets).double().sum())
    return nats / stories.scored


def ngram_losses(corpus: Corpus) -> dict[int, float]:
    """Held-out loss in nats per token of modified Kneser-Ney models of order 2 to 5."""
    losses = {}
    train, vocab_size = np.concatenate(corpus.train.tokens), corpus.tokenizer.get_vocab_size()
    for order in range(2, 6):
        model = KneserNey(train, order, vocab_size)
        stories = corpus.held_out.tokens
        log_p = sum(float(np.log(model.probabilities(story)).sum()) for story in stories)
        losses[order] = -log_p / corpus.held_out.scored
    return losses
