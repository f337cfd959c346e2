"""Rare readouts: many targets, no vectors, vectors that are not finite."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from exporters import open_onnx
from gpt2kit.errors import InputError
from gpt2kit.runner import LayerRunner
from tests.conftest import CONFIG, QUANTISED_TAPS, close

D, VOCAB = CONFIG.n_embd, CONFIG.vocab_size


def vectors(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal((*shape, D)).astype(np.float32)


def resident(what: str) -> float:
    found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def test_targets_are_read_one_by_one(runner, torch_runner):
    x, ids = vectors(3, 4), np.random.default_rng(1).integers(0, VOCAB, (3, 4, 7))
    got = runner.readout(x, targets=ids, reference=x[-1])
    logits = torch_runner.unembed(x)
    chosen = np.take_along_axis(logits, ids, -1)
    close(got.target_logprobs + got.log_z[..., None], chosen)
    ranks = (logits[..., None, :] > chosen[..., None] + 1e-5).sum(-1)
    highest = (logits[..., None, :] > chosen[..., None] - 1e-5).sum(-1) - 1
    assert (ranks <= got.target_ranks).all()
    assert (got.target_ranks <= highest).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_many_targets_take_no_memory_of_their_own(bundled, bundled_file, quantize):
    taps = QUANTISED_TAPS if quantize else "blocks.*.pattern"
    runner = open_onnx(bundled_file("fused", quantize=quantize, taps=taps), device="cpu")
    x = np.random.default_rng(0).standard_normal((13, 16, bundled.config.n_embd), np.float32)
    runner.readout(x, targets=np.zeros(1, np.int64), reference=x[-1])
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    runner.readout(x, targets=np.arange(100), reference=x[-1])
    at_once = x[..., 0].size * 100 * bundled.config.vocab_size * 4 / 2**20  # MB
    assert resident("VmHWM") - before < at_once / 4


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e300])
def test_vectors_that_are_not_finite_are_refused(runner, wrong):
    x = vectors(2, 3).astype(np.float64)
    good = x.copy()
    x[0, 1, 2] = wrong
    told = "but float32 holds numbers up to" if wrong == 1e300 else "give finite numbers"
    readers = [runner.readout, runner.unembed]
    if isinstance(runner, LayerRunner):
        readers.append(lambda stream: runner.run_from(1, stream))
    for read in readers:
        with pytest.raises(InputError, match=rf"resid\[0, 1, 2\] is .*{told}"):
            read(x)
    with pytest.raises(InputError, match=rf"reference\[1, 2\] is .*{told}"):
        runner.readout(good, reference=x[0])


def test_nothing_to_read_is_said_in_one_line(runner):
    with pytest.raises(InputError, match=r"vectors of shape \(0, 24\) given: at least one"):
        runner.readout(np.zeros((0, D), np.float32))
    with pytest.raises(InputError, match=r"reference \(0, 24\) does not end the axes of \(2, 24\)"):
        runner.readout(vectors(2), reference=np.zeros((0, D), np.float32))
