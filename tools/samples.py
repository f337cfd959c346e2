"""What the bundled model writes: samples, and continuations of held-out openings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rendering import plain

import gpt2kit
from gpt2kit import TorchRunner
from gpt2kit.prompts import tokenizer_of

PROMPTS = (
    "Once upon a time",
    "Tim and Lily went to the park.",
    "One day, a little dog",
    'Mom said, "We must',
)
SEEDS = (0, 1, 2)
LENGTH = 60  # tokens of a sample, or fewer where the story ends
OPENINGS = 20
WORDS = 12  # of an opening
JUDGED = 40  # tokens of a continuation in which a reader looks for a broken sentence
TEMPERATURE = 0.8  # of the sampled continuations
END = "■"  # the model ended the story


def sampling(runner: TorchRunner) -> dict[str, Any]:
    """The options of `gpt2kit.generate` that generation_config.json asks for."""
    given = runner.generation
    return {name: given[name] for name in ("temperature", "top_k", "top_p") if name in given}


def write_on(runner: TorchRunner, prompt: str, length: int, **options: Any) -> list[str]:
    """The tokens that follow the prompt, as texts; END is the last one if the story ends."""
    tokens: list[str] = []
    tokenizer, ends = tokenizer_of(runner), runner.config.end_tokens

    def watch(_: Any, chosen: Any) -> None:
        token = int(chosen[0])
        tokens.append(END if token in ends else tokenizer.tokens([token])[0])

    gpt2kit.generate(runner, prompt, max_new_tokens=length, watch=watch, **options)
    return tokens


def samples(runner: TorchRunner) -> str:
    """A Markdown list: every prompt with every seed."""
    options = sampling(runner)
    lines = []
    for prompt in PROMPTS:
        for seed in SEEDS:
            text = "".join(write_on(runner, prompt, LENGTH, seed=seed, **options))
            lines.append(f"- seed {seed}: **{plain(prompt)}**{plain(text)}")
    return "\n".join(lines)


def opening(story: str) -> str:
    """The first words of a story, without the space that follows them."""
    found = re.match(rf"\s*((?:\S+\s+){{{WORDS - 1}}}\S+)", story)
    return found[1] if found else story.strip()


def openings(stories: Iterable[str]) -> list[str]:
    """The first openings of the stories; one that comes again is left out."""
    return list(dict.fromkeys(map(opening, stories)))[:OPENINGS]


def continuations(runner: TorchRunner, prompts: Sequence[str], **options: Any) -> str:
    """A numbered Markdown list; each prompt's number is its seed.

    `‖` stands after the tokens that are judged.
    """
    lines = []
    for number, prompt in enumerate(prompts, start=1):
        tokens = write_on(runner, prompt, LENGTH, seed=number, **options)
        if len(tokens) > JUDGED:
            tokens.insert(JUDGED, " ‖")
        lines.append(f"{number}. **{plain(prompt)}**{plain(''.join(tokens))}")
    return "\n".join(lines)


def weights_digest(folder: Path) -> str:
    """The first 16 hexadecimal digits of the sha256 of the file of weights."""
    content = (folder / "model.safetensors").read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def read_by_hand(file: Path, digest: str) -> str:
    """What somebody wrote who looked at the weights with this digest, in Markdown.

    The file's first line is "weights: DIGEST". What was written of other weights says nothing about
    these, and is left out.
    """
    first, _, text = file.read_text(encoding="utf-8").partition("\n")
    if first.split() != ["weights:", digest]:
        return f"(`tools/{file.name}` has no words on the weights {digest} yet.)"
    return text.strip()
