"""Whether a model is the real gpt2 (124M), which the published facts are about."""

from __future__ import annotations

from gpt2kit.config import GPT2Config
from gpt2kit.errors import GPT2KitError
from gpt2kit.runner import Runner
from probes.facts.identity import Identity

MARY = 5335  # the id of " Mary"
HELLO, LOSS = "Hello world!", 5.3318558  # a text, and gpt2's loss on it in nats
GPT2 = Identity("gpt2 (124M)", GPT2Config(), " Mary", MARY, HELLO, LOSS)


class NotTheRealModel(GPT2KitError):
    """Facts were to be checked on a model that they are not about."""

    exit_code = 3


def require_gpt2(runner: Runner) -> None:
    """Raise NotTheRealModel, which says why, unless the model is gpt2 (124M)."""
    if difference := GPT2.difference(runner):
        raise NotTheRealModel(
            f"{runner.source} is not {GPT2.name}: {difference}; the published facts are about that "
            "one, so name gpt2 or a folder with its weights"
        )
