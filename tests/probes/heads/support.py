"""What the tests of heads share."""

import numpy as np
from rich.console import Console

from gpt2kit import Edit
from tests import by_hand
from tests.conftest import CONFIG

PROMPT = "the cat, the hat, the"


def patterns_by_hand(torch_runner, ids) -> np.ndarray:
    """(layer, batch, head, query, key) attention, by a forward pass written out."""
    values = by_hand.forward(torch_runner.model, np.atleast_2d(ids))
    return np.stack([values[f"blocks.{i}.pattern"] for i in range(CONFIG.n_layer)])


def loss(runner, ids, heads=()) -> np.ndarray:
    """(batch, pos - 1) loss in nats, with some heads set to 0."""
    edits = [Edit.zero(f"blocks.{layer}.z", head=head) for layer, head in heads]
    logits = runner.run(ids, edits=edits).logits.astype(np.float64)[:, :-1]
    shifted = logits - logits.max(-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(logprobs, np.asarray(ids)[:, 1:, None], -1)[..., 0]


def drawn(result, width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(result.render())
    return capture.get()
