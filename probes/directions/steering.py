"""Steering: generation with a direction added to the residual stream.

Turner et al. 2023, "Activation Addition", arXiv 2308.10248; Rimsky et al. 2023, "Steering Llama 2
via Contrastive Activation Addition", arXiv 2312.06681.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.defaults import Default
from gpt2kit.errors import InputError
from gpt2kit.generation import generate
from gpt2kit.printable import printable
from gpt2kit.result import ModelResult, Row, model_header
from gpt2kit.runner import Runner
from probes.directions.directions import Direction

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, eq=False)
class Steered(ModelResult):
    """The continuations of a prompt under one direction at several strengths."""

    tap: str
    prompt: str
    strengths: tuple[float, ...]  # (S,)
    texts: tuple[str, ...]  # (S,) the new text alone

    def table(self) -> list[Row]:
        """One row for each strength."""
        pairs = zip(self.strengths, self.texts, strict=True)
        return [{"strength": strength, "text": text} for strength, text in pairs]

    def render(self) -> RenderableType:
        """One line for each strength."""
        from probes.draw.titled_table import titled_table

        pairs = zip(self.strengths, self.texts, strict=True)
        rows = [(f"{strength:+g}", printable(text)) for strength, text in pairs]
        about = f"steering at {self.tap}", self.source, self.dtype
        return titled_table(about, ("strength", "continuation"), rows, numbers=["strength"])

    def __repr__(self) -> str:
        return f"Steered({self.source}, {self.tap}, {len(self.strengths)} strengths)"


def steer(
    runner: Runner,
    prompt: str,
    direction: Direction,
    strengths: float | Sequence[float],
    *,
    max_new_tokens: int = Default(30),
    greedy: bool = True,
    seed: int | None = 0,
) -> Steered:
    """Continue a prompt with the direction added at every position, once for each strength.

    strengths: one number, or several. A strength of 0 is the model's own continuation.
    greedy: by default, so that the texts differ by the steering alone; False samples with the same
            seed for each strength.
    Raises InputError for strengths that are not numbers.
    """
    if not isinstance(direction, Direction):
        raise InputError(f"direction = {direction!r} must be a Direction")
    numbers = _as_numbers(strengths)
    texts = [
        generate(
            runner,
            prompt,
            max_new_tokens=max_new_tokens,
            greedy=greedy,
            seed=seed,
            edits=[direction.edit(strength)] if strength else [],
        )
        for strength in numbers
    ]
    return Steered(direction.tap, prompt, numbers, tuple(texts), **model_header(runner))


def _as_numbers(strengths: float | Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(float(strength) for strength in np.atleast_1d(strengths))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"strengths = {strengths!r} are not numbers; give one, or a list of them"
        ) from error
