"""The JSON files beside an exported file, read as transformers reads them."""

import itertools
import json
from dataclasses import replace

import pytest

from exporters.sidecars.hugging_face import new_sidecars
from gpt2kit import Tokenizer, TorchRunner
from gpt2kit.errors import ExportError
from tests.conftest import CONFIG, byte_tokenizer, random_model
from tests.gpt2kit.test_added_tokens import ADDED, COMBINATIONS, MAPS, SETTINGS, TEXTS, write

transformers = pytest.importorskip("transformers")

GENERATION = {
    "bos_token_id": 3,
    "eos_token_id": [260, 5],
    "pad_token_id": 7,
    "do_sample": True,
    "top_k": 5000,
    "temperature": 0.7,
    "max_length": 30,
    "early_stopping": "never",
    "penalty_alpha": None,
    "transformers_version": "4.30.0",
}


def made(folder, runner, name="model.onnx", profile="portable", overwrite=False) -> dict:
    """Write the sidecars of an export; the content of all JSON files that the folder then has."""
    for file, text in new_sidecars(runner, folder / name, profile, overwrite).items():
        (folder / file).write_text(text, encoding="utf-8")
    return {file.name: strict(file) for file in folder.glob("*.json")}


def strict(file):
    """Read JSON as JavaScript does."""
    return json.loads(file.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def runner_of(tokenizer=None, generation=None, **ids) -> TorchRunner:
    config = replace(CONFIG, **ids)
    return TorchRunner(random_model(config), tokenizer, generation=generation)


@pytest.mark.parametrize(("kind", "settings", "older"), sorted({c[:3] for c in COMBINATIONS}))
def test_transformers_reads_the_tokenizer_of_the_source(tmp_path, kind, settings, older):
    """Whatever files the source has, the export has its ids, its class and its special tokens."""
    source, export = tmp_path / "source", tmp_path / "export"
    source.mkdir()
    export.mkdir()
    files = {"tokenizer_config": SETTINGS[settings], "special_tokens_map": MAPS[older]}
    write(source, kind, **files, added_tokens=ADDED["one"])
    made(export, runner_of(Tokenizer.from_folder(source)))
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    ours = transformers.AutoTokenizer.from_pretrained(export)
    assert type(ours) is type(theirs)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
    named = {k: v for k, v in theirs.special_tokens_map.items() if v is not None}
    assert named.items() <= ours.special_tokens_map.items()
    assert ours.model_max_length == CONFIG.n_positions


@pytest.mark.parametrize(
    ("given", "length"),
    [({}, 40), ({"model_max_length": 20}, 20), ({"model_max_length": 10**30}, 40)],
)
def test_texts_are_no_longer_than_the_context(tmp_path, given, length):
    tokenizer = Tokenizer(byte_tokenizer()._inner, given)
    assert (
        made(tmp_path, runner_of(tokenizer))["tokenizer_config.json"]["model_max_length"] == length
    )


def test_the_names_of_special_tokens_come_from_their_ids(tmp_path):
    files = made(tmp_path, runner_of(byte_tokenizer(), pad_token_id=CONFIG.eos_token_id))
    end = "<|endoftext|>"
    assert files["tokenizer_config.json"] == {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "unk_token": end,
        "model_max_length": CONFIG.n_positions,
    }


def test_an_end_token_that_is_an_ordinary_token_stays_one(tmp_path):
    """A library that read it as a special token would split texts at it."""
    runner = runner_of(byte_tokenizer(), bos_token_id=3, eos_token_id=(5, CONFIG.eos_token_id))
    files = made(tmp_path, runner)
    assert "bos_token" not in files["tokenizer_config.json"]
    assert files["tokenizer_config.json"]["eos_token"] == "<|endoftext|>"
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert theirs.encode(text) == runner.tokenizer.encode(text)


@pytest.mark.parametrize("sequence", [False, True])
def test_a_tokenizer_of_another_kind_has_a_class_that_reads_it(tmp_path, sequence):
    from tokenizers import Tokenizer as Inner
    from tokenizers import models, pre_tokenizers

    inner = Inner(models.WordLevel({"the": 0, "cat": 1, "?": 2}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if sequence:
        inner.pre_tokenizer = pre_tokenizers.Sequence([inner.pre_tokenizer])
    made(tmp_path, runner_of(Tokenizer(inner)))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("the cat sat") == [0, 1, 2]


def test_the_generation_config_has_everything_that_the_source_had(tmp_path):
    runner = runner_of(generation=GENERATION, eos_token_id=(260, 5))
    files = made(tmp_path, runner)
    assert files["generation_config.json"] == GENERATION
    read = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (read.top_k, read.do_sample, read.pad_token_id) == (5000, True, 7)


def test_without_one_the_generation_config_has_the_ids_of_the_config(tmp_path):
    files = made(tmp_path, runner_of(eos_token_id=(260, 5)))
    assert files["generation_config.json"] == {
        "_from_model_config": True,
        "bos_token_id": CONFIG.bos_token_id,
        "eos_token_id": [260, 5],
    }


NO_IDS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


@pytest.mark.parametrize("tokenizer", [None, byte_tokenizer()])
def test_a_model_may_lack_special_tokens_and_a_tokenizer(tmp_path, tokenizer):
    files = made(tmp_path, runner_of(tokenizer, NO_IDS | {"top_p": None}, **NO_IDS))
    assert files["generation_config.json"] == {"top_p": None}
    assert not NO_IDS.keys() & files["genai_config.json"]["model"].keys()
    names = {"config.json", "generation_config.json", "genai_config.json"}
    assert files.keys() - names == (
        {"tokenizer.json", "tokenizer_config.json"} if tokenizer else set()
    )
    if tokenizer:
        assert "eos_token" not in files["tokenizer_config.json"]


@pytest.mark.parametrize("profile", ["portable", "fused"])
def test_the_genai_config_is_the_smallest_that_runs(tmp_path, profile):
    runner = runner_of(generation=GENERATION, eos_token_id=(260, 5))
    assert made(tmp_path, runner, profile=profile)["genai_config.json"] == {
        "model": {
            "type": "decoder",
            "vocab_size": CONFIG.vocab_size,
            "context_length": CONFIG.n_positions,
            "bos_token_id": 3,
            "eos_token_id": [260, 5],
            "pad_token_id": 7,
            "decoder": {"filename": "model.onnx"},
        },
        "search": {
            "max_length": CONFIG.n_positions,
            "past_present_share_buffer": profile == "fused",
            "do_sample": True,
            "temperature": 0.7,
            "top_k": CONFIG.vocab_size,
        },
    }


def test_the_genai_config_needs_an_id_for_padding(tmp_path):
    model = made(tmp_path, runner_of(eos_token_id=(260, 5)))["genai_config.json"]["model"]
    assert model["pad_token_id"] == 260


def test_the_genai_config_names_the_file_exported_last(tmp_path):
    """The other files are about the model, and stay as they are."""
    (tmp_path / "onnx").mkdir()
    runner = runner_of(byte_tokenizer())
    made(tmp_path, runner, "model.onnx")
    (tmp_path / "generation_config.json").write_text('{"top_k": 3}')
    for file, text in new_sidecars(
        runner, tmp_path / "onnx/model_fp16.onnx", "fused", False
    ).items():
        assert file == "genai_config.json"
        content = json.loads(text)
    assert content["model"]["decoder"]["filename"] == "onnx/model_fp16.onnx"
    assert content["search"]["past_present_share_buffer"]


@pytest.mark.parametrize("name", ["genai_config.json", "tokenizer_config.json"])
def test_files_of_another_model_are_kept(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ExportError, match=rf"{name} belongs to another model"):
        made(tmp_path, runner_of(byte_tokenizer()))
    assert made(tmp_path, runner_of(byte_tokenizer()), overwrite=True)[name]


@pytest.mark.parametrize("settings", itertools.product(SETTINGS, ["none", "texts"]))
def test_a_second_export_finds_the_files_of_the_first(tmp_path, settings):
    source = tmp_path / "source"
    source.mkdir()
    files = {"tokenizer_config": SETTINGS[settings[0]], "special_tokens_map": MAPS[settings[1]]}
    write(source, "tokenizer.json", **files)
    runner = runner_of(Tokenizer.from_folder(source))
    made(tmp_path, runner)
    assert new_sidecars(runner, tmp_path / "other.onnx", "portable", False).keys() == {
        "genai_config.json"
    }


def test_a_number_that_json_lacks_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"^generation_config\.json: .* finite number$"):
        made(tmp_path, runner_of(generation={"temperature": float("nan")}))
