"""Prompts in pairs: one with a known answer, and a corrupted twin without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.prompts import counted
from gpt2kit.readout import Ints
from gpt2kit.result import Result, Row
from gpt2kit.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, eq=False)
class Pairs(Result):
    """Prompts with one right and one wrong next token each, and their corrupted twins."""

    task: str
    prompts: tuple[str, ...]  # (n,)
    corrupt: tuple[str, ...]  # (n,) each of as many tokens as its prompt
    kinds: tuple[str, ...]  # (n,) prompts of one kind have the same number of tokens
    target: tuple[str, ...]  # (n,) the right next token of the prompt, leading space included
    foil: tuple[str, ...]  # (n,) the tempting wrong one
    target_ids: Ints  # (n,)
    foil_ids: Ints  # (n,)

    def __repr__(self) -> str:
        prompts = counted(len(self.prompts), "prompt")
        return f"Pairs({self.task}, {prompts}, {counted(len(set(self.kinds)), 'kind')})"

    def table(self) -> list[Row]:
        """One row for each prompt."""
        columns = ("prompt", "corrupt", "kind", "target", "foil")
        rows = zip(self.prompts, self.corrupt, self.kinds, self.target, self.foil, strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def render(self) -> RenderableType:
        """The first few prompts."""
        from probes.draw.task_table import task_table
        from probes.draw.words import visible

        answers = [
            f"{visible(right)} / {visible(wrong)}"
            for right, wrong in zip(self.target, self.foil, strict=True)
        ]
        return task_table(self.task, self.prompts, self.corrupt, "right / wrong", answers)


def make_pairs(
    tokenizer: Tokenizer,
    task: str,
    prompts: list[str],
    corrupt: list[str],
    kinds: list[str],
    answers: list[tuple[str, str]],
) -> Pairs:
    """The result, with the ids of the answers (right, wrong) looked up."""
    right, wrong = zip(*answers, strict=True)
    right_ids, wrong_ids = (
        np.array([tokenizer.single(text) for text in texts]) for texts in (right, wrong)
    )
    return Pairs(
        task, tuple(prompts), tuple(corrupt), tuple(kinds), right, wrong, right_ids, wrong_ids
    )
