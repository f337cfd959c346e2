"""The model of all measurements: gpt2's shape (124M) with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from gpt2kit.config import PRESETS
from gpt2kit.model import GPT2
from gpt2kit.shipped import BUNDLED

WEIGHTS = 497_759_232  # bytes of gpt2's 124,439,808 float32 weights


def make_checkpoint(folder: Path) -> None:
    """Write the model in Hugging Face layout, with the bundled tokenizer, whose ids fit."""
    torch.manual_seed(0)
    config = PRESETS["gpt2"]
    weights = {f"transformer.{k}": v for k, v in GPT2(config).state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    shutil.copy(BUNDLED / "tokenizer.json", folder)
