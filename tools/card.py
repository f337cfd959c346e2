"""Measure the model in gpt2kit/bundled on held-out stories, and write its card.

    python tools/card.py --corpus FOLDER                      # a few minutes on two cores
    python tools/card.py --corpus FOLDER --old-model FOLDER   # beside another model

FOLDER holds the stories that the model was trained on (see tools/train_bundled.py). Everything is
measured on the files that ship: the fp16 weights, computed in float32. How they were trained is
read from training.json beside them. Three parts of the card are written by hand:
bundled_verdict.md and bundled_circuit.md, for the weights that they name, and bundled_trials.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from circuits import circuit_fields
from corpus import END_OF_TEXT, HELD_OUT, Corpus, encode_stories, load_corpus, read_stories
from fit_lens import measure_lens
from measure import loss_of, ngram_losses, open_model
from names import Names
from recipe import Batches
from rendering import table
from samples import (
    JUDGED,
    LENGTH,
    TEMPERATURE,
    WORDS,
    continuations,
    openings,
    read_by_hand,
    samples,
    weights_digest,
)
from tokenizers import Tokenizer
from training_record import TrainingRecord
from vocabulary import vocabulary_fields

import gpt2kit
from gpt2kit import TorchRunner
from gpt2kit.shipped import BUNDLED

TOOLS = Path(__file__).resolve().parent
TEMPLATE = TOOLS / "bundled_card.md"
VERDICT = TOOLS / "bundled_verdict.md"
CIRCUIT = TOOLS / "bundled_circuit.md"
TRIALS = TOOLS / "bundled_trials.md"


def card(folder: Path, stories: Path, corpus: Corpus, old_model: Path | None = None) -> str:
    """Measure the model in `folder` and fill in its card.

    stories: the folder of texts that `corpus` was read from. Raises SystemExit if the tokenizer of
    the model is not the one that these texts give.
    """
    runner = open_model(folder, corpus)
    held_out = read_stories([stories / HELD_OUT])
    return TEMPLATE.read_text(encoding="utf-8").format(
        **model_fields(runner),
        **loss_fields(runner, corpus, held_out, old_model),
        **vocabulary_fields(corpus.tokenizer, held_out),
        **circuit_fields(runner, corpus.held_out),
        **text_fields(runner, folder, held_out),
        **training_fields(TrainingRecord.read(folder), corpus),
        lens=measure_lens(runner, folder, corpus).table(),
        trials=TRIALS.read_text(encoding="utf-8").strip(),
    )


def model_fields(runner: TorchRunner) -> dict[str, Any]:
    """The shape of the model."""
    config = runner.config
    return {
        "layers": config.n_layer,
        "heads": config.n_head,
        "d_head": config.d_head,
        "width": config.n_embd,
        "positions": config.n_positions,
        "half": config.n_positions // 2,
        "end": END_OF_TEXT,
        "weights": sum(weight.numel() for weight in runner.model.parameters()),
    }


def loss_fields(
    runner: TorchRunner, corpus: Corpus, held_out: list[str], old_model: Path | None
) -> dict[str, Any]:
    """The held-out loss beside the loss of n-gram models, and of an older model on the same text.

    held_out: the texts of the held-out stories.
    """
    tokens, size = corpus.held_out.scored, corpus.held_out.bytes
    orders = ngram_losses(corpus)
    best = min(orders, key=lambda order: orders[order])
    own = loss_of(runner, corpus.held_out)
    bits = tokens / size / math.log(2)
    rows = [
        (name, f"{nats:.3f}", f"{math.exp(nats):.1f}", f"{nats * bits:.3f}")
        for name, nats in (("**this model**", own), (f"{best}-gram model", orders[best]))
    ]
    if old_model is not None:
        rows.append(
            ("the model before (its own tokens)", "", "", f"{old_bits(old_model, held_out):.3f}")
        )
    return {
        "held_tokens": tokens,
        "held_bytes": size,
        "held_stories": len(held_out),
        "loss_rows": table(("held-out stories", "nats/token", "perplexity", "bits/byte"), rows),
        "below": 1 - own / orders[best],
        "best_order": best,
        "all_orders": ", ".join(f"order {order}: {nats:.3f}" for order, nats in orders.items()),
    }


def old_bits(folder: Path, stories: list[str]) -> float:
    """Bits per byte of another model on some stories, in its own tokens and context."""
    tokens = encode_stories(Tokenizer.from_file(str(folder / "tokenizer.json")), stories)
    nats = loss_of(gpt2kit.load(folder, device="cpu"), tokens)
    return nats * tokens.scored / tokens.bytes / math.log(2)


def text_fields(runner: TorchRunner, folder: Path, held_out: list[str]) -> dict[str, Any]:
    """Samples, and continuations of held-out openings with a reader's verdict.

    The first held-out story may begin in the middle, so openings come from those that follow.
    """
    prompts = openings(held_out[1:])
    return {
        "samples": samples(runner),
        "length": LENGTH,
        "sampling": ", ".join(f"{name} {value}" for name, value in runner.generation.items()),
        "openings": len(prompts),
        "words": WORDS,
        "judged": JUDGED,
        "temperature": TEMPERATURE,
        "greedy": continuations(runner, prompts, greedy=True),
        "sampled": continuations(runner, prompts, temperature=TEMPERATURE, top_k=None),
        "verdict": read_by_hand(VERDICT, weights_digest(folder)),
        "circuit": read_by_hand(CIRCUIT, weights_digest(folder)),
    }


def training_fields(record: TrainingRecord, corpus: Corpus) -> dict[str, Any]:
    """The stories, the recipe, and where and how fast it ran."""
    recipe = record.recipe
    seen = recipe.steps * recipe.batch_rows * recipe.n_positions
    batches = Batches(corpus.train, Names(corpus.tokenizer, corpus.train), recipe)
    return {
        "stories": len(corpus.train.tokens),
        "validation_stories": len(corpus.validation.tokens),
        "bytes": corpus.train.bytes,
        "train_tokens": corpus.train.scored,
        "command": record.command,
        "recipe": recipe,
        "seen": seen / 1e6,
        "epochs": batches.epochs(recipe.steps),
        "minutes": record.seconds / 60,
        "speed": seen / record.seconds,
        "record": record,
        "curve": curve_table(record),
    }


def curve_table(record: TrainingRecord, rows: int = 8) -> str:
    """The loss curve at a few of the checkpoints, the last one included."""
    return table(("step", "training", "validation"), reversed(list(_thinned(record, rows))))


def _thinned(record: TrainingRecord, rows: int) -> Iterator[tuple[str, str, str]]:
    """About `rows` lines of the curve, last first."""
    stride = max(1, len(record.curve) // rows)
    for step, train, validation in record.curve[::-1][::stride]:
        yield f"{step:,}", f"{train:.3f}", f"{validation:.3f}"


def main() -> None:
    """Write the card into the model's folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", type=Path, default=BUNDLED, metavar="FOLDER")
    parser.add_argument("--old-model", type=Path, metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vocab_size = TrainingRecord.read(options.model).recipe.vocab_size
    corpus = load_corpus(options.corpus, vocab_size)
    text = card(options.model, options.corpus, corpus, options.old_model)
    (options.model / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
