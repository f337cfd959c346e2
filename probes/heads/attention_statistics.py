"""How widely and how far back each head attends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.errors import InputError
from gpt2kit.prompts import Prompt, counted, prompt_ids
from gpt2kit.readout import Floats
from gpt2kit.result import PromptResult, Row, array_rows, prompt_header
from gpt2kit.runner import Runner
from probes.heads.leading import leading
from probes.heads.patterns import patterns_by_layer

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class AttentionStatistics(PromptResult):
    """Each head's entropy and distance of attention, averaged over the positions of a prompt."""

    entropy: Floats  # (layer, head) nats; 0 for one key, log(keys) for equal attention to all
    distance: Floats  # (layer, head) tokens between query and key, weighted by attention

    @property
    def tokens(self) -> tuple[str, ...]:
        """(N,) the prompt's tokens."""
        return self.prompt_tokens

    def table(self) -> list[Row]:
        """One row for each head."""
        return array_rows({"entropy": self.entropy, "distance": self.distance}, ("layer", "head"))

    def render(self) -> RenderableType:
        """The heads at either end."""
        from probes.draw.leading_heads import leading_heads
        from probes.draw.words import title

        columns = {
            "least entropy": leading(self.entropy, largest=False),
            "most entropy": leading(self.entropy),
            "nearest": leading(self.distance, largest=False),
            "farthest": leading(self.distance),
        }
        read = counted(len(self.tokens), "token")
        first = title("attention statistics", self.source, self.dtype, read)
        return leading_heads(
            first, "layer.head, and entropy in nats or distance in tokens", columns
        )

    def __repr__(self) -> str:
        layers, heads = self.entropy.shape
        return f"AttentionStatistics({self.source}, {layers} layers x {heads} heads)"


def attention_statistics(runner: Runner, prompt: Prompt) -> AttentionStatistics:
    """Entropy and mean distance of each head's attention, averaged over the positions of a prompt.

    The first position is left out: it can only attend to itself. Raises InputError for a bad
    prompt, and for one of a single token.
    """
    ids = prompt_ids(runner, prompt)
    if len(ids) == 1:
        raise InputError("the prompt is one token, which can only look at itself; give more")
    distances = np.subtract.outer(np.arange(len(ids)), np.arange(len(ids)))  # (query, key)
    entropy, distance = [], []
    for _, pattern in patterns_by_layer(runner, ids[None], range(runner.config.n_layer)):
        p = pattern[0, :, 1:].astype(np.float64)  # (head, query, key)
        entropy.append(-(p * np.log(np.where(p > 0, p, 1))).sum(-1).mean(-1))
        distance.append((p * distances[1:]).sum(-1).mean(-1))
    return AttentionStatistics(
        **prompt_header(runner, ids), entropy=np.stack(entropy), distance=np.stack(distance)
    )
