"""Change logits by what a text already says: penalties that keep a text from repeating itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt2kit.readout import Floats


def penalise_repetition(logits: Floats, texts: Sequence[Sequence[int]], penalty: float) -> Floats:
    """Make the tokens that a row's text holds less likely; more likely with a penalty below 1.

    logits: (batch, vocab). A positive logit is divided by the penalty, a negative one multiplied
    (Keskar et al. 2019, arXiv 1909.05858, with the sign as transformers has it).
    """
    out = logits.copy()
    for row, text in zip(out, texts, strict=True):
        said = np.unique(text)
        said = said[said < len(row)]  # a tokenizer may have more tokens than the model
        row[said] = np.where(row[said] < 0, row[said] * penalty, row[said] / penalty)
    return out


def ban_repeated_ngrams(logits: Floats, texts: Sequence[Sequence[int]], size: int) -> Floats:
    """Set to -inf the logits (batch, vocab) of tokens that would say `size` tokens again."""
    out = logits.copy()
    for row, text in zip(out, texts, strict=True):
        begun = text[len(text) - size + 1 :]
        for start in range(len(text) - size + 1):
            after = text[start + size - 1]
            if text[start : start + size - 1] == begun and after < len(row):
                row[after] = -np.inf
    return out
