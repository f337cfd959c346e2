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


@pytest.mark.parametrize(
    ("given", "ends", "kept"),
    [
        ([5, 6], (5, 6), (5, 6)),
        ([6, 5, 6], (6, 5), (6, 5)),
        ([5], (5,), 5),
        (5, (5,), 5),
        (0, (0,), 0),
        ([], (), None),
        (None, (), None),
    ],
)
def test_any_of_several_end_tokens_ends_a_text(given, ends, kept):
    config = GPT2Config.from_hf({"model_type": "gpt2", "eos_token_id": given})
    assert (config.end_tokens, config.eos_token_id) == (ends, kept)
    assert GPT2Config.from_hf(json.loads(json.dumps(config.to_hf()))) == config


BAD_IDS = ["50256", -1, 99999, True, 1.0, {}, [[50256]], [50256, "7"], [50256, -1], [1, None]]


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("given", [*BAD_IDS, [50256, 99999]], ids=str)
def test_a_token_id_that_is_none_is_one_line_that_names_the_file(tmp_path, name, given):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", name: given}))
    with pytest.raises(ConfigError, match=rf"config.json: {name} = .*null") as caught:
        GPT2Config.from_file(tmp_path / "config.json")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match=f"config: {name} = "):
        GPT2Config.from_hf({"model_type": "gpt2", name: given})


def test_the_end_token_that_transformers_writes_for_any_vocabulary_fits_itself():
    written = transformers.GPT2Config(vocab_size=10).to_dict()
    assert (written["eos_token_id"], written["bos_token_id"]) == (50256, 50256)
    config = GPT2Config.from_hf(written)
    assert (config.eos_token_id, config.bos_token_id) == (None, None)
    assert GPT2Config(vocab_size=10).end_tokens == ()


SAME = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
}


@pytest.mark.parametrize(
    ("one", "other"),
    [*SAME.items(), ("n_positions", "n_ctx"), ("max_position_embeddings", "n_ctx")],
)
@pytest.mark.parametrize("turned", [False, True])
def test_two_names_of_one_setting_must_agree(one, other, turned):
    pair = {one: 24, other: 12}
    if turned:
        pair = dict(reversed(pair.items()))
    first, second = pair
    with pytest.raises(ConfigError, match=f"{second} = .* differs from {first} = "):
        GPT2Config.from_hf({"model_type": "gpt2"} | pair)
    own = {value: key for key, value in SAME.items()}.get(one, one)
    for equal in ({one: 24, other: 24}, {one: 24, other: None}, {other: 24, one: 24}):
        assert getattr(GPT2Config.from_hf({"model_type": "gpt2"} | equal), own) == 24


def test_one_key_twice_must_agree(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_head": 4, "n_head": 6}')
    with pytest.raises(ConfigError, match="'n_head' stands there twice, with different values"):
        GPT2Config.from_file(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_head": 4, "n_head": 4}')
    assert GPT2Config.from_file(tmp_path / "config.json").n_head == 4


HARMLESS = """
    n_special predict_special_tokens attn_implementation _attn_implementation use_mems line_by_line
    finetuning_task num_labels id2label torchscript xla_device tokenizer_class summary_last_dropout
    classifier_dropout max_new_tokens gradient_checkpointing dtype
"""


@pytest.mark.parametrize("key", HARMLESS.split())
def test_keys_of_published_configs_that_change_nothing_are_read(key):
    assert GPT2Config.from_hf({"model_type": "gpt2", key: "something"}) == GPT2Config()


def test_a_config_without_model_type_says_what_to_add(tmp_path):
    with pytest.raises(ConfigError, match='if it is one, add "model_type": "gpt2"'):
        GPT2Config.from_hf({"n_layer": 2})
    assert GPT2Config.from_hf({"architectures": ["GPT2LMHeadModel"]}) == GPT2Config()


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


@pytest.mark.parametrize("key", ["initializer_range", "resid_pdrop", "_comment"])
def test_a_setting_that_changes_nothing_may_be_nan(tmp_path, key):
    """Python's json writes NaN, and reads it."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(GPT2Config().to_hf() | {key: float("nan")}))
    assert GPT2Config.from_file(file) == GPT2Config()
