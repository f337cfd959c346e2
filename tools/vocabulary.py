"""The tokenizer of the bundled model, described for its card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from corpus import encode_stories
from names import BOYS, GIRLS
from rendering import code
from tokenizers import Tokenizer

# Letters with no letter or apostrophe beside them: "don't" is no word here.
WORD = re.compile(r"(?<![A-Za-z'])[A-Za-z]+(?![A-Za-z'])")
EXAMPLES = (
    "Once upon a time, there was a little girl named Lily.",
    "The veterinarian examined the crocodile.",
    "Zürich, 1984",
)
LONGEST = 10


def word_shares(tokenizer: Tokenizer, stories: Sequence[str]) -> tuple[float, float]:
    """The share of the words that are one token, with the space before them: of all occurrences,
    and of the different words."""
    whole: dict[str, bool] = {}
    hits = count = 0
    for story in stories:
        spans = set(tokenizer.encode(story).offsets)
        for word in WORD.finditer(story):
            start, stop = word.span()
            hit = (start - (story[max(0, start - 1) : start] == " "), stop) in spans
            hits, count = hits + hit, count + 1
            whole[word[0]] = whole.get(word[0], False) or hit
    return hits / count, sum(whole.values()) / len(whole)


def bytes_per_token(tokenizer: Tokenizer, stories: Sequence[str]) -> float:
    """Mean length of a token in bytes; end-of-text tokens are left out."""
    encoded = encode_stories(tokenizer, list(stories))
    return encoded.bytes / encoded.scored


def single_names(tokenizer: Tokenizer) -> list[str]:
    """The names that are one token, with a space before them."""
    return [name for name in (*BOYS, *GIRLS) if tokenizer.token_to_id(f"Ġ{name}") is not None]


def longest_tokens(tokenizer: Tokenizer) -> list[str]:
    """The longest tokens as text, the end-of-text token left out."""
    texts = (tokenizer.decode([token]) for token in range(tokenizer.get_vocab_size() - 1))
    return sorted(texts, key=len, reverse=True)[:LONGEST]


def split(tokenizer: Tokenizer, text: str) -> str:
    """The tokens of a text, as Markdown code; a part of a character is shown as its byte."""
    tokens = []
    for token in tokenizer.encode(text).ids:
        plain = tokenizer.decode([token])
        tokens.append(str(tokenizer.id_to_token(token)) if "�" in plain else plain)
    return " ".join(code(token) for token in tokens)


def vocabulary_fields(tokenizer: Tokenizer, stories: Sequence[str]) -> dict[str, Any]:
    """The fields of the card that describe the tokenizer, measured on some stories."""
    common, different = word_shares(tokenizer, stories)
    return {
        "vocab": tokenizer.get_vocab_size(),
        "whole_words": common,
        "whole_different": different,
        "bytes_per_token": bytes_per_token(tokenizer, stories),
        "names": ", ".join(single_names(tokenizer)),
        "longest": ", ".join(code(token) for token in longest_tokens(tokenizer)),
        "splits": "\n".join(f"- {text}: {split(tokenizer, text)}" for text in EXAMPLES),
    }
