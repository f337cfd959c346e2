"""Models in float64, whose attributions are exact."""

import pytest
import torch

from gpt2kit import TorchRunner
from tests.conftest import byte_tokenizer, random_model
from tests.probes.attribution.support import CONFIGS


@pytest.fixture(scope="module", params=CONFIGS)
def exact(request) -> TorchRunner:
    model = random_model(CONFIGS[request.param], seed=2, dtype=torch.float64)
    return TorchRunner(model, byte_tokenizer())
