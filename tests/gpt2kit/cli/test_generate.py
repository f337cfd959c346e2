"""`gpt2kit generate`: the text is that of the library, and bad input is one line."""

import csv
import io
import json

import pytest

import gpt2kit
from gpt2kit.cli.continuation import Continuation, continue_prompts
from gpt2kit.printable import printable_text
from tests.conftest import byte_tokenizer
from tests.gpt2kit.cli.support import FULL, LONG, assert_one_line, run, succeeded


@pytest.mark.parametrize("options", [{"greedy": True}, {"seed": 3, "top_p": 0.9}, {"seed": 0}])
def test_streamed_text_is_that_of_the_library(folder, options):
    prompt, args = "the é", []
    for name, value in options.items():
        args += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    out = succeeded(run("generate", prompt, "--model", folder, "-n", "30", *args))
    text = gpt2kit.generate(gpt2kit.load(folder), prompt, max_new_tokens=30, **options)
    assert out == f"{prompt}{printable_text(text)}\n"


def test_an_exported_file_generates_the_same(folder, onnx_file):
    args = ["generate", "the ", "-n", "20", "--greedy"]
    assert succeeded(run(*args, "--onnx", onnx_file)) == succeeded(run(*args, "--model", folder))


def test_several_prompts_are_one_batch(folder):
    out = succeeded(run("generate", "a", "the hat", "-n", "5", "--greedy", "--model", folder))
    texts = gpt2kit.generate(gpt2kit.load(folder), ["a", "the hat"], max_new_tokens=5, greedy=True)
    shown = [printable_text(text) for text in texts]
    assert out == f"a{shown[0]}\n\nthe hat{shown[1]}\n\n"


def test_it_stops_before_a_stop_string(folder):
    args = ["generate", "the ", "-n", "20", "--greedy", "--model", folder]
    text = json.loads(succeeded(run(*args, "--json")))["text"]
    stop = text[6:8]
    before = printable_text(text[: text.index(stop)])
    assert succeeded(run(*args, "--stop", stop)) == f"the {before}\n"


def test_a_dash_reads_standard_input(folder):
    args = ["--model", folder, "-n", "3", "--greedy"]
    from_stdin = succeeded(run("generate", "-", *args, stdin="héllo".encode()))
    assert from_stdin == succeeded(run("generate", "héllo", *args))


BAD_GENERATE = [
    ([""], "the prompt is empty"),
    (["a", ""], "the prompt is empty"),
    ([LONG], "the prompt has 41 tokens, the context holds 40; shorten it"),
    ([FULL, "-n", "40"], "40 prompt tokens and 40 new ones need 79 positions"),
    (["x", "-n", "41"], "1 prompt tokens and 41 new ones need 41 positions"),
    (["x", "-n", "0"], "must be at least 1"),
    (["x", "--temperature", "0"], "temperature = 0.0 must be above 0"),
    (["x", "--temperature", "-1"], "must be above 0"),
    (["x", "--temperature", "nan"], "must be above 0"),
    (["x", "--temperature", "inf"], "must be above 0"),
    (["x", "--top-k", "-1"], "top_k = -1 must not be negative"),
    (["x", "--top-k", "every"], "'every' is not a valid integer"),
    (["x", "--repetition-penalty", "0"], "repetition_penalty = 0.0 must be above 0"),
    (["x", "--no-repeat-ngram-size", "-1"], "must not be negative"),
    (["x", "--window", "41"], "window = 41 must be from 1 to 40"),
    (["x", "--top-k", "9999"], "top_k = 9999 is more than the vocabulary"),
    (["x", "--top-p", "0"], r"must be in \(0, 1\]"),
    (["x", "--top-p", "1.5"], r"must be in \(0, 1\]"),
    (["x", "--seed", "-1"], "must not be negative"),
    (["x", "--stop", ""], "a stop string is empty"),
    (["x", "--device", "abacus"], "'abacus' is not one that torch knows"),
    (["x", "--dtype", "int8"], "'int8' is not one of 'float32', 'float16'"),
    (["a\udcffb"], "the prompt is not UTF-8"),
]


@pytest.mark.parametrize(("args", "message"), BAD_GENERATE)
def test_generate_refuses_in_one_line(folder, args, message):
    result = run("generate", "--model", folder, *args)
    assert_one_line(result.exit_code, result.stdout, result.stderr, message)


def test_json_holds_the_text_its_tokens_and_how_it_was_made(folder):
    args = ["generate", "the ", "-n", "6", "--seed", "3", "--model", folder]
    text = succeeded(run(*args)).removesuffix("\n").removeprefix("the ")
    read = json.loads(succeeded(run(*args, "--json")))
    assert (read["kind"], read["schema_version"]) == ("continuation", 1)
    assert (read["source"], read["dtype"]) == ("tiny", "float32")
    assert (read["prompt"], printable_text(read["text"])) == ("the ", text)
    assert read["prompt_ids"] == byte_tokenizer().encode("the ")
    assert byte_tokenizer().decode(read["ids"]) == read["text"]
    assert len(read["tokens"]) == len(read["ids"]) == 6
    assert read["options"]["seed"] == 3
    assert read["options"]["max_new_tokens"] == 6


def test_tokens_end_where_the_text_ends(folder):
    args = ["generate", "the ", "-n", "20", "--greedy", "--model", folder]
    whole = json.loads(succeeded(run(*args, "--json")))
    stop = whole["text"][6:8]
    read = json.loads(succeeded(run(*args, "--stop", stop, "--json")))
    assert read["text"] == whole["text"][: whole["text"].index(stop)]
    assert read["ids"] == whole["ids"][: len(read["ids"])]
    assert byte_tokenizer().decode(read["ids"][:-1]) != read["text"]


def test_several_prompts_are_an_array_and_rows(folder):
    args = ["generate", "a", "the hat", "-n", "5", "--greedy", "--model", folder]
    texts = gpt2kit.generate(gpt2kit.load(folder), ["a", "the hat"], max_new_tokens=5, greedy=True)
    read = json.loads(succeeded(run(*args, "--json")))
    pairs = [("a", texts[0]), ("the hat", texts[1])]
    assert [(one["prompt"], one["text"]) for one in read] == pairs
    table = io.StringIO(succeeded(run(*args, "--csv")), newline="")
    rows = [(row["prompt"], row["text"]) for row in csv.DictReader(table)]
    assert rows == pairs


def test_a_continuation_reads_back_equal(folder):
    one = continue_prompts(gpt2kit.load(folder), ["the "], {"max_new_tokens": 3, "seed": 1})[0]
    assert Continuation.from_json(one.to_json()) == one
