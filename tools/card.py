"""The bundled model's card: its figures, measured on the files that ship."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
from pathlib import Path

import torch
from corpus import END_OF_TEXT, Corpus
from measure import generate, held_out_loss, measure_circuits, ngram_losses
from recipe import Batches, Recipe
from safetensors.torch import load_file
from tokenizers import Tokenizer

from gpt2kit.config import GPT2Config
from gpt2kit.model import GPT2

PROMPTS = ("Alice was", "Once upon a time", "The Queen said")
TEMPLATE = Path(__file__).with_name("bundled_card.md")


def load_shipped(folder: Path, config: GPT2Config) -> GPT2:
    """The model as users get it: the fp16 weights of `folder`, computed in float32."""
    weights = load_file(folder / "model.safetensors")
    model = GPT2(config)
    model.load_state_dict(
        {name.removeprefix("transformer."): weight.float() for name, weight in weights.items()}
    )
    return model.eval()


def loss_row(name: str, nats: float, corpus: Corpus) -> str:
    """One line of the card's table of losses."""
    bits = nats * corpus.held_out_tokens / corpus.held_out_bytes / math.log(2)
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
    """The command that gives this recipe."""
    given = [
        f"--{field.name.replace('_', '-')} {getattr(recipe, field.name)}"
        for field in dataclasses.fields(recipe)
        if getattr(recipe, field.name) != field.default
    ]
    return " ".join(["python tools/train_bundled.py", *given])


def card(folder: Path, recipe: Recipe, corpus: Corpus, books: Path, seconds: float) -> str:
    """Measure the model in `folder` and fill in the model card."""
    model = load_shipped(folder, recipe.config)
    loss = held_out_loss(model, corpus)
    orders = ngram_losses(corpus, recipe.vocab_size)
    best_order = min(orders, key=lambda order: orders[order])
    circuits = measure_circuits(model, recipe.seed)
    heads = zip(best_heads(circuits.induction), best_heads(circuits.previous), strict=True)
    paths = sorted(books.glob("*.txt"))
    seen = recipe.steps * recipe.batch_rows * recipe.n_positions
    return TEMPLATE.read_text(encoding="utf-8").format(
        layers=recipe.n_layer,
        heads=recipe.n_head,
        d_head=recipe.config.d_head,
        width=recipe.n_embd,
        positions=recipe.n_positions,
        half=recipe.n_positions // 2,
        weights=sum(weight.numel() for weight in model.parameters()),
        held_tokens=corpus.held_out_tokens,
        held_bytes=corpus.held_out_bytes,
        held_percent=recipe.held_out * 100,
        loss_rows="\n".join(
            [
                loss_row("**this model**", loss, corpus),
                loss_row(f"{best_order}-gram model", orders[best_order], corpus),
            ]
        ),
        best_order=best_order,
        all_orders=", ".join(f"order {order}: {nats:.3f}" for order, nats in orders.items()),
        first_copy=circuits.first_copy_loss,
        second_copy=circuits.second_copy_loss,
        head_rows="\n".join(f"| {a} | {x:.3f} | | {b} | {y:.3f} |" for (a, x), (b, y) in heads),
        samples=sample_lines(model, corpus.tokenizer),
        command=command_line(recipe),
        books=len(paths),
        bytes=sum(path.stat().st_size for path in paths),
        titles=", ".join(path.stem.replace("-", " ") for path in paths),
        vocab=recipe.vocab_size,
        end=END_OF_TEXT,
        steps=recipe.steps,
        rows=recipe.batch_rows,
        repeats=recipe.repeat_rows,
        seen=seen / 1e6,
        epochs=Batches(corpus.train, recipe).epochs(recipe.steps),
        train_tokens=len(corpus.train),
        short_steps=recipe.short_steps,
        learning_rate=recipe.learning_rate,
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
        seed=recipe.seed,
        minutes=seconds / 60,
        speed=seen / seconds,
        machine=f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores ({platform.machine()})",
        python=platform.python_version(),
        torch=torch.__version__,
    )
