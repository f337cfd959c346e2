"""The dtypes that a model can be loaded in, and conversion of a model from one to another."""

from __future__ import annotations

import torch

from gpt2kit.model import GPT2
from gpt2kit.torch_engine.runner import TorchRunner

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def on_cpu(model: GPT2, dtype: torch.dtype) -> GPT2:
    """A copy of the model on the CPU in `dtype`; tensors that need no change are shared."""
    weights = {name: x.to("cpu", dtype) for name, x in model.state_dict().items()}
    return GPT2.from_weights(model.config, weights)


def rounded(runner: TorchRunner, dtype: torch.dtype) -> TorchRunner:
    """A float32 runner on the CPU whose weights were rounded to `dtype` first.

    It is the reference for a file exported in `dtype`: same weights, exact arithmetic.
    """
    model = on_cpu(on_cpu(runner.model, dtype), torch.float32)
    return TorchRunner(model, runner.tokenizer, runner.source, runner.generation)
