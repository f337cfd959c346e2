"""Measurements of the bundled model: held-out loss, n-gram baseline, circuits, samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from corpus import IGNORED, Corpus, Stories, windows
from ngram import KneserNey
from tokenizers import Tokenizer
from torch.nn import functional as F

from gpt2kit.model import GPT2


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy per token in nats, (batch, pos); 0 where the target is ignored."""
    flat = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(targets.shape)


def loss_of(model: GPT2, stories: Stories) -> float:
    """Loss in nats per token in float32, with at least half a window of context."""
    width = model.config.n_positions
    nats = 0.0
    with torch.inference_mode():
        for ids, targets in windows(stories, width, width // 2):
            nats += float(token_losses(model(ids).logits, targets).double().sum())
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


@dataclass(frozen=True)
class Circuits:
    """Scores of the heads (layer, head), and losses, on random blocks written twice."""

    induction: torch.Tensor
    previous: torch.Tensor
    first_copy_loss: float
    second_copy_loss: float


def measure_circuits(model: GPT2, seed: int, period: int = 50, sequences: int = 64) -> Circuits:
    """Score every head on `sequences` random blocks of `period` tokens, each written twice.

    Induction: mean attention from a position of the second copy to the token after the earlier
    occurrence of the same token. Previous token: mean attention to the position before.
    """
    generator = torch.Generator().manual_seed(seed)
    vocab = model.config.vocab_size - 1
    block = torch.randint(vocab, (sequences, period), generator=generator)
    ids = torch.cat([block, block], dim=1)
    with torch.inference_mode():
        result = model(ids, taps=["blocks.*.pattern"])
    patterns = torch.stack(
        [result.taps[f"blocks.{i}.pattern"].mean(dim=0) for i in range(model.config.n_layer)]
    )
    losses = token_losses(result.logits[:, :-1], ids[:, 1:])
    return Circuits(
        induction=patterns.diagonal(1 - period, dim1=-2, dim2=-1)[..., 1:].mean(dim=-1),
        previous=patterns.diagonal(-1, dim1=-2, dim2=-1).mean(dim=-1),
        first_copy_loss=float(losses[:, : period - 1].mean()),
        second_copy_loss=float(losses[:, period:].mean()),
    )


def generate(model: GPT2, tokenizer: Tokenizer, prompt: str, top_k: int, seed: int) -> str:
    """Continue `prompt` by 50 tokens; top_k = 1 is greedy."""
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(prompt).ids
    with torch.inference_mode():
        for _ in range(50):
            context = torch.tensor([ids[-model.config.n_positions :]])
            best = model(context).logits[0, -1].topk(top_k)
            choice = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
            token = int(best.indices[choice])
            if token in model.config.end_tokens:
                break
            ids.append(token)
    return str(tokenizer.decode(ids))
