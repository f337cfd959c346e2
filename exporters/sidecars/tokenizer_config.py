"""tokenizer_config.json: what stands beside tokenizer.json, as transformers writes it."""

from __future__ import annotations

import json
from typing import Any

from exporters.sidecars.generation import special_ids
from gpt2kit.added_tokens import END_OF_TEXT
from gpt2kit.tokenizer import Tokenizer
from gpt2kit.torch_engine.runner import TorchRunner


def tokenizer_config(runner: TorchRunner, tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything that the source's tokenizer_config.json has; what it lacks is filled in.

    `model_max_length` is the context, unless the source names a smaller number.
    """
    content = json.loads(tokenizer.to_json())
    length, context = tokenizer.settings.get("model_max_length"), runner.config.n_positions
    smaller = isinstance(length, int) and not isinstance(length, bool) and 0 < length < context
    return (
        _class_settings(content)
        | _special_tokens(runner, content)
        | {name: _typed(value) for name, value in tokenizer.settings.items()}
        | {"model_max_length": length if smaller else context}
    )


def _typed(value: Any) -> Any:
    """A setting; transformers wants tokens with flags marked, which its older files did not do."""
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if isinstance(value, dict) and "content" in value:
        return {"__type": "AddedToken"} | value
    return value


def _class_settings(content: dict[str, Any]) -> dict[str, Any]:
    """The class that reads this tokenizer.json, and the setting that it would else reset."""
    if not _is_gpt2(content):
        return {"tokenizer_class": "PreTrainedTokenizerFast"}
    add_prefix_space = content["pre_tokenizer"]["add_prefix_space"]
    return {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": add_prefix_space}


def _is_gpt2(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is a byte-level BPE and nothing else."""
    types = {part: (content.get(part) or {}).get("type") for part in content if part in _PARTS}
    return all(types[part] in _PARTS[part] for part in types)


_PARTS = {
    "model": ("BPE",),
    "normalizer": (None,),
    "pre_tokenizer": ("ByteLevel",),
    "post_processor": (None, "ByteLevel"),
}


def _special_tokens(runner: TorchRunner, content: dict[str, Any]) -> dict[str, str]:
    """The texts of bos, eos, pad and unk.

    Only added tokens count: a library that reads the file makes each of these tokens special, and
    would then split texts at a token that was an ordinary one.
    """
    added = {token["id"]: token["content"] for token in content["added_tokens"]}
    tokens: dict[str, str] = {}
    for name, ids in special_ids(runner).items():
        texts = [added[i] for i in (ids if isinstance(ids, list) else [ids]) if i in added]
        tokens |= {name.removesuffix("_id"): text for text in texts[:1]}
    if _is_gpt2(content) and END_OF_TEXT in added.values():
        tokens["unk_token"] = END_OF_TEXT
    return tokens
