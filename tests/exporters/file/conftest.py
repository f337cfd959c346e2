"""Two small exports with external data, whose models differ in one number."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exporters import export_onnx
from gpt2kit import TorchRunner
from gpt2kit.runner import Source
from tests.conftest import CONFIG, byte_tokenizer, random_model

SMALL = replace(CONFIG, n_layer=1, n_positions=20)


def small_runner(bias: float = 0.0) -> TorchRunner:
    """A model of one layer. bias: added to one number of its weights."""
    model = random_model(SMALL)
    with torch.no_grad():
        model.wpe.weight[0, 0] += bias
    return TorchRunner(model, byte_tokenizer(), Source("small"))


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """Two folders with `m.onnx` and its data. No test changes them."""
    folders = tuple(tmp_path_factory.mktemp("pair") for _ in range(2))
    for folder, bias in zip(folders, (0.0, 1.0), strict=True):
        export_onnx(small_runner(bias), folder / "m.onnx", external_data=True)
    return folders
