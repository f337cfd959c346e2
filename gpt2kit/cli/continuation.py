"""Generated text as a result, for `generate --json` and `--csv`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2kit.generation import generate
from gpt2kit.prompts import encode, token_texts
from gpt2kit.readout import Ints
from gpt2kit.result import PromptResult, Row, prompt_header
from gpt2kit.runner import Runner


@dataclass(frozen=True, eq=False)
class Continuation(PromptResult):
    """A prompt and the T tokens that continue it."""

    prompt: str
    text: str  # what was generated, without the prompt
    ids: Ints  # (T,) the tokens of `text`; the last may go on past a stop string
    tokens: tuple[str, ...]  # (T,) the same as text
    options: dict[str, Any]  # keyword arguments of `gpt2kit.generate`

    def table(self) -> list[Row]:
        """One row."""
        names = ("source", "dtype", "prompt", "text")
        return [{name: getattr(self, name) for name in names}]

    def __repr__(self) -> str:
        return f"Continuation({self.source}, {self.prompt!r}, {len(self.ids)} tokens)"


def continue_prompts(
    runner: Runner, prompts: Sequence[str], options: dict[str, Any]
) -> list[Continuation]:
    """Generate from every prompt, as one batch."""
    steps: list[Ints] = []
    texts = generate(
        runner, list(prompts), watch=lambda _, chosen: steps.append(chosen.copy()), **options
    )
    return [
        _continuation(runner, prompt, text, [int(step[row]) for step in steps], options)
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]


def _continuation(
    runner: Runner, prompt: str, text: str, chosen: list[int], options: dict[str, Any]
) -> Continuation:
    """One row of the batch. chosen: every token of the row; those after its end are left out."""
    assert runner.tokenizer is not None  # `generate` has raised otherwise
    decode = runner.tokenizer.decode
    count = 0
    while count < len(chosen) and not decode(chosen[:count]).startswith(text):
        count += 1
    ids = np.array(chosen[:count], np.int64)
    return Continuation(
        prompt=prompt,
        text=text,
        ids=ids,
        tokens=token_texts(runner, ids),
        options=options,
        **prompt_header(runner, np.asarray(encode(runner, prompt, window=options.get("window")))),
    )
