"""A value of a wrong type is an InputError of one line that names the argument, on each engine."""

import numpy as np
import pytest

import gpt2kit
from gpt2kit import Edit, generate
from gpt2kit.errors import InputError
from gpt2kit.sampling import Sampler
from tests.conftest import CONFIG

X = np.ones((2, CONFIG.n_embd), np.float32)


def refused(argument: str, call) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert argument in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


RUN = [
    ({"ids": None}, "ids"),
    ({"ids": 1.5}, "ids"),
    ({"ids": {1, 2}}, "ids"),
    ({"ids": {"a": 1}}, "ids"),
    ({"ids": [None]}, "ids"),
    ({"ids": [1, None]}, "ids"),
    ({"ids": [[1, 2], None]}, "ids"),
    ({"ids": [[1, 2], [1.5, 2]]}, "ids"),
    ({"ids": np.zeros((2, 3))}, "ids"),
    ({"ids": []}, "ids"),
    ({"ids": [-1]}, "ids"),
    ({"taps": None}, "taps"),
    ({"taps": "blocks.0.*[pos:2]"}, "taps"),
    ({"edits": [Edit.zero("blocks.*.*[pos:2]")]}, "place"),
    ({"taps": 5}, "taps"),
    ({"taps": [5]}, "taps"),
    ({"taps": [None]}, "taps"),
    ({"edits": None}, "edits"),
    ({"edits": 5}, "edits"),
    ({"edits": [None]}, "Edit"),
    ({"edits": [("blocks.0.z", 5)]}, "Edit"),
    ({"edits": ("blocks.0.z", abs)}, "Edit"),
    ({"cache": "full"}, "cache"),
    ({"cache": {}}, "cache"),
    ({"lengths": [1.9]}, "lengths"),
    ({"lengths": 1.0}, "lengths"),
    ({"lengths": "1"}, "lengths"),
    ({"lengths": [True]}, "lengths"),
    ({"lengths": [None]}, "lengths"),
    ({"lengths": [[1], [1, 2]]}, "lengths"),
    ({"lengths": [[2]]}, "lengths"),
    ({"lengths": [0]}, "lengths"),
    ({"top_k": 1.5}, "top_k"),
    ({"top_k": True}, "top_k"),
    ({"top_k": "5"}, "top_k"),
    ({"top_k": [5]}, "top_k"),
    ({"last_only": None}, "last_only"),
    ({"last_only": 1}, "last_only"),
    ({"last_only": "yes"}, "last_only"),
]


@pytest.mark.parametrize(("options", "argument"), RUN, ids=str)
def test_run_names_the_argument(runner, options, argument):
    given = {"ids": [1, 2], **options}
    refused(argument, lambda: runner.run(given.pop("ids"), **given))


READOUT = [
    ({"resid": None}, "resid"),
    ({"resid": "x"}, "resid"),
    ({"resid": 5.0}, "resid"),
    ({"resid": [[1.0], [1.0, 2.0]]}, "resid"),
    ({"resid": np.full((1, 24), None)}, "resid"),
    ({"resid": X[:, :5]}, "resid"),
    ({"top_k": None}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"top_k": True}, "top_k"),
    ({"targets": 1.9}, "targets"),
    ({"targets": [1.9]}, "targets"),
    ({"targets": ["a"]}, "targets"),
    ({"targets": [None]}, "targets"),
    ({"targets": [True]}, "targets"),
    ({"reference": "last"}, "reference"),
    ({"reference": 5}, "reference"),
    ({"reference": [None]}, "reference"),
]


@pytest.mark.parametrize(("options", "argument"), READOUT, ids=str)
def test_readout_names_the_argument(runner, options, argument):
    given = {"resid": X, **options}
    refused(argument, lambda: runner.readout(given.pop("resid"), **given))


@pytest.mark.parametrize("resid", [None, "x", 5, [[1.0], [1.0, 2.0]], X[:, :5]], ids=str)
def test_unembed_names_the_argument(runner, resid):
    refused("resid", lambda: runner.unembed(resid))


@pytest.mark.parametrize("name", [None, 5, ["wte.weight"], b"wte.weight"])
def test_weight_names_the_argument(runner, name):
    refused("name", lambda: runner.weight(name))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", [1]], ids=str)
@pytest.mark.parametrize("argument", ["batch_size", "max_length"])
def test_new_cache_names_the_argument(runner, argument, value):
    refused(argument, lambda: runner.new_cache(**{argument: value}))


def test_a_run_takes_lists_where_it_takes_arrays(runner):
    assert runner.unembed(X.tolist()).shape == (2, CONFIG.vocab_size)
    assert runner.readout(X.tolist(), targets=5).target_ranks.shape == (2, 1)


FROM = [
    ({"layer": 1.5}, "layer"),
    ({"layer": None}, "layer"),
    ({"layer": 4}, "layer"),
    ({"resid": None}, "resid"),
    ({"resid": X}, "resid"),
    ({"taps": None}, "taps"),
    ({"edits": None}, "edits"),
    ({"last_only": 1}, "last_only"),
]


@pytest.mark.parametrize(("options", "argument"), FROM, ids=str)
def test_run_from_names_the_argument(torch_runner, options, argument):
    refused(argument, lambda: torch_runner.run_from(**{"layer": 1, "resid": X[None], **options}))


SAMPLING = [
    ({"temperature": "1"}, "temperature"),
    ({"temperature": None}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_k": 1.5}, "top_k"),
    ({"top_k": True}, "top_k"),
    ({"top_k": "5"}, "top_k"),
    ({"top_p": "0.5"}, "top_p"),
    ({"top_p": None}, "top_p"),
    ({"seed": 1.5}, "seed"),
    ({"seed": "1"}, "seed"),
    ({"seed": True}, "seed"),
    ({"greedy": "yes"}, "greedy"),
    ({"greedy": None}, "greedy"),
]
GENERATE = [
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": [5]}, "prompt"),
    ({"prompt": ["a", ["b"]]}, "prompt"),
    ({"max_new_tokens": 1.5}, "max_new_tokens"),
    ({"max_new_tokens": None}, "max_new_tokens"),
    ({"max_new_tokens": True}, "max_new_tokens"),
    ({"stop": None}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop": [5]}, "stop"),
    ({"edits": None}, "edits"),
    ({"taps": None}, "taps"),
    ({"on_text": "print"}, "on_text"),
    ({"head": 5}, "head"),
    ({"watch": 5}, "watch"),
]


@pytest.mark.parametrize(("options", "argument"), SAMPLING, ids=str)
def test_a_sampler_names_the_argument(options, argument):
    refused(argument, lambda: Sampler(**options))


@pytest.mark.parametrize(("options", "argument"), SAMPLING + GENERATE, ids=str)
def test_generate_names_the_argument(runner, options, argument):
    given = {"prompt": "a", "max_new_tokens": 2, **options}
    refused(argument, lambda: generate(runner, given.pop("prompt"), **given))


LOAD = [
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"revision": 5}, "revision"),
    ({"device": None}, "device"),
    ({"device": 0}, "device"),
    ({"dtype": None}, "dtype"),
    ({"dtype": np.float32}, "dtype"),
]


@pytest.mark.parametrize(("options", "argument"), LOAD, ids=str)
def test_load_names_the_argument(options, argument):
    refused(argument, lambda: gpt2kit.load(**{"model": "bundled", **options}))


EDITS = [
    (lambda: Edit(None), "tap"),
    (lambda: Edit(["blocks.0.z"]), "tap"),
    (lambda: Edit("blocks.0.z", at=[1]), "at"),
    (lambda: Edit("blocks.0.z", at=None), "at"),
    (lambda: Edit("blocks.0.z", keep=None), "keep"),
    (lambda: Edit("blocks.0.z", add="2"), "add"),
    (lambda: Edit("blocks.0.z", add=[[1], [1, 2]]), "add"),
    (lambda: Edit("blocks.0.z", keep=1j), "keep"),
    (lambda: Edit.steer("blocks.0.resid_mid", None), "vector"),
    (lambda: Edit.steer("blocks.0.resid_mid", np.ones(24), "2"), "strength"),
    (lambda: Edit.steer("blocks.0.resid_mid", np.ones(24), None), "strength"),
    (lambda: Edit.zero("blocks.0.z", head=None), "head"),
    (lambda: Edit.zero("blocks.0.z", head="1"), "head"),
    (lambda: Edit.zero("blocks.0.z", head=[[0], [1, 2]]), "head"),
    (lambda: Edit.zero("blocks.0.z", pos=slice(0.5, None)), "pos"),
    (lambda: Edit.zero("blocks.0.z", pos=slice("a", None)), "pos"),
    (lambda: Edit("blocks.0.z", at={5: 1}), "axis"),
]


@pytest.mark.parametrize(("make", "argument"), EDITS)
def test_an_edit_names_the_argument(runner, make, argument):
    refused(argument, lambda: runner.run([1, 2], edits=[make()]))


def test_tokenizers_name_the_argument(torch_runner):
    tokenizer = torch_runner.tokenizer
    refused("text", lambda: tokenizer.encode(None))
    refused("text", lambda: tokenizer.single(5))
    refused("ids", lambda: tokenizer.decode(None))
    refused("ids", lambda: tokenizer.decode(["a"]))
    refused("ids", lambda: tokenizer.tokens([1.5]))


# Edits as many as one likes


def test_thousands_of_edits_run(runner):
    edits = [Edit.scale("blocks.1.z", 1.01), Edit.scale("blocks.1.z", 1 / 1.01)] * 750
    want = runner.run([1, 2, 3]).logits
    np.testing.assert_allclose(runner.run([1, 2, 3], edits=edits).logits, want, atol=1e-3)
