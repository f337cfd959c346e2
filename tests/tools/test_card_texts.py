"""The card's texts: openings, continuations, the reader's verdict, the tokenizer, Markdown."""

import dataclasses

import numpy as np
import pytest
from corpus import train_tokenizer
from recipe import Recipe
from rendering import code, head_grids, plain, shade, table, token_grid
from samples import END, openings, read_by_hand, sampling, weights_digest, write_on
from training_record import TrainingRecord
from vocabulary import bytes_per_token, longest_tokens, split, word_shares

from gpt2kit import GPT2Config, TorchRunner, generate
from tests.conftest import CONFIG, byte_tokenizer, random_model

STORIES = ["the cat saw the cat's hat", "the hat sat"]


def test_an_opening_is_the_first_words_and_comes_once():
    long = " ".join(map(str, range(20)))
    assert openings([long + " x", long + " y", "a  b\nc"]) == [
        "0 1 2 3 4 5 6 7 8 9 10 11",
        "a  b\nc",
    ]


def test_writing_on_stops_where_the_story_ends(torch_runner):
    free = write_on(torch_runner, "the ", 12, greedy=True)
    assert "".join(free) == generate(torch_runner, "the ", max_new_tokens=12, greedy=True)
    third = int(torch_runner.tokenizer.encode("the " + "".join(free[:3]))[-1])
    config: GPT2Config = dataclasses.replace(CONFIG, eos_token_id=third)
    ending = TorchRunner(random_model(config), byte_tokenizer())
    first = free.index(free[2])
    assert write_on(ending, "the ", 12, greedy=True) == [*free[:first], END]


def test_samples_use_the_settings_of_the_generation_config():
    settings = {"do_sample": True, "temperature": 0.7, "top_k": 20, "eos_token_id": 3}
    runner = TorchRunner(random_model(), byte_tokenizer(), generation=settings)
    assert sampling(runner) == {"temperature": 0.7, "top_k": 20}


def test_words_count_for_the_weights_that_they_name(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    digest = weights_digest(tmp_path)
    file = tmp_path / "verdict.md"
    file.write_text(f"weights: {digest}\n\nAll whole.\n")
    assert read_by_hand(file, digest) == "All whole."
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    other = weights_digest(tmp_path)
    missing = f"(`tools/verdict.md` has no words on the weights {other} yet.)"
    assert read_by_hand(file, other) == missing


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(STORIES * 3, 256 + 8)


def test_the_share_of_words_that_are_one_token(tokenizer):
    whole = [t for t in (" cat", " hat", " the", " saw", " sat", "the") if single(tokenizer, t)]
    words = ["the", " cat", " saw", " the", " hat", "the", " hat", " sat"]  # without "cat's"
    common, different = word_shares(tokenizer, STORIES)
    assert common == sum(word in whole for word in words) / 8
    assert different == len({word.strip() for word in words if word in whole}) / 5
    assert 0 < common < 1


def single(tokenizer, text: str) -> bool:
    return len(tokenizer.encode(text).ids) == 1


def test_tokens_are_measured_and_shown_as_text(tokenizer):
    ids = [tokenizer.encode(story).ids for story in STORIES]
    assert bytes_per_token(tokenizer, STORIES) == sum(map(len, STORIES)) / sum(map(len, ids))
    assert longest_tokens(tokenizer)[0] in (" the", " cat", " hat")
    assert split(tokenizer, "zü") == "`z` `Ã` `¼`"


def test_markdown():
    assert table(("a", "b"), [(1, "x")]) == "| a | b |\n| --- | ---: |\n| 1 | x |"
    assert plain(' a *b*\n\n"c_d" <e> [f] #|') == ' a \\*b\\* / "c\\_d" \\<e> \\[f] \\#\\|'
    assert [code(text) for text in (" a", "\n", "a|", "`")] == ["`·a`", "`⏎`", "`a\\|`", "`` ` ``"]
    assert [shade(x) for x in (-1, 0, 0.19, 0.2, 0.79, 0.8, 1, 2)] == list("···░▓███")


def test_pictures_of_heads_and_tokens():
    grid = np.array([[0.0, 1.0], [0.5, 0.2]])
    assert head_grids({"first kind": grid, "second": grid}).splitlines()[2:] == [
        "head     0 1           0 1",
        "layer 0  · █           · █",
        "layer 1  ▒ ░           ▒ ░",
        "```",
    ]
    assert token_grid(grid, ["The", " dog"]).splitlines() == [
        "```text",
        "      0  1",
        "The   ·  ▒",
        "·dog  █  ░",
        "```",
    ]


def test_a_training_record_comes_back(tmp_path):
    record = TrainingRecord.here(Recipe(steps=9, renamed=0.25), 60.5, [(3, 2.5, 2.25)])
    record.write(tmp_path)
    found = TrainingRecord.read(tmp_path)
    assert (found.recipe, found.seconds, found.torch) == (record.recipe, 60.5, record.torch)
    assert [tuple(row) for row in found.curve] == record.curve
    assert record.command == (
        "python tools/train_bundled.py --corpus FOLDER --steps 9 --renamed 0.25"
    )
