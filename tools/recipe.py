"""The recipe of the bundled model: its shape, the schedule, the batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from corpus import IGNORED, IntArray, Stories
from names import Names

from gpt2kit.config import GPT2Config


@dataclass(frozen=True)
class Recipe:
    """All choices that determine the trained weights. Lengths are in tokens.

    renamed: share of the stories whose children get other names, drawn anew in every epoch.
    children_rows: rows of stories of two children and more, from `children_step` on. Their names
        are always drawn anew, all equally likely. From then on, a name that was named before counts
        `name_weight` times as a target: which child is meant is what is to be learned.
    dropout: share of what attention and MLPs write that is dropped in training.
    """

    vocab_size: int = 4096
    n_positions: int = 256
    n_embd: int = 192
    n_layer: int = 8
    n_head: int = 6
    steps: int = 4500
    short_steps: int = 300
    batch_rows: int = 16
    repeat_rows: int = 3
    children_rows: int = 9
    children_step: int = 3200
    name_weight: float = 6.0
    renamed: float = 0.5
    dropout: float = 0.1
    learning_rate: float = 0.003
    muon_rate: float = 0.008
    weight_decay: float = 0.1
    warmup: int = 100
    seed: int = 0

    def phase(self, step: int) -> tuple[int, int]:
        """The context of one step, and how many of its rows are repeated tokens.

        Training begins with short rows, most of them repeated tokens. Among few positions, heads
        find the earlier copy within a few hundred steps; at full length from the start, no head did
        in 600 steps. The context doubles every `short_steps`.
        """
        doublings = step // self.short_steps
        context = min(32 << doublings, self.n_positions)
        repeats = (3 - doublings) * self.batch_rows // 4
        return context, max(self.repeat_rows, repeats)

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


class Rows:
    """Rows of text, each a function of the seed and its number alone.

    In every epoch, the stories come in a new order, some of them with other names.
    """

    def __init__(
        self, stories: list[IntArray], names: Names, recipe: Recipe, stage: int, evenly: bool
    ) -> None:
        self.stories, self.names, self.recipe = stories, names, recipe
        self.stage, self.evenly = stage, evenly
        length = sum(len(story) for story in stories)
        # One row fewer than fits, to leave room for the offset, which changes every epoch.
        self.per_epoch = (length - 1) // recipe.n_positions - 1
        self._epoch = -1
        self.stream = np.empty(0, dtype=np.int64)  # of the epoch of the last row

    def row(self, number: int) -> IntArray:
        """Row `number`, shape (n_positions + 1,)."""
        epoch, place = divmod(number, self.per_epoch)
        if self._epoch != epoch:
            self._epoch, self.stream = epoch, self._read(epoch)
        start = place * self.recipe.n_positions
        return self.stream[start : start + self.recipe.n_positions + 1]

    def _read(self, epoch: int) -> IntArray:
        """All stories in the order of one epoch, some of them renamed, as one stream (n,)."""
        rng = np.random.default_rng((self.recipe.seed, self.stage, epoch))
        stories = [self.stories[i] for i in rng.permutation(len(self.stories))]
        renamed = rng.random(len(stories)) < (1.0 if self.evenly else self.recipe.renamed)
        stories = [
            self.names.redraw(story, rng, self.evenly) if anew else story
            for story, anew in zip(stories, renamed, strict=True)
        ]
        return np.concatenate(stories)[rng.integers(self.recipe.n_positions) :]


class Batches:
    """The training batches, each a function of the seed and the step number alone."""

    def __init__(self, stories: Stories, names: Names, recipe: Recipe) -> None:
        self.recipe, self.names = recipe, names
        self.all = Rows(stories.tokens, names, recipe, stage=1, evenly=False)
        together = [story for story in stories.tokens if names.count(story) >= 2]
        self.children = Rows(together, names, recipe, stage=3, evenly=True)

    def epochs(self, steps: int) -> float:
        """How many times the first `steps` steps go through all stories."""
        return sum(self._text_rows(step) for step in range(steps)) / self.all.per_epoch

    def _children_rows(self, step: int) -> int:
        return self.recipe.children_rows if step >= self.recipe.children_step else 0

    def _text_rows(self, step: int) -> int:
        """Rows of all stories in one step."""
        recipe = self.recipe
        return recipe.batch_rows - recipe.phase(step)[1] - self._children_rows(step)

    def _text(self, step: int) -> list[IntArray]:
        """The rows of text of one step, each (n_positions + 1,)."""
        out = []
        for rows, count in ((self.all, self._text_rows), (self.children, self._children_rows)):
            first = sum(map(count, range(step)))
            out += [rows.row(number) for number in range(first, first + count(step))]
        return out

    def _repeated_row(self, rng: np.random.Generator, context: int) -> tuple[IntArray, IntArray]:
        """A block of random tokens repeated to fill a row, and its targets, each (context,).

        Only tokens that the earlier copy determines are targets: not the first copy, nor the token
        that starts the second copy.
        """
        # Heads learn to copy from short periods, which repeat the rule many times in one row.
        period = int(np.exp(rng.uniform(np.log(4), np.log(context // 2 + 1))))
        if rng.random() < 0.5:
            block = rng.integers(self.recipe.vocab_size - 1, size=period)
        else:  # as frequent as in the text: the embeddings of frequent tokens are learnt first
            block = rng.choice(self.all.stream, size=period)
        row = np.resize(block, context + 1)
        targets = row[1:].copy()
        targets[:period] = IGNORED
        return row[:-1], targets

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and targets of one step, both (batch, pos); text rows come first."""
        context, repeats = self.recipe.phase(step)
        parts = self.recipe.n_positions // context
        text = self._text(step)
        ids = [row[:-1].reshape(parts, context) for row in text]
        targets = [row[1:].reshape(parts, context) for row in text]
        rng = np.random.default_rng((self.recipe.seed, 2, step))
        for _ in range(repeats * parts):
            row, target = self._repeated_row(rng, context)
            ids.append(row[None])
            targets.append(target[None])
        return torch.from_numpy(np.concatenate(ids)), torch.from_numpy(np.concatenate(targets))

    def weights(self, step: int, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """How much each target counts, (batch, pos) -> the same shape."""
        weights = (targets != IGNORED).float()
        if self._children_rows(step):
            weights[self.names.known(ids, targets)] = self.recipe.name_weight
        return weights
