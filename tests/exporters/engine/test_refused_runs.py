"""Runs that the onnxruntime engine refuses, each with an error that says what to do."""

import numpy as np
import pytest

from exporters import OnnxRunner, open_onnx
from gpt2kit.errors import InputError, TapError
from tests.conftest import CONFIG


@pytest.fixture(scope="module")
def bare(onnx_runner) -> OnnxRunner:
    """A runner as if its file had only one tap."""
    runner = OnnxRunner(onnx_runner.sessions)
    runner.taps = ("blocks.1.z",)
    return runner


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ("blocks.1.q", r"'blocks\.1\.q'; export it with .* --taps 'blocks\.1\.q'`$"),
        ("blocks.*.z", r"'blocks\.0\.z' \(and 1 more\); .* --taps 'blocks\.\*\.z'`$"),
        (
            ["blocks.0.resid_pre", "blocks.*.resid_post", "ln_f"],
            r"'blocks\.0\.resid_pre' \(and 4 more\); .* "
            r"--taps 'blocks\.0\.resid_pre' --taps 'blocks\.\*\.resid_post' --taps 'ln_f'`$",
        ),
    ],
)
def test_a_missing_tap_says_how_to_export_it(bare, taps, message):
    with pytest.raises(TapError, match=message):
        bare.run([1, 2], taps=taps)
    assert bare.run([1, 2], taps="blocks.1.z").taps["blocks.1.z"].shape == (1, 2, 3, 8)


def test_an_unknown_tap_is_named(onnx_runner):
    with pytest.raises(TapError, match=r"did you mean 'blocks\.1\.pattern'"):
        onnx_runner.run([1], taps="blocks.1.patern")


def test_each_engine_refuses_the_cache_of_the_other(torch_runner, onnx_runner):
    for runner, other in ((torch_runner, onnx_runner), (onnx_runner, torch_runner)):
        with pytest.raises(InputError, match="needs a cache of its own"):
            runner.run([1], cache=other.new_cache())


def test_a_spent_cache_is_refused_and_a_copy_is_not(onnx_runner):
    first = onnx_runner.run([1, 2, 3], cache=onnx_runner.new_cache()).cache
    kept = first.copy()
    one = onnx_runner.run([4], cache=first)
    with pytest.raises(InputError, match="was advanced by a later run"):
        onnx_runner.run([4], cache=first)
    two = onnx_runner.run([4], cache=kept)
    np.testing.assert_array_equal(one.logits, two.logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": []}, "no tokens"),
        ({"ids": [CONFIG.vocab_size]}, "outside the vocabulary"),
        ({"ids": [-1]}, "outside the vocabulary"),
        ({"ids": [1] * (CONFIG.n_positions + 1)}, "do not fit the context"),
        ({"ids": [[1, 2]], "lengths": [3]}, "do not fit ids"),
    ],
)
def test_bad_ids_are_refused(onnx_runner, arguments, message):
    with pytest.raises(InputError, match=message):
        onnx_runner.run(**arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((-1,), "batch_size = -1 must be at least 1"),
        ((0,), "batch_size = 0 must be at least 1"),
        ((1.5,), "batch_size = 1.5 must be an integer, got float"),
        ((1, 0), f"max_length = 0 must be from 1 to {CONFIG.n_positions}"),
        ((1, 2.5), "max_length = 2.5 must be an integer, got float"),
        ((1, CONFIG.n_positions + 1), f"max_length = 41 must be from 1 to {CONFIG.n_positions}"),
    ],
)
def test_a_cache_of_no_size_is_refused_on_every_engine(runner, given, message):
    with pytest.raises(InputError, match=message):
        runner.new_cache(*given)


@pytest.mark.parametrize("cache", [5, [], "cache"])
def test_what_is_no_cache_is_refused_on_every_engine(runner, cache):
    with pytest.raises(InputError, match=r"needs a cache of its own, got (int|list|str)$"):
        runner.run([1], cache=cache)


@pytest.mark.parametrize("threads", [0, -1, 2.5, True, "2"])
def test_threads_that_cannot_be_are_refused(onnx_runner, threads):
    wanted = "at least 1" if type(threads) is int else "an integer, got"
    with pytest.raises(InputError, match=f"threads = {threads!r} must be {wanted}"):
        open_onnx(onnx_runner.path, device="cpu", threads=threads)


def test_a_cache_that_is_too_short_is_refused(onnx_runner):
    with pytest.raises(InputError, match="3 positions do not fit the cache of 2"):
        onnx_runner.run([1, 2, 3], cache=onnx_runner.new_cache(1, 2))
