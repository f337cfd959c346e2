"""Whether a model is the real gpt2 (124M), which the published facts are about."""

from __future__ import annotations

from gpt2kit.config import GPT2Config
from gpt2kit.errors import GPT2KitError
from gpt2kit.runner import Runner
from probes.facts.measures import loss

MARY = 5335  # the id of " Mary"
HELLO, LOSS = "Hello world!", 5.3318558  # a text, and gpt2's loss on it in nats
# Weights of 4 bits change the loss by less than this; random weights give about ln(50257) = 10.8.
_MAX_LOSS_ERROR = 0.25


class NotTheRealModel(GPT2KitError):
    """The published facts were to be checked on a model that is not gpt2."""

    exit_code = 3


def require_gpt2(runner: Runner) -> None:
    """Raise NotTheRealModel, which says why, unless the model is gpt2 (124M).

    Its sizes, its vocabulary and its loss on a text decide. A quantised gpt2 passes; a random or
    much changed model of the same sizes does not.
    """
    if difference := _difference(runner):
        raise NotTheRealModel(
            f"{runner.source} is not gpt2 (124M): {difference}; the published facts are about that "
            "one, so name gpt2 or a folder with its weights"
        )


def _difference(runner: Runner) -> str:
    """How the model differs from gpt2, or "" if it does not."""
    config, real = vars(runner.config), vars(GPT2Config())
    for name in ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size", "bos_token_id"):
        if config[name] != real[name]:
            return f"its {name} is {config[name]}, not {real[name]}"
    if runner.tokenizer is None or runner.tokenizer.encode(" Mary") != [MARY]:
        return "its vocabulary is another, or missing"
    found = loss(runner, text=HELLO)[0]
    if not abs(found - LOSS) < _MAX_LOSS_ERROR:
        return f"its loss on {HELLO!r} is {found:.2f}, not {LOSS:.2f}"
    return ""
