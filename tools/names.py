"""The children of the stories, and the same story told of other children."""

from __future__ import annotations

import numpy as np
import torch
from corpus import IntArray, Stories
from numpy.typing import NDArray
from tokenizers import Tokenizer

BOYS = """Tim Tom Sam Ben Max Bob Jack Timmy John Joe Tommy Billy Jimmy Leo Mark Jim Bobby Jake Fred
Benny Pete Peter Bill Henry""".split()  # noqa: SIM905
GIRLS = """Lily Sue Mia Lucy Anna Amy Sally Sara Jane Sarah Lila Molly Jill Mary Emma Jenny Lisa
Ella""".split()  # noqa: SIM905


Group = tuple[IntArray, IntArray, NDArray[np.float64]]  # with a space, without, share


class Names:
    """Renames the children of a story, boys as boys and girls as girls.

    A name is renamed wherever it is one token, with or without a space before it, so that the
    length in tokens stays. New names are drawn without doubles.
    """

    def __init__(self, tokenizer: Tokenizer, stories: Stories) -> None:
        self.vocab_size = tokenizer.get_vocab_size()
        vocab = tokenizer.get_vocab()
        self.groups: list[Group] = []
        # For each token: whether it is a name, and the token of the same name with its space.
        self.is_name = torch.zeros(self.vocab_size, dtype=torch.bool)
        self.spaced = torch.arange(self.vocab_size)
        counts = np.bincount(np.concatenate(stories.tokens), minlength=self.vocab_size)
        for names in (BOYS, GIRLS):
            forms = [(f"Ġ{name}", name) for name in names if {f"Ġ{name}", name} <= vocab.keys()]
            if not forms:  # the text has other names
                continue
            spaced, bare = np.array([[vocab[form] for form in pair] for pair in forms]).T
            self.is_name[spaced] = self.is_name[bare] = True
            self.spaced[bare] = torch.from_numpy(spaced)
            self.groups.append((spaced, bare, counts[spaced] / counts[spaced].sum()))

    def known(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Which targets are names that the row has named before, (batch, pos) of bool."""
        rows, wanted = self.spaced[ids], self.spaced[targets.clamp(min=0)]
        before = (wanted[:, :, None] == rows[:, None, :]).tril().any(-1)
        return before & self.is_name[wanted] & (targets >= 0)

    def count(self, story: IntArray) -> int:
        """How many different names of ours a story, (n,), tells of."""
        return sum(int(_present(group, story).sum()) for group in self.groups)

    def redraw(self, story: IntArray, rng: np.random.Generator, evenly: bool = False) -> IntArray:
        """The same story, (n,) -> (n,), with its names drawn anew.

        evenly: every name is as likely; else as often as the stories have it.
        """
        new = np.arange(self.vocab_size)
        for group in self.groups:
            spaced, bare, share = group
            present = np.flatnonzero(_present(group, story))
            p = None if evenly else share
            drawn = rng.choice(len(spaced), size=len(present), replace=False, p=p)
            new[spaced[present]], new[bare[present]] = spaced[drawn], bare[drawn]
        return new[story]


def _present(group: Group, story: IntArray) -> NDArray[np.bool_]:
    """Which names of a group a story has."""
    spaced, bare, _ = group
    return np.isin(spaced, story) | np.isin(bare, story)
