"""Probes that need torch say so in one line, whichever engine they are given."""

import re

import pytest

from gpt2kit import TorchRunner
from gpt2kit.errors import InputError
from gpt2kit.torch_engine.require import require_torch
from probes import (
    attribution_patching,
    edge_attribution_patching,
    input_attribution,
    processed,
    train_tuned_lens,
)

PROMPTS = {"clean": [1, 2], "corrupt": [1, 3], "metric": lambda logits: logits[:, 0]}
CALLS = {
    "attribution patching": lambda r: attribution_patching(r, **PROMPTS),
    "edge attribution patching": lambda r: edge_attribution_patching(r, **PROMPTS),
    "input attribution": lambda r: input_attribution(r, [1, 2], target="a"),
    "rewriting weights": processed,
    "training a tuned lens": lambda r: train_tuned_lens(r, "some text"),
}


@pytest.mark.parametrize("what", CALLS)
def test_another_engine_is_refused_in_one_line(onnx_runner, what):
    words = re.escape(f"{what} needs the torch engine, not OnnxRunner(")
    with pytest.raises(InputError, match=f"^{words}.*; use gpt2kit.load$") as caught:
        CALLS[what](onnx_runner)
    assert "\n" not in str(caught.value)


def test_a_subclass_of_the_torch_engine_is_accepted(torch_runner):
    class Mine(TorchRunner):
        pass

    mine = Mine(torch_runner.model)
    assert require_torch(mine, "this") is mine
