"""The model card of the bundled model; its figures are measured on the files that ship."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
from pathlib import Path
from typing import Any

import torch
from corpus import END_OF_TEXT, HELD_OUT, Corpus, Stories, read_stories
from measure import generate, loss_of, measure_circuits, ngram_losses
from names import Names
from recipe import Batches, Recipe
from safetensors.torch import load_file
from tokenizers import Tokenizer

from gpt2kit.config import GPT2Config
from gpt2kit.model import GPT2

PROMPTS = ("Once upon a time", "Tim and Lily went to the park.", "One day, a little dog")
TEMPLATE = Path(__file__).with_name("bundled_card.md")


def load_shipped(folder: Path, config: GPT2Config) -> GPT2:
    """The model as users get it: the fp16 weights of `folder`, computed in float32."""
    weights = load_file(folder / "model.safetensors")
    model = GPT2(config)
    model.load_state_dict(
        {name.removeprefix("transformer."): weight.float() for name, weight in weights.items()}
    )
    return model.eval()


def loss_row(name: str, nats: float, stories: Stories) -> str:
    """One line of the card's table of losses."""
    bits = nats * stories.scored / stories.bytes / math.log(2)
    return f"| {name} | {nats:.3f} | {math.exp(nats):.1f} | {bits:.3f} |"


def best_heads(scores: torch.Tensor, count: int = 5) -> list[tuple[str, float]]:
    """The `count` heads with the highest score, as (layer.head, score)."""
    best = scores.flatten().topk(count)
    heads = scores.shape[1]
    return [
        (f"{int(i) // heads}.{int(i) % heads}", float(score))
        for score, i in zip(best.values, best.indices, strict=True)
    ]


def sample_lines(model: GPT2, tokenizer: Tokenizer) -> str:
    """One greedy and one top-k continuation of each prompt, as Markdown."""
    lines = []
    for prompt in PROMPTS:
        for name, top_k in (("greedy", 1), ("top-k 50", 50)):
            text = generate(model, tokenizer, prompt, top_k, seed=0)
            text = " ".join(text.removeprefix(prompt).split())
            for character in "\\`*_<[":
                text = text.replace(character, "\\" + character)
            lines.append(f"- {name}: **{prompt}** {text}")
    return "\n".join(lines)


def command_line(recipe: Recipe) -> str:
    """The command that trains with this recipe."""
    given = [
        f"--{field.name.replace('_', '-')} {getattr(recipe, field.name)}"
        for field in dataclasses.fields(recipe)
        if getattr(recipe, field.name) != field.default
    ]
    return " ".join(["python tools/train_bundled.py", *given])


def card(
    folder: Path, recipe: Recipe, corpus: Corpus, folder_of_stories: Path, seconds: float
) -> str:
    """Measure the model in `folder` and fill in the model card."""
    model = load_shipped(folder, recipe.config)
    return TEMPLATE.read_text(encoding="utf-8").format(
        **model_fields(model, recipe, corpus),
        **loss_fields(model, corpus),
        **circuit_fields(model, recipe),
        **story_fields(folder_of_stories),
        **training_fields(recipe, corpus, seconds),
    )


def model_fields(model: GPT2, recipe: Recipe, corpus: Corpus) -> dict[str, Any]:
    """The shape of the model, and what it writes."""
    return {
        "layers": recipe.n_layer,
        "heads": recipe.n_head,
        "d_head": recipe.config.d_head,
        "width": recipe.n_embd,
        "positions": recipe.n_positions,
        "half": recipe.n_positions // 2,
        "vocab": recipe.vocab_size,
        "end": END_OF_TEXT,
        "weights": sum(weight.numel() for weight in model.parameters()),
        "samples": sample_lines(model, corpus.tokenizer),
    }


def loss_fields(model: GPT2, corpus: Corpus) -> dict[str, Any]:
    """The held-out loss beside the loss of n-gram models."""
    orders = ngram_losses(corpus)
    best = min(orders, key=lambda order: orders[order])
    rows = [
        loss_row("**this model**", loss_of(model, corpus.held_out), corpus.held_out),
        loss_row(f"{best}-gram model", orders[best], corpus.held_out),
    ]
    return {
        "held_tokens": corpus.held_out.scored,
        "held_bytes": corpus.held_out.bytes,
        "held_stories": len(corpus.held_out.tokens),
        "loss_rows": "\n".join(rows),
        "best_order": best,
        "all_orders": ", ".join(f"order {order}: {nats:.3f}" for order, nats in orders.items()),
    }


def circuit_fields(model: GPT2, recipe: Recipe) -> dict[str, Any]:
    """The heads that copy repeated tokens, and what they gain."""
    circuits = measure_circuits(model, recipe.seed)
    heads = zip(best_heads(circuits.induction), best_heads(circuits.previous), strict=True)
    return {
        "first_copy": circuits.first_copy_loss,
        "second_copy": circuits.second_copy_loss,
        "head_rows": "\n".join(f"| {a} | {x:.3f} | | {b} | {y:.3f} |" for (a, x), (b, y) in heads),
    }


def story_fields(folder: Path) -> dict[str, Any]:
    """The stories that the model was trained on."""
    paths = sorted(path for path in folder.glob("*.txt") if path.name != HELD_OUT)
    stories = read_stories(paths)
    return {"stories": len(stories), "bytes": sum(len(story.encode()) for story in stories)}


def training_fields(recipe: Recipe, corpus: Corpus, seconds: float) -> dict[str, Any]:
    """The recipe, and where and how fast it ran."""
    seen = recipe.steps * recipe.batch_rows * recipe.n_positions
    batches = Batches(corpus.train, Names(corpus.tokenizer, corpus.train), recipe)
    cores = f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores"
    return {
        "command": command_line(recipe),
        "steps": recipe.steps,
        "rows": recipe.batch_rows,
        "repeats": recipe.repeat_rows,
        "seen": seen / 1e6,
        "epochs": batches.epochs(recipe.steps),
        "train_tokens": corpus.train.scored,
        "short_steps": recipe.short_steps,
        "learning_rate": recipe.learning_rate,
        "warmup": recipe.warmup,
        "weight_decay": recipe.weight_decay,
        "seed": recipe.seed,
        "minutes": seconds / 60,
        "speed": seen / seconds,
        "machine": f"{cores} ({platform.machine()})",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
