"""The stories that the bundled model is trained on, and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

IntArray = NDArray[np.int64]
END_OF_TEXT = "<|endoftext|>"
HELD_OUT = "held-out.txt"
VALIDATION = 40  # one story in so many is kept from training, to choose settings with
IGNORED = -100  # a target that is not scored


@dataclass(frozen=True)
class Stories:
    """Some stories as tokens, and the bytes of their text.

    tokens: one array per story; each starts with an end-of-text token, which is context only.
    """

    tokens: list[IntArray]
    bytes: int

    @property
    def scored(self) -> int:
        """Number of tokens that a loss is the mean of."""
        return sum(len(story) - 1 for story in self.tokens)


@dataclass(frozen=True)
class Corpus:
    """Stories to train on, to choose settings with, and to measure the final model on."""

    tokenizer: Tokenizer
    train: Stories
    validation: Stories
    held_out: Stories


def read_stories(paths: Iterable[Path]) -> list[str]:
    """The texts between the end-of-text lines of some files."""
    texts = [path.read_text(encoding="utf-8") for path in paths]
    stories = [story.strip() for text in texts for story in text.split(END_OF_TEXT)]
    return [story for story in stories if story]


def train_tokenizer(stories: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE in GPT-2's layout: bytes first, then merges, end-of-text last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(stories, trainer)
    # GPT-2 lists the special token in the BPE vocabulary as well as among the added tokens.
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"][END_OF_TEXT] = vocab_size - 1
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens([END_OF_TEXT])
    if tokenizer.get_vocab_size() != vocab_size:
        raise SystemExit(f"the corpus gives {tokenizer.get_vocab_size()} tokens, not {vocab_size}")
    return tokenizer


def encode_stories(tokenizer: Tokenizer, stories: list[str]) -> Stories:
    """Encode stories, each behind an end-of-text token."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    encoded = tokenizer.encode_batch(stories)
    return Stories(
        tokens=[np.array([end, *story.ids], dtype=np.int64) for story in encoded],
        bytes=sum(len(story.encode()) for story in stories),
    )


def load_corpus(folder: Path, vocab_size: int) -> Corpus:
    """Read every .txt file of `folder`; the tokenizer is trained on the training stories alone."""
    paths = sorted(path for path in folder.glob("*.txt") if path.name != HELD_OUT)
    if not paths or not (folder / HELD_OUT).exists():
        raise SystemExit(f"{folder}: wants {HELD_OUT} and other .txt files (see --corpus)")
    stories = read_stories(paths)
    train = [story for i, story in enumerate(stories) if i % VALIDATION]
    tokenizer = train_tokenizer(train, vocab_size)
    return Corpus(
        tokenizer=tokenizer,
        train=encode_stories(tokenizer, train),
        validation=encode_stories(tokenizer, stories[::VALIDATION]),
        held_out=encode_stories(tokenizer, read_stories([folder / HELD_OUT])),
    )


def windows(
    stories: Stories, width: int, stride: int, rows: int = 16
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of (ids, targets), both (rows, width), that score every token once.

    Windows of one story begin `stride` tokens apart. Targets that an earlier window scored are
    ignored, and so is the padding at the end of a story.
    """
    ids, targets = [], []
    for story in stories.tokens:
        scored = 0
        for start in range(0, len(story) - 1, stride):
            stop = min(start + width, len(story) - 1)
            row = np.zeros(width, dtype=np.int64)
            target = np.full(width, IGNORED, dtype=np.int64)
            row[: stop - start] = story[start:stop]
            target[scored - start : stop - start] = story[scored + 1 : stop + 1]
            ids.append(row)
            targets.append(target)
            scored = stop
            if stop == len(story) - 1:
                break
    for i in range(0, len(ids), rows):
        yield (
            torch.from_numpy(np.stack(ids[i : i + rows])),
            torch.from_numpy(np.stack(targets[i : i + rows])),
        )
