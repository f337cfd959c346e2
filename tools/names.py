"""The children of the stories, and the same story told of other children."""

from __future__ import annotations

import numpy as np
from corpus import IntArray, Stories
from tokenizers import Tokenizer

BOYS = """Tim Tom Sam Ben Max Bob Jack Timmy John Joe Tommy Billy Jimmy Leo Mark Jim Bobby Jake Fred
Benny Pete Peter Bill Henry""".split()  # noqa: SIM905
GIRLS = """Lily Sue Mia Lucy Anna Amy Sally Sara Jane Sarah Lila Molly Jill Mary Emma Jenny Lisa
Ella""".split()  # noqa: SIM905


class Names:
    """Renames the children of a story, boys as boys and girls as girls.

    A name is renamed wherever it is one token, with or without a space before it, so that the
    length in tokens stays. New names are drawn as often as the stories have them, without doubles.
    """

    def __init__(self, tokenizer: Tokenizer, stories: Stories) -> None:
        self.vocab_size = tokenizer.get_vocab_size()
        vocab = tokenizer.get_vocab()
        self.groups: list[tuple[IntArray, IntArray, np.ndarray]] = []
        counts = np.bincount(np.concatenate(stories.tokens), minlength=self.vocab_size)
        for names in (BOYS, GIRLS):
            forms = [(f"Ġ{name}", name) for name in names if {f"Ġ{name}", name} <= vocab.keys()]
            if not forms:  # the text has other names
                continue
            spaced, bare = np.array([[vocab[form] for form in pair] for pair in forms]).T
            self.groups.append((spaced, bare, counts[spaced] / counts[spaced].sum()))

    def redraw(self, story: IntArray, rng: np.random.Generator) -> IntArray:
        """The same story, (n,) -> (n,), with its names drawn anew."""
        new = np.arange(self.vocab_size)
        for spaced, bare, share in self.groups:
            present = np.flatnonzero(np.isin(spaced, story) | np.isin(bare, story))
            drawn = rng.choice(len(spaced), size=len(present), replace=False, p=share)
            new[spaced[present]], new[bare[present]] = spaced[drawn], bare[drawn]
        return new[story]
