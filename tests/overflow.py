"""Models that overflow in layer 1, on both engines, for tests of what is not finite."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from gpt2kit import GPT2, TorchRunner
from gpt2kit.runner import Source
from tests.conftest import byte_tokenizer, random_model

FIRST = r"first seen in blocks\.1\.mlp_out \(layer 1, position 0"  # where they overflow


def half_model(dtype=torch.float16) -> GPT2:
    """A model that overflows in float16 and is finite in float32; all its weights fit float16."""
    model = random_model()
    model.h[1].mlp.c_proj.weight.data *= 3e4
    assert model.h[1].mlp.c_proj.weight.abs().max() < 65504
    return model.to(dtype)


def half_runner() -> TorchRunner:
    return TorchRunner(half_model(), byte_tokenizer(), Source("big"))


def altered_file(file: Path, folder: Path) -> Path:
    """A copy of an exported file, and of its tokenizer, whose layer 1 writes infinity."""
    model, name = onnx.load(file), "h.1.mlp.c_proj.bias"
    (weight,) = (w for w in model.graph.initializer if w.name == name)
    bias = numpy_helper.to_array(weight).copy()
    bias[3] = np.inf
    weight.CopyFrom(numpy_helper.from_array(bias, name))
    path = folder / "altered.onnx"
    path.write_bytes(model.SerializeToString())
    shutil.copy(file.parent / "tokenizer.json", folder)
    return path
