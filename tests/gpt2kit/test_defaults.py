"""Defaults fit a model of any size; a number that is given is refused if it is too large."""

import inspect
import json
from dataclasses import replace

import pytest

import gpt2kit
import probes
from exporters import export_onnx, open_onnx
from gpt2kit import GPT2Config, Tokenizer, TorchRunner, generate
from gpt2kit.checks import check_integer, check_top_k
from gpt2kit.defaults import Default
from gpt2kit.errors import InputError
from gpt2kit.sampling import Sampler
from gpt2kit.testing import FakeRunner
from tests.conftest import random_model, write_checkpoint
from tests.gpt2kit.cli.support import run, succeeded

TINY = GPT2Config(
    vocab_size=4, n_positions=6, n_embd=4, n_layer=1, n_head=1, bos_token_id=None, eos_token_id=None
)
WORDS = "0123"


def write_tokenizer(folder, words: str = WORDS) -> None:
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, TINY)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(folder) -> TorchRunner:
    return TorchRunner(random_model(TINY), Tokenizer.from_folder(folder))


def test_a_default_gives_way_and_a_given_number_does_not():
    assert check_integer("n", Default(50), 1, 10) == 10
    assert check_integer("n", Default(5), 1, 10) == 5
    assert check_top_k(Default(50), 10) == 10
    for check in (lambda: check_integer("n", 50, 1, 10), lambda: check_top_k(50, 10)):
        with pytest.raises(InputError, match="= 50 must be from 1 to 10"):
            check()
    assert repr(Default(50)) == "50"


STREAM = "blocks.0.resid_post"
LENSES = {
    "logit_lens": lambda r, **o: probes.logit_lens(r, "01", **o),
    "tuned_lens": lambda r, **o: probes.tuned_lens(
        r, "01", probes.train_tuned_lens(r, "0120", steps=1), **o
    ),
    "head_lens": lambda r, **o: probes.head_lens(r, "01", 0, 0, **o),
    "ov_top_tokens": lambda r, **o: probes.ov_top_tokens(r, 0, 0, "1", **o),
    "qk_top_tokens": lambda r, **o: probes.qk_top_tokens(r, 0, 0, "1", **o),
    "nearest_tokens": lambda r, **o: probes.nearest_tokens(r, 0, 0, **o),
    "neuron_lens": lambda r, **o: probes.neuron_lens(r, 0, 0, **o),
    "readout": lambda r, **o: r.readout(r.run([0], taps=STREAM).taps[STREAM], **o),
}


def direction(runner):
    return probes.pca_directions(runner, ["0", "1"], tap=STREAM, n=1)[0]


OTHERS = {
    "generate": lambda r, **o: generate(r, "01", **o),
    "generation_lens": lambda r, **o: probes.generation_lens(r, "01", **o),
    "edit_effect": lambda r, **o: probes.edit_effect(r, "01", "blocks.0.z = 0", **o),
    "head_scores": lambda r, **o: probes.head_scores(r, **o),
    "train_tuned_lens": lambda r, **o: probes.train_tuned_lens(r, "0120", steps=1, **o),
    "steer": lambda r, **o: probes.steer(r, "01", direction(r), 1.0, **o),
    "top_activating": lambda r, **o: probes.top_activating(r, 0, 0, ["01"], **o),
}
EVERY = LENSES | OTHERS


@pytest.mark.parametrize("name", EVERY)
def test_defaults_fit_a_tiny_model(tiny, name):
    EVERY[name](tiny)


def parameters(function):
    return inspect.signature(function).parameters.values()


def test_every_default_that_may_be_too_large_is_tried():
    """Whoever adds a `Default` to a public function adds a case here."""
    public = [getattr(package, name) for package in (gpt2kit, probes) for name in package.__all__]
    having = {
        function.__name__
        for function in public
        if inspect.isfunction(function)
        and any(isinstance(p.default, Default) for p in parameters(function))
    }
    assert having <= set(EVERY)
    assert {"generate", "logit_lens", "head_scores"} <= having


GIVEN = [
    *((name, {"top_k": 5}, "top_k = 5 must be from 1 to 4") for name in LENSES),
    ("generate", {"top_k": 5}, "top_k = 5 is more than the vocabulary of 4"),
    ("generate", {"max_new_tokens": 6}, "2 prompt tokens and 6 new ones need 7 positions"),
    ("generation_lens", {"top_k": 5}, "top_k = 5 is more than the vocabulary of 4"),
    ("edit_effect", {"shown": 5}, "shown = 5 must be from 1 to 4"),
    ("head_scores", {"length": 4}, "length = 4: twice that does not fit the context of 6"),
    ("steer", {"max_new_tokens": 6}, "2 prompt tokens and 6 new ones need 7 positions"),
    ("train_tuned_lens", {"length": 7}, "length = 7 must be from 1 to 6"),
    ("train_tuned_lens", {"length": 5}, "the text has 4 tokens, one piece is 5"),
]


@pytest.mark.parametrize(("name", "options", "words"), GIVEN)
def test_a_number_that_is_given_is_refused(tiny, name, options, words):
    with pytest.raises(InputError, match=words):
        EVERY[name](tiny, **options)


def test_the_default_length_of_a_text_fills_the_context(tiny):
    assert len(generate(tiny, "01")) == 5  # the last token is never fed back
    assert len(generate(tiny, "010120")) == 1
    assert [len(text) for text in generate(tiny, ["0", "0101"])] == [3, 3]


def test_the_fake_runner_fits_too():
    runner = FakeRunner(TINY)
    assert runner.readout(runner.run([0], taps=STREAM).taps[STREAM]).top_ids.shape[-1] == 4
    assert Sampler().candidates(4) == 4


COMMANDS = [
    ["generate", "01"],
    ["generate", "01", "--lens"],
    ["generate", "01", "--edit", "blocks.0.z = 0"],
    ["generate", "01", "02", "--json"],
    ["lens", "01"],
    ["heads"],
    ["heads", "--prompt", "0101"],
    ["attn", "01", "--layer", "0", "--head", "0"],
    ["ablate", "01", "--target", "2"],
    ["attribute", "01", "--target", "2"],
    ["bench"],
]


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_the_defaults_of_commands_fit_a_tiny_model(folder, args):
    succeeded(run(*args, "--model", folder))


@pytest.mark.parametrize("limit", ["all", "0"])
def test_all_tokens_may_be_drawn(folder, limit):
    args = ["generate", "01", "--seed", "3", "--model", folder]
    text = generate(gpt2kit.load(folder), "01", seed=3, top_k=None)
    assert succeeded(run(*args, "--top-k", limit)) == f"01{text}\n"


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["portable", "fused"])
def test_defaults_fit_an_exported_tiny_model(tmp_path, profile):
    write_checkpoint(tmp_path, replace(TINY, n_embd=8))
    write_tokenizer(tmp_path)
    runner = gpt2kit.load(tmp_path, device="cpu")
    export_onnx(runner, tmp_path / "m.onnx", profile=profile, taps=[STREAM])
    engine = open_onnx(tmp_path / "m.onnx", device="cpu")
    generate(engine, "01")
    engine.readout(engine.run([0], taps=STREAM).taps[STREAM])


def test_a_vocabulary_of_one_token_and_a_context_of_one(tmp_path):
    config = replace(TINY, vocab_size=1, n_positions=1)
    write_checkpoint(tmp_path, config)
    write_tokenizer(tmp_path, "0")
    succeeded(run("lens", "0", "--model", tmp_path))
    result = run("heads", "--model", tmp_path)
    assert result.exit_code == 2
    assert "a context of 1 cannot hold random tokens said twice; give a prompt" in result.stderr
