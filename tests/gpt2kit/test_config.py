"""What config.json may say, and what is refused."""

import dataclasses
import json

import pytest

from gpt2kit import GPT2Config
from gpt2kit.config import PRESETS
from gpt2kit.errors import ConfigError

transformers = pytest.importorskip("transformers")


def test_what_is_written_reads_back():
    config = GPT2Config(n_embd=24, n_head=3, n_inner=7, tie_word_embeddings=False)
    assert GPT2Config.from_hf(config.to_hf()) == config
    assert GPT2Config.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_transformers_reads_what_we_write(tmp_path):
    config = GPT2Config(n_embd=24, n_head=3, n_inner=7, scale_attn_by_inverse_layer_idx=True)
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.GPT2Config)
    for key, value in dataclasses.asdict(config).items():
        assert getattr(theirs, key) == value


@pytest.mark.parametrize("model", [None, "GPT2Model", "GPT2LMHeadModel"])
def test_we_read_what_transformers_writes(tmp_path, model):
    theirs = transformers.GPT2Config(n_embd=24, n_head=3, n_inner=50, reorder_and_upcast_attn=True)
    theirs.architectures = [model] if model else None
    theirs.save_pretrained(tmp_path)
    ours = GPT2Config.from_file(tmp_path / "config.json")
    assert ours == GPT2Config(n_embd=24, n_head=3, n_inner=50, reorder_and_upcast_attn=True)


def test_the_published_config_of_gpt2_is_read():
    """config.json of openai-community/gpt2, word for word."""
    raw = {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    }
    assert GPT2Config.from_hf(raw) == PRESETS["gpt2"]


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("distilgpt2", 81_912_576),
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_presets_have_the_published_number_of_weights(name, weights):
    import torch

    from gpt2kit import GPT2

    with torch.device("meta"):
        assert sum(p.numel() for p in GPT2(PRESETS[name]).parameters()) == weights


def test_other_names_for_the_sizes_are_read():
    raw = {
        "model_type": "gpt2",
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
    }
    config = GPT2Config.from_hf(raw | {"max_position_embeddings": 9})
    assert (config.n_embd, config.n_head, config.n_layer, config.n_positions) == (48, 4, 2, 9)


def test_a_switch_that_is_off_is_no_change():
    off = {"model_type": "gpt2", "add_cross_attention": False, "pruned_heads": {}, "new_key": None}
    assert GPT2Config.from_hf(off) == GPT2Config()


@pytest.mark.parametrize("ids", [[5, 6], 5])
def test_the_first_of_several_end_tokens_counts(ids):
    assert GPT2Config.from_hf({"model_type": "gpt2", "eos_token_id": ids}).eos_token_id == 5


def test_scales_of_attention():
    assert GPT2Config().attn_scale(3) == 64**-0.5
    assert GPT2Config(scale_attn_weights=False).attn_scale(3) == 1
    assert GPT2Config(scale_attn_by_inverse_layer_idx=True).attn_scale(3) == 64**-0.5 / 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, "model_type is 'llama', gpt2kit reads only 'gpt2'"),
        ({"architectures": ["GPTNeoForCausalLM"]}, "gpt2kit reads only GPT2 models"),
        ({"model_type": None, "architectures": None}, "neither model_type nor architectures"),
        ({"attention_bias": False}, "attention_bias = False is unknown"),
        ({"embedding_multiplier": 0}, "embedding_multiplier = 0 is unknown"),
        ({"add_cross_attention": True}, "add_cross_attention = True is unknown"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"rope_theta": 10000.0}, "rope_theta = 10000.0 is unknown to gpt2kit and may change"),
        ({"n_ctx": 512}, "n_ctx = 512 differs from n_positions = 1024"),
        ({"activation_function": "mish"}, "activation_function = 'mish' is not one of gelu_new"),
        ({"activation_function": ["gelu"]}, "activation_function"),
        ({"n_head": 7}, "n_embd = 768 is not divisible by n_head = 7"),
        ({"n_layer": 0}, "n_layer = 0; it must be a positive integer"),
        ({"n_layer": True}, "n_layer = True; it must be"),
        ({"n_embd": 76.8}, "n_embd = 76.8; it must be"),
        ({"vocab_size": None}, "vocab_size = None; it must be"),
        ({"n_inner": "wide"}, "n_inner = 'wide'; it must be"),
        ({"n_inner": -1}, "n_inner = -1; it must be"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon = '1e-5'"),
        ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon = -1e-05"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings = 'false'; it must be a boolean"),
    ],
    ids=str,
)
def test_what_we_do_not_compute_is_refused(change, words):
    with pytest.raises(ConfigError, match=words) as caught:
        GPT2Config.from_hf(GPT2Config().to_hf() | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not a readable config.json"),
        (b"\xff\xfe", "not a readable config.json"),
        (b"[]", "holds list, not a JSON object"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, content, words):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        GPT2Config.from_file(tmp_path / "config.json")


def test_a_config_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPT2Config().n_layer = 3
