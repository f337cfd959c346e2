"""Only the real gpt2 is asked for the published facts."""

from dataclasses import replace

import numpy as np
import pytest

from gpt2kit import GPT2Config, Tokenizer, TorchRunner
from gpt2kit.errors import NonFiniteError
from gpt2kit.runner import Source
from probes.facts import real_gpt2
from probes.facts.real_gpt2 import NotTheRealModel
from tests.conftest import GPT2_TOKENIZER, random_model


class Disguised:
    """A runner with gpt2's sizes and a given loss on HELLO."""

    taps: tuple[str, ...] = ()
    dtype = "float16"

    def __init__(self, loss: float, **change) -> None:
        self.config = replace(GPT2Config(), **change)
        self.tokenizer, self.source, self.loss = self, Source("disguised"), loss

    def encode(self, text):
        return [real_gpt2.MARY] if text == " Mary" else [1, 2, 3]

    def run(self, ids, **_):
        p = np.exp(-self.loss)
        logits = np.full((1, len(ids), 5000), np.log((1 - p) / 4999))
        logits[0, [0, 1, 2], ids[1:]] = np.log(p)
        return type("Run", (), {"logits": logits, "taps": {}})


def test_only_a_model_with_gpt2s_sizes_vocabulary_and_loss_is_gpt2():
    real_gpt2.require_gpt2(Disguised(5.3318558))
    real_gpt2.require_gpt2(Disguised(5.4))
    for other in (
        Disguised(np.log(50257)),
        Disguised(5.0),
        Disguised(5.3318558, n_layer=24),
        Disguised(5.3318558, n_embd=1024, n_head=16),
    ):
        with pytest.raises(NotTheRealModel):
            real_gpt2.require_gpt2(other)
    with pytest.raises(NonFiniteError, match="try --dtype float32"):
        real_gpt2.require_gpt2(Disguised(float("nan")))
    other = Disguised(5.3318558)
    other.encode = lambda text: [1, 2, 3]
    with pytest.raises(NotTheRealModel, match="vocabulary"):
        real_gpt2.require_gpt2(other)


def test_a_random_model_of_gpt2s_sizes_is_not_gpt2(by_torch):
    if not GPT2_TOKENIZER.is_dir():
        pytest.skip("GPT-2's tokenizer is not here")
    config = GPT2Config(n_embd=24, n_layer=1, n_head=2)
    runner = TorchRunner(random_model(config), Tokenizer.from_folder(GPT2_TOKENIZER))
    runner.config = GPT2Config()  # only seemingly: the whole would be 500 MB
    with pytest.raises(NotTheRealModel, match="its loss"):
        real_gpt2.require_gpt2(runner)
    runner.tokenizer = None
    with pytest.raises(NotTheRealModel, match="vocabulary"):
        real_gpt2.require_gpt2(runner)
