"""The engines that the tests of patching and ablation run on."""

import pytest

from tests.probes.causal.support import Whole


@pytest.fixture(params=["torch", "whole", "onnx"])
def engine(request, torch_runner):
    if request.param == "onnx":
        return request.getfixturevalue("onnx_runner")
    return torch_runner if request.param == "torch" else Whole(torch_runner)
