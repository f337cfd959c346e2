"""Which model it is, whatever it is called and however its weights are stored."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2kit.config import GPT2Config
from gpt2kit.runner import Runner
from probes.facts.measures import loss

_SIZES = ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size", "bos_token_id")
# Weights of 4 bits change the loss by less than this; random weights give about the logarithm of
# the vocabulary's size.
_MAX_LOSS_ERROR = 0.25


@dataclass(frozen=True)
class Identity:
    """What tells a model from others: its sizes, its vocabulary and its loss on a text.

    A quantised model, or one in half precision, has the identity of its source; a random or much
    changed model of the same sizes has not.
    """

    name: str  # as errors call it
    config: GPT2Config
    word: str  # a text of one token
    word_id: int
    text: str
    loss: float  # of `text`, in nats a token

    def difference(self, runner: Runner) -> str:
        """How a model differs from this one, or "" if it does not."""
        config, real = vars(runner.config), vars(self.config)
        for size in _SIZES:
            if config[size] != real[size]:
                return f"its {size} is {config[size]}, not {real[size]}"
        if runner.tokenizer is None or runner.tokenizer.encode(self.word) != [self.word_id]:
            return "its vocabulary is another, or missing"
        found = loss(runner, text=self.text)[0]
        if not abs(found - self.loss) < _MAX_LOSS_ERROR:
            return f"its loss on {self.text!r} is {found:.2f}, not {self.loss:.2f}"
        return ""
