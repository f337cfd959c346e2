"""generation_config.json, and what the runner keeps of the source's small files."""

import json

import pytest
import torch

import gpt2kit
from gpt2kit.errors import CheckpointError
from gpt2kit.torch_engine.dtypes import rounded
from tests.conftest import byte_tokenizer, write_checkpoint

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
