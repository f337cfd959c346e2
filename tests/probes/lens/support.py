"""What the tests of lenses share."""

import numpy as np
import torch

from gpt2kit import TorchRunner
from probes import TunedLens
from tests.conftest import CONFIG


def read_by_hand(runner: TorchRunner, x: torch.Tensor) -> torch.Tensor:
    """Streams (…, d_model) in float64 -> log-probabilities."""
    w = {name: value.double() for name, value in runner.model.state_dict().items()}
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.pow(2).mean(-1, keepdim=True) + runner.config.layer_norm_epsilon).sqrt()
    return ((centred / scale * w["ln_f.weight"] + w["ln_f.bias"]) @ w["wte.weight"].T).log_softmax(
        -1
    )


def random_translators(runner: TorchRunner) -> TunedLens:
    """A lens of the runner's weights with random translators."""
    rng = np.random.default_rng(0)
    shape = CONFIG.n_layer, CONFIG.n_embd, CONFIG.n_embd
    weight = rng.normal(size=shape).astype(np.float32) * 0.2
    bias = rng.normal(size=shape[:2]).astype(np.float32)
    return TunedLens("random", (runner.weights_sha256,), weight, bias)
