"""Train the small GPT-2 that ships in gpt2kit/bundled, measure it and write its model card.

    python tools/train_bundled.py                  # everything, with the recipe of the model card
    python tools/train_bundled.py --resume         # go on from the last checkpoint
    python tools/train_bundled.py --steps 20 --out /tmp/smoke    # a quick look at the whole path

One run trains the tokenizer, trains the model, fits the n-gram baseline, measures both on the same
held-out tokens and writes config.json, generation_config.json, model.safetensors, tokenizer.json
and README.md. Every random choice comes from --seed and the step number, so that a resumed run
sees the same batches as an uninterrupted one.

With glibc, MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 in the environment
keep freed memory in the process; measured on one core, a step is then 1.17 times as fast.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ngram import KneserNey
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F

from gpt2kit.config import GPT2Config
from gpt2kit.model import GPT2

IntArray = NDArray[np.int64]
Edits = dict[str, Callable[[torch.Tensor], torch.Tensor]]

ROOT = Path(__file__).resolve().parent.parent
END_OF_TEXT = "<|endoftext|>"
IGNORED = -100
PROMPTS = ("Alice was", "Once upon a time", "The Queen said")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which weights come out. Lengths are in tokens."""

    vocab_size: int = 4096
    n_positions: int = 256
    n_embd: int = 192
    n_layer: int = 6
    n_head: int = 6
    held_out: float = 0.05
    steps: int = 2900
    batch_rows: int = 16
    repeat_rows: int = 4
    muon_lr: float = 0.015
    adam_lr: float = 0.0015
    weight_decay: float = 0.1
    dropout: float = 0.0
    warmup: int = 100
    gentle_steps: int = 600
    muon_boost: float = 1.3
    adam_boost: float = 3.0
    seed: int = 0

    @property
    def config(self) -> GPT2Config:
        """The model's shape; the end-of-text token is the last one, as in GPT-2."""
        return GPT2Config(
            vocab_size=self.vocab_size,
            n_positions=self.n_positions,
            n_embd=self.n_embd,
            n_layer=self.n_layer,
            n_head=self.n_head,
            bos_token_id=self.vocab_size - 1,
            eos_token_id=self.vocab_size - 1,
        )


# ---------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Corpus:
    """The books, split and tokenised.

    `train` is one stream of shape (n,) with an end-of-text token before each book; `held_out` has
    one array per book, also with an end-of-text token first, which is context and never scored.
    """

    tokenizer: Tokenizer
    train: IntArray
    held_out: list[IntArray]
    held_out_bytes: int

    @property
    def held_out_tokens(self) -> int:
        """Number of tokens that are scored."""
        return sum(len(book) - 1 for book in self.held_out)


def split_book(text: str, held_out: float) -> tuple[str, str]:
    """Cut off about the last `held_out` share of a book, at the start of a paragraph."""
    wanted = int(len(text) * (1 - held_out))
    cut = text.rfind("\n\n", 0, wanted) + 2
    return text[:cut], text[cut:]


def train_tokenizer(books: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE in GPT-2's layout: bytes first, then merges, end-of-text last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(books, trainer)
    # GPT-2 lists the special token in the BPE vocabulary as well as among the added tokens.
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"][END_OF_TEXT] = vocab_size - 1
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens([END_OF_TEXT])
    if tokenizer.get_vocab_size() != vocab_size:
        raise SystemExit(f"the corpus gives {tokenizer.get_vocab_size()} tokens, not {vocab_size}")
    return tokenizer


def load_corpus(folder: Path, recipe: Recipe) -> Corpus:
    """Read every .txt file of `folder`; the tokenizer sees the training part only."""
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise SystemExit(f"{folder}: no .txt files (give the folder of books with --corpus)")
    texts = [path.read_text(encoding="utf-8") for path in paths]
    parts = [split_book(text, recipe.held_out) for text in texts]
    tokenizer = train_tokenizer([train for train, _ in parts], recipe.vocab_size)

    def encode(text: str) -> IntArray:
        return np.array([recipe.vocab_size - 1, *tokenizer.encode(text).ids], dtype=np.int64)

    return Corpus(
        tokenizer=tokenizer,
        train=np.concatenate([encode(train) for train, _ in parts]),
        held_out=[encode(held) for _, held in parts],
        held_out_bytes=sum(len(held.encode()) for _, held in parts),
    )


class Batches:
    """The training batches, each a function of the seed and the step number alone."""

    def __init__(self, stream: IntArray, recipe: Recipe) -> None:
        self.stream, self.recipe = stream, recipe
        self.text_rows = recipe.batch_rows - recipe.repeat_rows
        # One row less than fits, to leave room for the offset that changes every epoch.
        self.rows_per_epoch = (len(stream) - 1) // recipe.n_positions - 1
        self._order: tuple[int, int, IntArray] = (-1, 0, np.empty(0, dtype=np.int64))

    def epochs(self, steps: int) -> float:
        """How often `steps` steps go through the text."""
        return steps * self.text_rows / self.rows_per_epoch

    def _text_row(self, number: int) -> IntArray:
        """Row `number` of the shuffled text, shape (n_positions + 1,)."""
        epoch, place = divmod(number, self.rows_per_epoch)
        if self._order[0] != epoch:
            rng = np.random.default_rng((self.recipe.seed, 1, epoch))
            offset = int(rng.integers(self.recipe.n_positions))
            self._order = (epoch, offset, rng.permutation(self.rows_per_epoch))
        _, offset, order = self._order
        start = offset + int(order[place]) * self.recipe.n_positions
        return self.stream[start : start + self.recipe.n_positions + 1]

    def _repeated_row(self, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """A block of random tokens repeated to fill a row, and its targets.

        Only what the earlier copy determines is a target: neither the first copy nor the token
        that starts the second one.
        """
        width = self.recipe.n_positions + 1
        # Short periods show the same rule many times in one row; that is where heads learn it.
        longest = self.recipe.n_positions // 2
        period = int(np.exp(rng.uniform(np.log(8), np.log(longest + 1))))
        if rng.random() < 0.5:
            block = rng.integers(self.recipe.vocab_size - 1, size=period)
        else:  # as often as they come in the text, whose embeddings are the first to be learnt
            block = rng.choice(self.stream, size=period)
        row = np.resize(block, width)
        targets = row.copy()
        targets[: period + 1] = IGNORED
        return row, targets

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and targets of one step, both (batch, pos); text rows come first."""
        rows = [self._text_row(step * self.text_rows + i) for i in range(self.text_rows)]
        targets = list(rows)
        rng = np.random.default_rng((self.recipe.seed, 2, step))
        for _ in range(self.recipe.repeat_rows):
            row, target = self._repeated_row(rng)
            rows.append(row)
            targets.append(target)
        ids = torch.from_numpy(np.stack(rows)[:, :-1].copy())
        return ids, torch.from_numpy(np.stack(targets)[:, 1:].copy())


# ------------------------------------------------------------------------------------ training


def initialise(model: GPT2, seed: int) -> None:
    """GPT-2's initialisation, except for sinusoidal positions and a laid-out induction circuit.

    Matrices are normal(0.02), the projections into the residual stream smaller. Embeddings are of
    root mean square 0.1, so that the circuit's reading of them is not drowned while they grow.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(weight)
        elif ".ln_" in name or name.startswith("ln_f"):
            torch.nn.init.ones_(weight)
        else:
            residual = name.endswith("c_proj.weight")
            std = 0.02 / math.sqrt(2 * model.config.n_layer) if residual else 0.02
            std = 0.1 if name == "wte.weight" else std
            torch.nn.init.normal_(weight, std=std, generator=generator)
    with torch.no_grad():
        model.wpe.weight.copy_(0.1 * math.sqrt(2) * torch.cat(sinusoids(model), dim=1))
        lay_out_induction(model)


def sinusoids(model: GPT2) -> tuple[torch.Tensor, torch.Tensor]:
    """Sines and cosines (positions, d_model / 2) of geometrically spaced wavelengths."""
    positions, width = model.wpe.weight.shape
    angles = torch.arange(positions)[:, None] * frequencies(width)
    return angles.sin(), angles.cos()


def frequencies(width: int) -> torch.Tensor:
    """(width / 2,) radians a token, from 1 down to 1/1000."""
    return torch.exp(-math.log(1000.0) * torch.arange(width // 2) / (width // 2))


def lay_out_induction(model: GPT2) -> None:
    """Put an induction circuit into the initial weights: heads 0.0 and 2.0.

    In a training this short the circuit does not form by itself. Head 0.0 turns the query's
    sinusoids back by one position, so that it looks one token back, and copies part of that token's
    embedding to dimensions that no embedding uses. Head 2.0 compares them with the same part of the
    present token's embedding, looks where they agree, and copies what stands there.
    """
    width, d_head = model.config.n_embd, model.config.d_head
    half, n = width // 2, d_head // 2
    where, token, previous = (
        torch.cat([torch.arange(k * n, k * n + n), half + torch.arange(k * n, k * n + n)])
        for k in range(3)
    )  # (d_head,) residual dimensions: position, token, token before
    model.wte.weight[:, where] = model.wte.weight[:, previous] = 0
    model.wpe.weight[:, token] = model.wpe.weight[:, previous] = 0
    turn = frequencies(width)[:n]
    back = torch.zeros(d_head, d_head)
    back[:n, :n], back[n:, n:] = turn.cos().diag(), turn.cos().diag()
    back[n:, :n], back[:n, n:] = -turn.sin().diag(), turn.sin().diag()
    eye = torch.eye(d_head)
    for layer, gain, out, rows in (
        (0, 2.5, 0.25, {"q": (where, back), "k": (where, eye), "v": (token, eye)}),
        (2, 1.6, 0.5, {"q": (token, eye), "k": (previous, eye), "v": (token, eye)}),
    ):
        attention = model.h[layer].attn
        for part, (name, (dims, matrix)) in enumerate(rows.items()):
            columns = slice(part * width, part * width + d_head)
            attention.c_attn.weight[:, columns] = 0
            attention.c_attn.weight[dims, columns] = matrix * (1.0 if name == "v" else gain)
        attention.c_proj.weight[:d_head] = 0
        attention.c_proj.weight[range(d_head), previous if layer == 0 else token] = out


CIRCUIT = ("h.0.attn.", "h.2.attn.")  # Muon would turn these matrices over within 100 steps


def make_optimizers(model: GPT2, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for most matrices of the blocks; AdamW for the rest, gently where the circuit lies."""
    muon, embeddings, circuit, vectors, positions = [], [], [], [], []
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            vectors.append(weight)
        elif name == "wpe.weight":
            positions.append(weight)
        elif name.startswith(CIRCUIT):
            circuit.append(weight)
        else:
            (muon if name.startswith("h.") else embeddings).append(weight)
    lr, decay = recipe.adam_lr, recipe.weight_decay
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            muon, lr=recipe.muon_lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(
            [
                {"params": embeddings, "lr": lr, "weight_decay": decay},
                {"params": circuit, "lr": lr / 2, "weight_decay": 0.0},
                {"params": vectors, "lr": 2 * lr, "weight_decay": 0.0},
                {"params": positions, "lr": lr / 10, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.95),
        ),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"], group["boost"] = group["lr"], 1.0
    optimizers[0].param_groups[0]["boost"] = recipe.muon_boost
    optimizers[1].param_groups[0]["boost"] = recipe.adam_boost
    return optimizers


def schedule(step: int, recipe: Recipe, boost: float) -> float:
    """Share of the peak learning rate: a linear warm-up, then a straight line to zero.

    The first steps go gently, until the loss leans on the induction circuit and so protects it;
    from then on the rate is `boost` times as high.
    """
    warm = min(1.0, (step + 1) / recipe.warmup)
    return warm * (1 - step / recipe.steps) * (boost if step >= recipe.gentle_steps else 1.0)


def dropout_edits(recipe: Recipe, step: int) -> Edits:
    """Dropout on what enters the residual stream, as edits of the model's own taps.

    The masks come from random bytes, which are much cheaper than torch's Bernoulli samples on a
    CPU; the rate is therefore rounded to 1/256.
    """
    dropped = round(recipe.dropout * 256)
    if not dropped:
        return {}
    rng = np.random.default_rng((recipe.seed, 3, step))
    scale = 256 / (256 - dropped)

    def drop(x: torch.Tensor) -> torch.Tensor:
        noise = np.frombuffer(bytearray(rng.bytes(x.numel())), dtype=np.uint8)
        keep = torch.from_numpy(noise).view(x.shape) >= dropped
        return x * (keep.to(x.dtype) * scale)

    taps = [f"blocks.{i}.{tap}" for i in range(recipe.n_layer) for tap in ("attn_out", "mlp_out")]
    return dict.fromkeys(["embed", *taps], drop)


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy per token in nats, (batch, pos); 0 where the target is ignored."""
    flat = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(targets.shape)


def quick_held_out_loss(model: GPT2, corpus: Corpus) -> float:
    """Held-out loss in nats per token with separate windows, to watch while training."""
    total = 0.0
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        for ids, targets in windows(corpus, model.config.n_positions, model.config.n_positions):
            total += float(token_losses(model(ids).logits, targets).double().sum())
    return total / corpus.held_out_tokens


@dataclass
class Progress:
    """Where training is: the next step, the seconds it took so far, and the log of the curve."""

    step: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float, float]] = dataclasses.field(default_factory=list)


def save_checkpoint(
    path: Path, recipe: Recipe, model: GPT2, optimizers: list[Any], progress: Progress
) -> None:
    """Write everything that --resume needs; the old file stays valid until the new one is whole."""
    partial = path.with_suffix(".partial")
    content = {
        "recipe": dataclasses.asdict(recipe),
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "progress": dataclasses.asdict(progress),
    }
    torch.save(content, partial)
    partial.replace(path)


def load_checkpoint(path: Path, recipe: Recipe, model: GPT2, optimizers: list[Any]) -> Progress:
    """Read a checkpoint into `model` and `optimizers`. The recipe must be the one it began with."""
    content = torch.load(path, weights_only=True)
    if content["recipe"] != dataclasses.asdict(recipe):
        raise SystemExit(f"{path}: was made with another recipe: {content['recipe']}")
    model.load_state_dict(content["model"])
    for optimizer, state in zip(optimizers, content["optimizers"], strict=True):
        boosts = [group["boost"] for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, boost in zip(optimizer.param_groups, boosts, strict=True):
            group["boost"] = boost
    return Progress(**content["progress"])


def train_step(
    model: GPT2, optimizers: list[Any], batches: Batches, step: int
) -> tuple[float, float]:
    """One update; returns the loss in nats on text and on the repeated tokens."""
    recipe = batches.recipe
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = schedule(step, recipe, group["boost"]) * group["peak_lr"]
    ids, targets = batches.at(step)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids, edits=dropout_edits(recipe, step)).logits
    losses = token_losses(logits, targets)
    scored = targets != IGNORED
    (losses.sum() / scored.sum()).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    rows, losses = batches.text_rows, losses.detach()
    repeated = losses[rows:].sum() / scored[rows:].sum().clamp(min=1)
    return float(losses[:rows].mean()), float(repeated)


def train(
    recipe: Recipe, corpus: Corpus, checkpoint: Path, resume: bool, every: int
) -> tuple[GPT2, Progress]:
    """Train to the end of the recipe, with a checkpoint and a look at held-out every `every`."""
    model = GPT2(recipe.config)
    initialise(model, recipe.seed)
    optimizers = make_optimizers(model, recipe)
    progress = Progress()
    if resume and checkpoint.exists():
        progress = load_checkpoint(checkpoint, recipe, model, optimizers)
    batches = Batches(corpus.train, recipe)
    print(
        f"{sum(w.numel() for w in model.parameters()):,} weights, {len(corpus.train):,} tokens, "
        f"steps {progress.step} to {recipe.steps} ({batches.epochs(recipe.steps):.1f} epochs)",
        flush=True,
    )
    recent: list[tuple[float, float]] = []
    began = time.monotonic() - progress.seconds
    while progress.step < recipe.steps:
        recent.append(train_step(model, optimizers, batches, progress.step))
        progress.step += 1
        if progress.step % every == 0 or progress.step == recipe.steps:
            text, repeated = np.mean(recent, axis=0)
            held = quick_held_out_loss(model, corpus)
            progress.curve.append((progress.step, float(text), held))
            progress.seconds = time.monotonic() - began
            save_checkpoint(checkpoint, recipe, model, optimizers, progress)
            speed = progress.step * recipe.batch_rows * recipe.n_positions / progress.seconds
            scores = measure_circuits(model, recipe.seed, sequences=8)
            print(
                f"induction {scores.induction.max():.3f} previous {scores.previous.max():.3f}  "
                f"step {progress.step:6d}  train {text:.3f}  repeated {repeated:.3f}  "
                f"held-out {held:.3f}  {progress.seconds:6.0f} s  {speed:6.0f} tokens/s",
                flush=True,
            )
            recent.clear()
    return model, progress


# --------------------------------------------------------------------------------- measurement


def windows(
    corpus: Corpus, width: int, stride: int, rows: int = 16
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of (ids, targets), both (rows, width), that score every held-out token once.

    Windows of one book begin `stride` tokens apart; a window's targets are ignored where an
    earlier window has already scored them. Ends are padded with ignored targets.
    """
    ids, targets = [], []
    for book in corpus.held_out:
        scored = 0
        for start in range(0, len(book) - 1, stride):
            stop = min(start + width, len(book) - 1)
            row = np.zeros(width, dtype=np.int64)
            target = np.full(width, IGNORED, dtype=np.int64)
            row[: stop - start] = book[start:stop]
            target[scored - start : stop - start] = book[scored + 1 : stop + 1]
            ids.append(row)
            targets.append(target)
            scored = stop
            if stop == len(book) - 1:
                break
    for i in range(0, len(ids), rows):
        yield (
            torch.from_numpy(np.stack(ids[i : i + rows])),
            torch.from_numpy(np.stack(targets[i : i + rows])),
        )


def held_out_loss(model: GPT2, corpus: Corpus) -> float:
    """Loss in nats per held-out token in float32, with at least half a window of context."""
    width = model.config.n_positions
    total = 0.0
    with torch.inference_mode():
        for ids, targets in windows(corpus, width, width // 2):
            total += float(token_losses(model(ids).logits, targets).double().sum())
    return total / corpus.held_out_tokens


def ngram_losses(corpus: Corpus, vocab_size: int) -> dict[int, float]:
    """Held-out loss in nats per token of modified Kneser-Ney models of order 2 to 5."""
    losses = {}
    for order in range(2, 6):
        model = KneserNey(corpus.train, order, vocab_size)
        log_p = sum(float(np.log(model.probabilities(book)).sum()) for book in corpus.held_out)
        losses[order] = -log_p / corpus.held_out_tokens
    return losses


@dataclass(frozen=True)
class Circuits:
    """What the heads do on random blocks written twice; scores are (layer, head)."""

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
            if token == model.config.eos_token_id:
                break
            ids.append(token)
    return str(tokenizer.decode(ids))


# -------------------------------------------------------------------------------------- export


def write_model(folder: Path, model: GPT2, tokenizer: Tokenizer) -> None:
    """Write the weights (fp16), the configs and the tokenizer under Hugging Face's names."""
    weights = {
        f"transformer.{name}": weight.detach().half().contiguous()
        for name, weight in model.named_parameters()
    }
    if not all(torch.isfinite(weight).all() for weight in weights.values()):
        raise SystemExit("a weight does not fit in fp16")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    end = model.config.eos_token_id
    config = {**model.config.to_hf(), "initializer_range": 0.02, "dtype": "float16"}
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` indented, with a newline at the end."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_shipped(folder: Path, config: GPT2Config) -> GPT2:
    """The model as users get it: the fp16 weights of `folder`, computed in float32."""
    weights = load_file(folder / "model.safetensors")
    model = GPT2(config)
    model.load_state_dict(
        {name.removeprefix("transformer."): weight.float() for name, weight in weights.items()}
    )
    return model.eval()


CARD = """\
---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---

# The model bundled with gpt2kit

A GPT-2 small enough to ship inside a Python package and good enough to teach with: {layers} layers,
{heads} heads of width {d_head}, width {width}, context {positions}, {weights:,} weights in fp16. It
writes short fluent phrases in the manner of old children's books and has an induction circuit that
can be found, read and ablated (it was laid out before training, see below). It is a toy for looking
inside, not for writing texts.

It has Hugging Face's GPT-2 layout: `transformers.GPT2LMHeadModel.from_pretrained` loads the folder.

## Figures

Measured on the weights that ship (rounded to fp16, computed in fp32), on {held_tokens:,} held-out
tokens ({held_bytes:,} bytes): the last {held_percent:g} % of every book, cut at a paragraph, which
neither the tokenizer nor the training saw.

| Held-out | nats/token | perplexity | bits/byte |
|---|---:|---:|---:|
{loss_rows}

Both score exactly the same tokens. The model reads windows of {positions} tokens that overlap by
half, so every token has at least {half} tokens of context, or all of its book's held-out part. The
n-gram model is interpolated modified Kneser-Ney over the same training tokens, with discounts
estimated per order (`tools/ngram.py`); the best order on held-out was {best_order}
({all_orders}). The model's hyperparameters were also chosen by held-out loss.

### Circuits

On 64 sequences of 50 random tokens written twice (100 tokens, nothing in front), the loss falls
from {first_copy:.2f} nats/token in the first copy to {second_copy:.2f} in the second.

| Head | Induction score | | Head | Previous-token score |
|---|---:|---|---|---:|
{head_rows}

Heads are layer.head, counted from 0. Induction score: mean attention from a position of the second
copy to the token after the earlier occurrence of the same token. Previous-token score: mean
attention to the position before.

## Samples

The prompt is in bold; 50 tokens follow, seed 0, not picked.

{samples}

## How it was made

    {command}

- Data: {books} public-domain books from Project Gutenberg (header and footer removed), {bytes:,}
  bytes of plain ASCII: {titles}.
- Tokenizer: byte-level BPE with GPT-2's pre-tokenisation, {vocab:,} tokens, trained on the training
  part; `{end}` is the last id and stands before each book.
- Training: {steps:,} steps of {rows} rows of {positions} tokens, {seen:.1f} M tokens in all;
  {epochs:.1f} passes over {train_tokens:,} tokens of text, cut at a new offset in each. {repeats}
  of the {rows} rows are random tokens repeated with a period of 8 to {half}, the shorter the more
  often, where only the repeated part is learned: that keeps the induction circuit in use. Half of
  them draw their tokens evenly, half as often as they come in the text.
- Start: normal(0.02), embeddings 0.1, positions sinusoids of that size. **The induction circuit
  was laid out, not found:** in a training this short none forms by itself, so heads 0.0 (looks one
  token back) and 2.0 (looks for the token after the earlier occurrence) begin with weights that do
  this; training kept them, and what they are worth is measured above. All else was learned.
- Optimizer: Muon (learning rate {muon_lr:g}, scaled to match AdamW's) for the blocks' matrices,
  AdamW for the rest ({adam_lr:g} for the embedding, half of it for the attention of layers 0 and
  2, twice for vectors, a tenth for positions). After {gentle} steps, when the circuit is in use,
  Muon's rate is {muon_boost:g} times and the embedding's {adam_boost:g} times as high. Warm-up of
  {warmup} steps, then linearly to zero; weight decay {weight_decay:g} on Muon's matrices and the
  embedding, dropout {dropout:g}. bfloat16 autocast, seed {seed}.
- Time: {minutes:.0f} minutes on {machine}, {speed:,.0f} tokens per second, checks included.
- Made with Python {python}, torch {torch}. The same command on another machine gives other last
  digits.

## Limits

It has read {books} English books, most of them for children and from before 1925, and nothing else.
It knows no facts, follows no instructions, loses the thread after a sentence or two, and carries
the attitudes of its sources and their time. Other languages, code and modern text are noise to it.

## Licence

The weights and the tokenizer are under the MIT licence, as gpt2kit. The texts are in the public
domain in the United States; none of them is included.
"""


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


def card(folder: Path, recipe: Recipe, corpus: Corpus, progress: Progress, books: Path) -> str:
    """Measure the model in `folder` and fill in the model card."""
    model = load_shipped(folder, recipe.config)
    loss = held_out_loss(model, corpus)
    orders = ngram_losses(corpus, recipe.vocab_size)
    best_order = min(orders, key=lambda order: orders[order])
    circuits = measure_circuits(model, recipe.seed)
    heads = zip(best_heads(circuits.induction), best_heads(circuits.previous), strict=True)
    paths = sorted(books.glob("*.txt"))
    seen = progress.step * recipe.batch_rows * recipe.n_positions
    return CARD.format(
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
        steps=progress.step,
        rows=recipe.batch_rows,
        repeats=recipe.repeat_rows,
        seen=seen / 1e6,
        epochs=Batches(corpus.train, recipe).epochs(progress.step),
        train_tokens=len(corpus.train),
        muon_lr=recipe.muon_lr,
        adam_lr=recipe.adam_lr,
        gentle=recipe.gentle_steps,
        muon_boost=recipe.muon_boost,
        adam_boost=recipe.adam_boost,
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
        dropout=recipe.dropout,
        seed=recipe.seed,
        minutes=progress.seconds / 60,
        speed=seen / progress.seconds,
        machine=f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores ({platform.machine()})",
        python=platform.python_version(),
        torch=torch.__version__,
    )


def publish(staging: Path, out: Path) -> None:
    """Move the finished files over those in `out`, one atomic rename each, the card last."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == "README.md"):
        partial = out / f".{path.name}.partial"
        shutil.copyfile(path, partial)
        partial.replace(out / path.name)


def parse_arguments() -> tuple[argparse.Namespace, Recipe]:
    """The options, and the recipe they describe; every field of Recipe is an option."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--corpus", type=Path, default=ROOT / "../shared/corpus", metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=ROOT / "gpt2kit/bundled", metavar="FOLDER")
    parser.add_argument("--work", type=Path, default=ROOT / "build/bundled", metavar="FOLDER")
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
    corpus = load_corpus(options.corpus, recipe)
    checkpoint = options.work / "checkpoint.pt"
    model, progress = train(recipe, corpus, checkpoint, options.resume, options.every)
    write_model(staging, model, corpus.tokenizer)
    text = card(staging, recipe, corpus, progress, options.corpus)
    (staging / "README.md").write_text(text, encoding="utf-8")
    publish(staging, options.out)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(text + f"\n{options.out}: {size:,} bytes")


if __name__ == "__main__":
    main()
