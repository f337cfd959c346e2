"""genai_config.json: what onnxruntime-genai needs to know of one file."""

from __future__ import annotations

from typing import Any

from exporters.sidecars.generation import special_ids
from gpt2kit.torch_engine.runner import TorchRunner

# Settings of generation_config.json that onnxruntime-genai has under the same names.
_SWITCHES = ("do_sample",)
_NUMBERS = ("temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size")


def genai_config(runner: TorchRunner, file: str, profile: str) -> dict[str, Any]:
    """The smallest configuration that runs, and the source's settings of the search.

    file: the ONNX file, relative to the folder of genai_config.json. The library wants an id for
    padding, and no nulls. Only the fused graph may have past and present in one buffer.
    """
    config, ids = runner.config, special_ids(runner)
    if "eos_token_id" in ids:
        ids.setdefault("pad_token_id", _first(ids["eos_token_id"]))
    return {
        "model": {
            "type": "decoder",
            "vocab_size": config.vocab_size,
            "context_length": config.n_positions,
            **ids,
            "decoder": {"filename": file},
        },
        "search": {
            "max_length": config.n_positions,
            "past_present_share_buffer": profile == "fused",
            **_search_settings(runner),
        },
    }


def _first(ids: int | list[int]) -> int:
    return ids if isinstance(ids, int) else ids[0]


def _search_settings(runner: TorchRunner) -> dict[str, bool | float]:
    """The library refuses a `top_k` above the vocabulary, which transformers cuts."""
    given = dict(runner.generation)
    if isinstance(given.get("top_k"), int):
        given["top_k"] = min(given["top_k"], runner.config.vocab_size)
    switches = {name: given[name] for name in _SWITCHES if isinstance(given.get(name), bool)}
    numbers = {name: given[name] for name in _NUMBERS if isinstance(given.get(name), int | float)}
    return switches | numbers
