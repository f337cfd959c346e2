"""Train the small GPT-2 that ships in gpt2kit/bundled, measure it and write its model card.

    python tools/train_bundled.py --corpus FOLDER            # everything, as the model card says
    python tools/train_bundled.py --corpus FOLDER --resume   # go on from the last checkpoint
    python tools/train_bundled.py --corpus FOLDER --steps 20 --out /tmp/smoke    # a quick look

FOLDER holds stories as text: one or more .txt files to train on, and held-out.txt to measure on.
A line `<|endoftext|>` stands between two stories.

One run trains the tokenizer and the model, fits the tuned lens and the n-gram baseline, measures
them, and writes config.json, generation_config.json, model.safetensors, tokenizer.json,
training.json, tuned_lens.safetensors and README.md. Every random choice depends on --seed and the
step number alone, so a resumed run sees the same batches as an uninterrupted one.

With glibc, MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 in the environment
keep freed memory in the process. On one core, a step is then 1.17 times as fast.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from card import card
from corpus import Corpus, load_corpus
from fit_lens import fit_lens
from measure import quick_loss
from names import Names
from optimize import Optimizer, initialise, train_step
from recipe import Batches, Recipe
from safetensors.torch import save
from tokenizers import Tokenizer
from training_record import TrainingRecord

from gpt2kit import TorchRunner
from gpt2kit.model import GPT2
from gpt2kit.shipped import BUNDLED
from probes import head_scores

SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.95}  # reads well
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class TrainingState:
    """How far training is: the next step, the seconds so far, and the loss curve."""

    step: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float, float]] = dataclasses.field(default_factory=list)


def save_checkpoint(
    path: Path,
    recipe: Recipe,
    model: GPT2,
    optimizer: Optimizer,
    progress: TrainingState,
) -> None:
    """Write everything that --resume needs; the old file is replaced when the new one is whole."""
    partial = path.with_suffix(".partial")
    content = {
        "recipe": dataclasses.asdict(recipe),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": dataclasses.asdict(progress),
    }
    torch.save(content, partial)
    partial.replace(path)


def load_checkpoint(path: Path, recipe: Recipe, model: GPT2, optimizer: Optimizer) -> TrainingState:
    """Read a checkpoint into `model` and `optimizer`. It must have the same recipe."""
    content = torch.load(path, weights_only=True)
    if content["recipe"] != dataclasses.asdict(recipe):
        raise SystemExit(f"{path}: was made with another recipe: {content['recipe']}")
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return TrainingState(**content["progress"])


def train(
    recipe: Recipe, corpus: Corpus, checkpoint: Path, resume: bool, every: int
) -> tuple[GPT2, TrainingState]:
    """Train to the end of the recipe; every `every` steps, save a checkpoint and measure."""
    model = GPT2(recipe.config)
    initialise(model, recipe.seed)
    optimizer = Optimizer(model, recipe)
    progress = TrainingState()
    if resume and checkpoint.exists():
        progress = load_checkpoint(checkpoint, recipe, model, optimizer)
    batches = Batches(corpus.train, Names(corpus.tokenizer, corpus.train), recipe)
    print(
        f"{sum(w.numel() for w in model.parameters()):,} weights, {corpus.train.scored:,} tokens, "
        f"steps {progress.step} to {recipe.steps} ({batches.epochs(recipe.steps):.1f} epochs)",
        flush=True,
    )
    recent: list[tuple[float, float]] = []
    began = time.monotonic() - progress.seconds
    while progress.step < recipe.steps:
        recent.append(train_step(model, optimizer, batches, progress.step))
        progress.step += 1
        if progress.step % every == 0 or progress.step == recipe.steps:
            text, repeated = np.mean(recent, axis=0)
            loss = quick_loss(model, corpus.validation)
            progress.curve.append((progress.step, float(text), loss))
            progress.seconds = time.monotonic() - began
            save_checkpoint(checkpoint, recipe, model, optimizer, progress)
            speed = progress.step * recipe.batch_rows * recipe.n_positions / progress.seconds
            scores = head_scores(TorchRunner(model))
            print(
                f"induction {scores.induction.max():.3f}  "
                f"previous token {scores.previous_token.max():.3f}  "
                f"step {progress.step:6d}  train {text:.3f}  repeated {repeated:.3f}  "
                f"validation {loss:.3f}  {progress.seconds:6.0f} s  {speed:6.0f} tokens/s",
                flush=True,
            )
            recent.clear()
    return model, progress


def write_model(folder: Path, model: GPT2, tokenizer: Tokenizer) -> None:
    """Write the weights (fp16), the configs and the tokenizer under Hugging Face's names."""
    weights = {
        f"transformer.{name}": weight.detach().half().contiguous()
        for name, weight in model.named_parameters()
    }
    if not all(torch.isfinite(weight).all() for weight in weights.values()):
        raise SystemExit("a weight does not fit in fp16")
    # save_file would let nobody else read the file
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    end = model.config.eos_token_id
    config = {**model.config.to_hf(), "initializer_range": 0.02, "dtype": "float16"}
    write_json(folder / "config.json", config)
    ids = {"bos_token_id": end, "eos_token_id": end}
    write_json(folder / "generation_config.json", {**ids, **SAMPLING})
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` indented, with a newline at the end."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def publish(staging: Path, out: Path) -> None:
    """Replace the files in `out`, each by an atomic rename, the card last."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == "README.md"):
        partial = out / f".{path.name}.partial"
        shutil.copyfile(path, partial)
        partial.replace(out / path.name)


def parse_arguments() -> tuple[argparse.Namespace, Recipe]:
    """The options and the recipe that they give; every field of Recipe is an option."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=BUNDLED, metavar="FOLDER")
    parser.add_argument("--work", type=Path, default=ROOT / "build/bundled", metavar="FOLDER")
    parser.add_argument("--old-model", type=Path, metavar="FOLDER", help="for the model card")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--threads", type=int, default=2, help="of torch, while training")
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    for field in dataclasses.fields(Recipe):
        name = "--" + field.name.replace("_", "-")
        default: Any = field.default
        parser.add_argument(name, type=type(default), default=default, help=f"{default}")
    options = parser.parse_args()
    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(Recipe)}
    return options, Recipe(**chosen)


def main() -> None:
    """Train, measure and export."""
    options, recipe = parse_arguments()
    torch.set_num_threads(options.threads)
    staging = options.work / "staging"
    staging.mkdir(parents=True, exist_ok=True)
    corpus = load_corpus(options.corpus, recipe.vocab_size)
    checkpoint = options.work / "checkpoint.pt"
    model, progress = train(recipe, corpus, checkpoint, options.resume, options.every)
    write_model(staging, model, corpus.tokenizer)
    TrainingRecord.here(recipe, progress.seconds, progress.curve).write(staging)
    fit_lens(staging, corpus)
    text = card(staging, options.corpus, corpus, options.old_model)
    (staging / "README.md").write_text(text, encoding="utf-8")
    publish(staging, options.out)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(text + f"\n{options.out}: {size:,} bytes")


if __name__ == "__main__":
    main()
