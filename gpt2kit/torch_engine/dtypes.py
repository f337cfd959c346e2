"""The dtypes that a model can be loaded in, and conversion of a model from one to another."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2kit.checks import LARGEST
from gpt2kit.errors import CheckpointError
from gpt2kit.model import GPT2
from gpt2kit.torch_engine.runner import TorchRunner

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def converted(
    name: str, x: Tensor, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """A weight in another dtype; the tensor itself if nothing changes.

    Raises CheckpointError, which names the weight, if a value becomes infinite.
    """
    out = x.to(device=device, dtype=dtype)
    if out.dtype != x.dtype and not torch.stack(torch.aminmax(out)).isfinite().all():
        kind = str(dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{name} holds {float(x.abs().max()):.6g}, but {kind} holds numbers up to "
            f"{LARGEST[kind]:.6g}; try --dtype float32"
        )
    return out


def on_cpu(model: GPT2, dtype: torch.dtype) -> GPT2:
    """A copy of the model on the CPU in `dtype`; tensors that need no change are shared.

    Raises CheckpointError if a weight becomes infinite.
    """
    weights = {name: converted(name, x, dtype) for name, x in model.state_dict().items()}
    return GPT2.from_weights(model.config, weights)


def rounded(runner: TorchRunner, dtype: torch.dtype) -> TorchRunner:
    """A float32 runner on the CPU whose weights were rounded to `dtype` first.

    It is the reference for a file exported in `dtype`: same weights, exact arithmetic.
    """
    model = on_cpu(on_cpu(runner.model, dtype), torch.float32)
    return TorchRunner(model, runner.tokenizer, runner.source, runner.generation)
