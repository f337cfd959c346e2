"""GPT2Config: the numbers that define a GPT-2; reads and writes Hugging Face's config.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.checks import short
from gpt2kit.errors import CheckpointError, ConfigError
from gpt2kit.json_files import read_object

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
    attn_implementation experts_implementation keys_to_ignore_at_inference xla_device
    resid_pdrop embd_pdrop attn_pdrop dropout hidden_dropout attention_dropout classifier_dropout
    hidden_dropout_prob attention_probs_dropout_prob initializer_range gradient_checkpointing
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    summary_last_dropout n_special predict_special_tokens use_mems line_by_line
    use_cache output_hidden_states output_attentions output_past return_dict return_dict_in_generate
    id2label label2id num_labels problem_type finetuning_task task_specific_params
    tokenizer_class bos_token eos_token pad_token unk_token model_max_length
    sep_token_id unk_token_id cls_token_id mask_token_id decoder_start_token_id prefix
    max_length min_length max_new_tokens min_new_tokens max_time do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p min_p typical_p epsilon_cutoff
    eta_cutoff penalty_alpha low_memory renormalize_logits guidance_scale sequence_bias
    repetition_penalty encoder_repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids force_words_ids num_return_sequences output_scores
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
_SAME = _RENAMED | {"n_ctx": "n_positions"}  # n_ctx alone changes nothing
_SWITCHES = (
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
    "tie_word_embeddings",
)


TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_DEFAULT_END = 50256  # `<|endoftext|>` of gpt2; transformers writes it for any vocabulary


_LARGEST = 2**31 - 1  # no axis of a GPT-2 is longer, and torch computes with all these sizes


def _is_number(value: Any, kinds: tuple[type, ...], largest: float) -> bool:
    """Whether a value is of these types, above 0, and at most `largest`; NaN and True are not."""
    return type(value) in kinds and bool(0 < value <= largest)


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """The numbers and switches that define a GPT-2; field names are Hugging Face's.

    eos_token_id: the token that ends a text, or a tuple of several. 50256, which transformers
    writes for every model, counts as none where the vocabulary is too small for it.
    """

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
    bos_token_id: int | None = _DEFAULT_END
    eos_token_id: int | tuple[int, ...] | None = _DEFAULT_END
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, name)
            null = ", or null" if name == "n_inner" else ""
            if not (_is_number(value, (int,), _LARGEST) or (null and value is None)):
                raise ConfigError(
                    f"config: {name} = {short(value)}; it must be a positive integer{null}"
                    + (f", at most {_LARGEST}" if _is_number(value, (int,), math.inf) else "")
                )
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(
                    f"config: {name} = {short(getattr(self, name))}; it must be a boolean"
                )
        if not _is_number(self.layer_norm_epsilon, (int, float), _LARGEST):
            raise ConfigError(
                f"config: layer_norm_epsilon = {short(self.layer_norm_epsilon)}; it must be a "
                "number above 0, usually 1e-05"
            )
        if self.n_embd % self.n_head:
            raise ConfigError(
                f"config: n_embd = {self.n_embd} is not divisible by n_head = {self.n_head}"
            )
        if self.activation_function not in ACTIVATIONS:
            raise ConfigError(
                f"config: activation_function = {short(self.activation_function)} is not one of "
                + ", ".join(ACTIVATIONS)
            )
        self._settle_token_ids()

    def _settle_token_ids(self) -> None:
        """Check the types of the special tokens, and write those of the end in one way."""
        for name in TOKEN_IDS:
            given = getattr(self, name)
            several = name == "eos_token_id" and isinstance(given, list | tuple)
            for token in given if several else (given,):
                whole = isinstance(token, int) and not isinstance(token, bool)
                if not (whole and token >= 0) and (several or token is not None):
                    must = "token ids" if several else "a token id"
                    raise ConfigError(
                        f"config: {name} = {short(given)} must be {must}, which are integers "
                        "from 0 on, or null"
                    )
            ids = given if several else () if given is None else (given,)
            ids = dict.fromkeys(i for i in ids if i != _DEFAULT_END or i < self.vocab_size)
            settled = None if not ids else tuple(ids) if len(ids) > 1 else next(iter(ids))
            object.__setattr__(self, name, settled)

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        ends = self.eos_token_id
        return () if ends is None else ends if isinstance(ends, tuple) else (ends,)

    def check_token_ids(self, where: str | Path = "config") -> None:
        """Raise ConfigError, which names the file `where`, for a token outside the vocabulary."""
        named = [(name, getattr(self, name)) for name in ("bos_token_id", "pad_token_id")]
        for name, token in [*named, *(("eos_token_id", end) for end in self.end_tokens)]:
            if token is not None and token >= self.vocab_size:
                raise ConfigError(
                    f"{where}: {name} = {short(token)} is outside the vocabulary of "
                    f"{self.vocab_size}; correct it, or set it to null"
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
        config = cls.sizes_from_hf(raw)
        config.check_token_ids()
        return config

    @classmethod
    def sizes_from_hf(cls, raw: Mapping[str, Any]) -> GPT2Config:
        """Like `from_hf`, but special tokens may lie outside the vocabulary.

        So a wrong size can be compared with the weights first.
        """
        _check_architecture(raw)
        raw = _in_one_spelling(raw)
        fields = {field.name for field in dataclasses.fields(cls)}
        for key, value in raw.items():
            harmless = key in fields | _HARMLESS or key.startswith("_") or value is None
            if not harmless and (value or key not in _HARMLESS_WHEN_OFF):
                raise ConfigError(
                    f"config: {key} = {short(value)} is unknown to gpt2kit and may change what the "
                    "model computes; remove it from config.json if it does not"
                )
        return cls(**{key: value for key, value in raw.items() if key in fields})

    @classmethod
    def from_file(cls, path: str | Path) -> GPT2Config:
        """Read a config.json. Raises ConfigError if it is not readable JSON, or as `from_hf`."""
        config = cls.sizes_from_file(path)
        config.check_token_ids(path)
        return config

    @classmethod
    def sizes_from_file(cls, path: str | Path) -> GPT2Config:
        """Read a config.json as `sizes_from_hf` does. The errors name the file."""
        if not Path(path).is_file():
            raise ConfigError(f"{path}: no such file")
        try:
            return cls.sizes_from_hf(read_object(Path(path)))
        except CheckpointError as error:
            raise ConfigError(str(error)) from error
        except ConfigError as error:
            raise ConfigError(f"{path}: {str(error).removeprefix('config: ')}") from error

    def to_hf(self) -> dict[str, Any]:
        """The content of a config.json, as Hugging Face's tools read it."""
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            **dataclasses.asdict(self),
            "n_ctx": self.n_positions,
        }


def _check_architecture(raw: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the config says that it is a GPT-2."""
    kind, classes = raw.get("model_type"), raw.get("architectures") or []
    if (kind or "gpt2") != "gpt2":
        raise ConfigError(f"config: model_type is {short(kind)}, gpt2kit reads only 'gpt2'")
    if not isinstance(classes, list) or not all(str(name).startswith("GPT2") for name in classes):
        raise ConfigError(
            f"config: architectures is {short(classes)}, gpt2kit reads only GPT2 models"
        )
    if not kind and not classes:
        raise ConfigError(
            "config: neither model_type nor architectures says that this is a GPT-2; if it is one, "
            'add "model_type": "gpt2"'
        )


def _in_one_spelling(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under GPT-2's own names.

    Raises ConfigError if two names of one setting disagree. null is no value for another name.
    """
    found: dict[str, tuple[str, Any]] = {}
    for key, value in raw.items():
        own = _SAME.get(key, key)
        if value is None and (own != key or own in found):
            continue
        first, before = found.get(own, (key, value))
        if own in found and before is not None and before != value:
            raise ConfigError(
                f"config: {key} = {short(value)} differs from {first} = {short(before)}, which is "
                "the same setting; keep the right one"
            )
        if own not in found or before is None or first == "n_ctx":
            found[own] = key, value
    return {own: value for own, (key, value) in found.items() if key != "n_ctx"}


PRESETS: dict[str, GPT2Config] = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    "distilgpt2": GPT2Config(n_layer=6),
}
