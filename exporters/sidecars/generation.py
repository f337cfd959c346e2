"""generation_config.json: how transformers, optimum and transformers.js generate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpt2kit.config import TOKEN_IDS, GPT2Config
from gpt2kit.torch_engine.runner import TorchRunner


def special_ids(runner: TorchRunner) -> dict[str, int | list[int]]:
    """The ids of bos, eos and pad, by their keys; those that the model lacks are left out.

    Beginning and padding are the source's generation_config.json's, where that names them.
    """
    config, given = runner.config, runner.generation
    named = {name: given.get(name) for name in ("bos_token_id", "pad_token_id")}
    config = replace(config, **{name: value for name, value in named.items() if value is not None})
    return _present(config)


def _present(config: GPT2Config) -> dict[str, int | list[int]]:
    values = ((name, getattr(config, name)) for name in TOKEN_IDS)
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values
        if value is not None
    }


def generation_config(runner: TorchRunner) -> dict[str, Any]:
    """Everything that the source's generation_config.json has, with the ids that are in force."""
    source = runner.generation or {"_from_model_config": True}
    others = {name: value for name, value in source.items() if name not in TOKEN_IDS}
    return others | special_ids(runner)
