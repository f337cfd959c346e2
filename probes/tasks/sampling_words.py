"""Seeded choice of words that are one token each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt2kit.checks import check_integer
from gpt2kit.errors import InputError
from gpt2kit.tokenizer import Tokenizer


def seeded(count: int, seed: int, name: str = "n") -> np.random.Generator:
    """The random numbers of a seed, for `count` prompts.

    name: the argument that `count` is. Raises InputError unless `count` is a positive integer and
    `seed` an integer from 0.
    """
    if check_integer(name, count, low=None) < 1:
        raise InputError(f"{count} prompts are too few; ask for at least one")
    if check_integer("seed", seed, low=None) < 0:
        raise InputError(f"seed = {seed} must not be negative")
    return np.random.default_rng(seed)


def single_tokens(
    tokenizer: Tokenizer, task: str, what: str, words: Sequence[str], least: int
) -> list[str]:
    """The words that are one token after a space.

    Raises InputError if there are fewer than `least`. task, what: for its message.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise InputError(f"tokenizer = {tokenizer!r} must be a Tokenizer, such as a runner's own")
    single = [word for word in words if len(tokenizer.encode(f" {word}")) == 1]
    if len(single) < least:
        split = next(word for word in words if word not in single)
        pieces = " + ".join(map(repr, tokenizer.tokens(tokenizer.encode(f" {split}"))))
        raise InputError(
            f"{task}: {len(single)} of {len(words)} {what} are one token for this tokenizer, "
            f"{least} are needed (' {split}' is {pieces}); use GPT-2's own tokenizer"
        )
    return single


def draw_words(random: np.random.Generator, words: Sequence[str], count: int) -> list[str]:
    """`count` different words."""
    return [words[i] for i in random.choice(len(words), count, replace=False)]
