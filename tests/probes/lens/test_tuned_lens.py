"""The tuned lens: what it computes."""

import json

import numpy as np
import pytest
import torch

from gpt2kit.errors import InputError
from probes import logit_lens
from probes.lens.tuned_lens import TunedLens, tuned_lens
from tests.conftest import CONFIG, close
from tests.probes.lens.support import random_translators, read_by_hand

PROMPT = "the cat, the hat"
ROWS = ["blocks.0.resid_pre", *(f"blocks.{i}.resid_post" for i in range(CONFIG.n_layer))]


@pytest.fixture(scope="module")
def lens(torch_runner) -> TunedLens:
    return random_translators(torch_runner)


def test_every_number_is_that_of_the_translated_stream(torch_runner, runner, lens):
    read = tuned_lens(runner, PROMPT, lens, top_k=3, targets=["a"])
    assert (read.kind, read.source) == ("tuned lens", "random")
    assert str(read).startswith("tuned lens  random  float32")
    assert json.loads(read.to_json())["kind"] == "tuned lens"
    assert list(read.rows) == ROWS
    taps = torch_runner.run(read.prompt_ids, taps=ROWS).taps
    streams = [torch.from_numpy(taps[row][0]).double() for row in ROWS]
    for i in range(CONFIG.n_layer):
        a, b = torch.from_numpy(lens.weight[i]).double(), torch.from_numpy(lens.bias[i]).double()
        streams[i] = streams[i] + torch.einsum("pd,ed->pe", streams[i], a) + b
    log_p = read_by_hand(torch_runner, torch.stack(streams))
    p, final = log_p.exp(), log_p[-1]
    close(read.entropy, -(p * log_p).sum(-1))
    close(read.kl, (final.exp() * (final - log_p)).sum(-1))
    close(read.top_logprobs, log_p.topk(3).values)
    close(read.target_logprobs[..., 0], log_p[..., torch_runner.tokenizer.single("a")])
    assert read.kl[:-1].min() > 1e-3
    close(read.kl[-1], np.zeros(len(read.positions)))


def test_without_a_change_it_is_the_logit_lens(runner):
    plain = logit_lens(runner, PROMPT, top_k=4, targets=["a", "b"], positions=[1, -1])
    read = tuned_lens(
        runner, PROMPT, TunedLens.identity(runner), top_k=4, targets=["a", "b"], positions=[1, -1]
    )
    for name, value in vars(plain).items():
        if name != "kind":
            np.testing.assert_array_equal(getattr(read, name), value, err_msg=name)


def test_float64_stays_float64(double):
    lens = TunedLens.identity(double)
    resid = np.random.default_rng(0).normal(size=(CONFIG.n_layer + 1, 5, CONFIG.n_embd))
    assert lens.translate(resid).dtype == np.float64
    np.testing.assert_array_equal(lens.translate(resid), resid)
    with pytest.raises(InputError, match="do not fit TunedLens"):
        lens.translate(resid[1:])


def test_a_lens_is_data(lens):
    data = json.loads(lens.to_json())
    assert data["sha256"] == list(lens.sha256)
    close(data["bias"], lens.bias)
    assert str(lens).strip() == repr(lens)
