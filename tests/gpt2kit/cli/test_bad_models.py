"""A model that cannot be loaded is one line, and nothing is written."""

import json
import os
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.gpt2kit.cli.support import OFFLINE, assert_one_line, process, run

LOADING = ["generate x", "lens x", "export --onnx out.onnx"]


BROKEN = {  # checkpoint folders that reading the weights finds wrong
    "config-only": "no weights; expected one of model.safetensors",
    "truncated": "not a whole safetensors file",
    "misshapen": r"has shape \(261, 24\), config.json asks for \(261, 48\)",
    "nan": "holds NaN or infinite values",
    "pickled": "refused, it is damaged or holds code",
}


WRONG = {  # what is found wrong before
    "bundled --revision main": "only hub ids have one",
    "./nothing": "no such folder",
    "/nothing/here": "no such folder",
    "empty": "no config.json",
    "other": "model_type is 'llama'",
    "unknown-key": "rope_theta = 3 is unknown",
    "y" * 5000: "File name too long|cannot be downloaded",
}


class Code:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.fixture
def bad_models(folder):
    """Folders that each lack something."""
    config = json.loads(Path(folder, "config.json").read_text())
    changes = {"other": {"model_type": "llama"}, "unknown-key": {"rope_theta": 3}}
    changes["misshapen"] = {"n_embd": 48}
    Path("empty").mkdir()
    for name in [*BROKEN, "other", "unknown-key"]:
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(config | changes.get(name, {})))
    weights = Path(folder, "model.safetensors").read_bytes()
    Path("misshapen", "model.safetensors").write_bytes(weights)
    Path("truncated", "model.safetensors").write_bytes(weights[:-9])
    tensors = safetensors.torch.load(weights)
    tensors["ln_f.bias"][1] = float("nan")
    safetensors.torch.save_file(tensors, "nan/model.safetensors")
    torch.save({"wte.weight": Code()}, "pickled/pytorch_model.bin")


@pytest.mark.parametrize(
    ("command", "name"),
    [(command, name) for command in LOADING for name in WRONG | BROKEN],
    ids=lambda text: text[:20],
)
def test_a_bad_model_is_one_line(bad_models, command, name):
    before = sorted(Path().rglob("*"))
    result = run(*command.split(), "--model", *name.split())
    message = (WRONG | BROKEN)[name]
    assert_one_line(result.exit_code, result.stdout, result.stderr, message)
    assert sorted(Path().rglob("*")) == before  # no file, and the pickle's code has not run


@pytest.mark.parametrize(
    "args", [["nobody/nothing"], ["gpt2", "--revision", "none"], ["not a name!"]]
)
def test_a_model_that_cannot_be_had_is_one_line(tmp_path, args):
    environment = os.environ | OFFLINE | {"HF_HOME": str(tmp_path / "hub")}
    done = process("generate", "x", "--model", *args, text=True, env=environment)
    assert_one_line(done.returncode, done.stdout, done.stderr, re.escape(args[0]))


def test_auto_falls_back_to_the_bundled_model_and_says_so(tmp_path):
    environment = os.environ | OFFLINE | {"HF_HOME": str(tmp_path / "hub")}
    done = process("lens", "One day", text=True, encoding="utf-8", env=environment)
    assert done.returncode == 0
    assert "logit lens  bundled" in done.stdout
    (warning,) = done.stderr.splitlines()
    assert "using the small bundled model" in warning
    assert "--model" in warning
