"""GPT2Config: the numbers that define a GPT-2; reads and writes Hugging Face's config.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.errors import ConfigError

ACTIVATIONS = (
    "gelu_new",
    "gelu",
    "gelu_fast",
    "gelu_pytorch_tanh",
    "quick_gelu",
    "relu",
    "silu",
    "swish",
    "tanh",
)

# Keys of config.json that do not change what a forward pass computes.
_HARMLESS = frozenset(
    """
    model_type architectures torch_dtype dtype transformers_version name_or_path auto_map n_ctx
    resid_pdrop embd_pdrop attn_pdrop initializer_range gradient_checkpointing
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    use_cache output_hidden_states output_attentions output_past return_dict return_dict_in_generate
    id2label label2id num_labels problem_type finetuning_task task_specific_params tokenizer_class
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id prefix
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    forced_bos_token_id forced_eos_token_id remove_invalid_values suppress_tokens
    begin_suppress_tokens exponential_decay_length_penalty is_decoder
    chunk_size_feed_forward tf_legacy_loss use_bfloat16 torchscript
    """.split()  # noqa: SIM905
)
# Keys that change nothing if they are false, 0 or empty.
_HARMLESS_WHEN_OFF = frozenset(
    (
        "add_cross_attention",
        "cross_attention_hidden_size",
        "is_encoder_decoder",
        "pruned_heads",
        "quantization_config",
        "tie_encoder_decoder",
    )
)
_RENAMED = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
_SWITCHES = (
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
    "tie_word_embeddings",
)


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """The numbers and switches that define a GPT-2; field names are Hugging Face's."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | None = 50256

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            value = getattr(self, name)
            if not _is_positive_integer(value):
                raise ConfigError(f"config: {name} = {value!r}; it must be a positive integer")
        if self.n_inner is not None and not _is_positive_integer(self.n_inner):
            raise ConfigError(
                f"config: n_inner = {self.n_inner!r}; it must be a positive integer, or null"
            )
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"config: {name} = {getattr(self, name)!r}; it must be a boolean")
        epsilon = self.layer_norm_epsilon
        if not isinstance(epsilon, int | float) or not epsilon > 0:
            raise ConfigError(
                f"config: layer_norm_epsilon = {epsilon!r}; it must be a number above 0"
            )
        if self.n_embd % self.n_head:
            raise ConfigError(
                f"config: n_embd = {self.n_embd} is not divisible by n_head = {self.n_head}"
            )
        if self.activation_function not in ACTIVATIONS:
            raise ConfigError(
                f"config: activation_function = {self.activation_function!r} is not one of "
                + ", ".join(ACTIVATIONS)
            )

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def d_mlp(self) -> int:
        """Width of the hidden layer of each MLP."""
        return self.n_inner or 4 * self.n_embd

    def attn_scale(self, layer: int) -> float:
        """The factor that multiplies q·k in `layer` (0-based)."""
        scale = self.d_head**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> GPT2Config:
        """Read the content of a config.json.

        Raises ConfigError for another architecture, and for any key that gpt2kit does not know and
        that may change what the model computes.
        """
        kind, classes = raw.get("model_type"), raw.get("architectures") or []
        if (kind or "gpt2") != "gpt2":
            raise ConfigError(f"config: model_type is {kind!r}, gpt2kit reads only 'gpt2'")
        if not all(str(name).startswith("GPT2") for name in classes):
            raise ConfigError(f"config: architectures is {classes}, gpt2kit reads only GPT2 models")
        if not kind and not classes:
            raise ConfigError(
                "config: neither model_type nor architectures says that this is a GPT-2"
            )
        raw = {_RENAMED.get(key, key): value for key, value in raw.items()}
        if "n_ctx" in raw and raw["n_ctx"] != raw.get("n_positions", raw["n_ctx"]):
            raise ConfigError(
                f"config: n_ctx = {raw['n_ctx']} differs from n_positions = {raw['n_positions']}"
            )
        fields = {field.name for field in dataclasses.fields(cls)}
        for key, value in raw.items():
            harmless = key in fields | _HARMLESS or key.startswith("_") or value is None
            if not harmless and (value or key not in _HARMLESS_WHEN_OFF):
                raise ConfigError(
                    f"config: {key} = {value!r} is unknown to gpt2kit and may change what the "
                    "model computes; remove it from config.json if it does not"
                )
        known = {key: value for key, value in raw.items() if key in fields}
        if isinstance(known.get("eos_token_id"), list):
            known["eos_token_id"] = next(iter(known["eos_token_id"]), None)
        return cls(**known)

    @classmethod
    def from_file(cls, path: str | Path) -> GPT2Config:
        """Read a config.json. Raises ConfigError if it is not readable JSON, or as `from_hf`."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: not a readable config.json ({error})") from error
        if not isinstance(raw, dict):
            raise ConfigError(f"{path}: holds {type(raw).__name__}, not a JSON object")
        return cls.from_hf(raw)

    def to_hf(self) -> dict[str, Any]:
        """The content of a config.json, as Hugging Face's tools read it."""
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            **dataclasses.asdict(self),
            "n_ctx": self.n_positions,
        }


PRESETS: dict[str, GPT2Config] = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    "distilgpt2": GPT2Config(n_layer=6),
}
