"""The books that the bundled model is trained on, and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

IntArray = NDArray[np.int64]
END_OF_TEXT = "<|endoftext|>"
IGNORED = -100  # a target that is not scored


@dataclass(frozen=True)
class Corpus:
    """The books, split into a training and a held-out part, as tokens.

    train: one stream (n,) with an end-of-text token before each book.
    held_out: one array per book. It also starts with an end-of-text token, which is context only.
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
    """Split off about the last `held_out` share of a book, at the start of a paragraph."""
    ideal = int(len(text) * (1 - held_out))
    start = text.rfind("\n\n", 0, ideal) + 2
    return text[:start], text[start:]


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


def load_corpus(folder: Path, vocab_size: int, held_out: float) -> Corpus:
    """Read every .txt file of `folder`. The tokenizer is trained on the training part only.

    held_out: share of every book, taken from its end.
    """
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise SystemExit(f"{folder}: no .txt files (give the folder of books with --corpus)")
    texts = [path.read_text(encoding="utf-8") for path in paths]
    parts = [split_book(text, held_out) for text in texts]
    tokenizer = train_tokenizer([train for train, _ in parts], vocab_size)

    def encode(text: str) -> IntArray:
        return np.array([vocab_size - 1, *tokenizer.encode(text).ids], dtype=np.int64)

    return Corpus(
        tokenizer=tokenizer,
        train=np.concatenate([encode(train) for train, _ in parts]),
        held_out=[encode(held) for _, held in parts],
        held_out_bytes=sum(len(held.encode()) for _, held in parts),
    )


def windows(
    corpus: Corpus, width: int, stride: int, rows: int = 16
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of (ids, targets), both (rows, width), that score every held-out token once.

    Windows of one book begin `stride` tokens apart. Targets that an earlier window scored are
    ignored, and so is the padding at the end of a book.
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
