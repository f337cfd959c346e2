"""generation_config.json, and what the runner keeps of the source's small files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import gpt2kit
from exporters import export_onnx, open_onnx
from gpt2kit.errors import CheckpointError, ConfigError
from gpt2kit.torch_engine.dtypes import rounded
from tests.conftest import CONFIG, byte_tokenizer, random_model, write_checkpoint

GENERATION = {"do_sample": True, "top_k": 7, "pad_token_id": 3}
SETTINGS = {"model_max_length": 40, "tokenizer_class": "GPT2Tokenizer"}


def load(folder):
    return gpt2kit.load(folder, device="cpu")


@pytest.fixture
def folder(tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").write_text(byte_tokenizer().to_json())
    return tmp_path


def test_a_runner_keeps_what_its_source_says_of_generation_and_of_the_tokenizer(folder):
    bare = load(folder)
    assert (bare.generation, bare.tokenizer.settings) == ({}, {})
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    runner = load(folder)
    assert (runner.generation, runner.tokenizer.settings) == (GENERATION, SETTINGS)
    assert rounded(runner, torch.float16).generation == GENERATION


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b"\xff", b"[" * 100_000], ids=["cut", "list", "bytes", "deep"]
)
def test_a_damaged_file_is_one_line_that_names_it(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name) as caught:
        load(folder)
    assert len(str(caught.value).splitlines()) == 1


ENDS = ["absent", None, 5, [6, 7], []]


@pytest.mark.parametrize("ours", ENDS, ids=str)
@pytest.mark.parametrize("theirs", ["no file", *ENDS], ids=str)
def test_the_end_tokens_are_those_of_transformers(folder, ours, theirs):
    transformers = pytest.importorskip("transformers")
    raw = json.loads((folder / "config.json").read_text())
    del raw["eos_token_id"]
    given = {} if ours == "absent" else {"eos_token_id": ours}
    (folder / "config.json").write_text(json.dumps(raw | given | {"vocab_size": 50257}))
    config = transformers.GPT2Config.from_pretrained(folder)
    if theirs == "no file":
        want = transformers.GenerationConfig.from_model_config(config).eos_token_id
    else:
        given = {} if theirs == "absent" else {"eos_token_id": theirs}
        (folder / "generation_config.json").write_text(json.dumps(given))
        want = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
    save_file(
        random_model(replace(CONFIG, vocab_size=50257)).state_dict(), folder / "model.safetensors"
    )
    ends = load(folder).config.end_tokens
    assert ends == (() if want is None else tuple(np.atleast_1d(want).tolist()))


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("given", ["5", -1, 261, 99999, True, [[5]], {}, [5, 261]], ids=str)
def test_a_wrong_token_id_is_one_line_that_names_the_file(folder, name, given):
    (folder / "generation_config.json").write_text(json.dumps({name: given}))
    with pytest.raises(ConfigError, match=f"generation_config.json: {name} = ") as caught:
        load(folder)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_any_end_token_ends_a_text_on_both_engines(folder):
    """The exported file says so itself, whatever lies beside it."""
    runner = load(folder)
    ids, said = runner.tokenizer.encode("the"), []
    for _ in range(6):
        said.append(int(runner.run(ids + said).logits[0, -1].argmax()))
    at = next(i for i, token in enumerate(said) if i and token not in said[:i])
    want = runner.tokenizer.decode(said[:at])
    ends = {"eos_token_id": [250, said[at]]}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    runner = load(folder)
    (folder / "out").mkdir()
    export_onnx(runner, folder / "out" / "model.onnx")
    (folder / "out" / "generation_config.json").unlink()
    for engine in (runner, open_onnx(folder / "out" / "model.onnx", device="cpu")):
        assert engine.config.end_tokens == (250, said[at])
        options = {"greedy": True, "max_new_tokens": 6}
        assert gpt2kit.generate(engine, "the", **options) == want
        assert gpt2kit.generate(engine, ["the", "the"], **options) == [want, want]
