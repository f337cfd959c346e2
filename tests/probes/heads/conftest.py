"""A model with planted heads, and the engines that give attention patterns."""

import pytest

from gpt2kit import TorchRunner
from tests.planted import planted_runner


@pytest.fixture(scope="module")
def known() -> TorchRunner:
    return planted_runner()


@pytest.fixture(params=["torch", "onnx"])
def engine(request):
    return request.getfixturevalue(f"{request.param}_runner")
