"""Trajectories against their definitions, on every engine."""

import importlib
import json

import numpy as np
import pytest
from scipy.special import log_softmax

from gpt2kit.errors import InputError
from probes import logit_lens
from probes.core.statistics import (
    entropy,
    js_divergence,
    kl_divergence,
    max_prob,
    rank,
)
from probes.lens.trajectories import trajectory
from probes.lens.tuned_lens import TunedLens, tuned_lens
from tests.conftest import CONFIG, close

PROMPT = "the cat, the hat"


def in_full(runner, resid: np.ndarray) -> np.ndarray:
    """Streams (R, P, d_model) -> (R, P, vocab) log-probabilities in float64."""
    w = {name: x.double().numpy() for name, x in runner.model.state_dict().items()}
    x = resid - resid.mean(-1, keepdims=True, dtype=np.float64)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + runner.config.layer_norm_epsilon)
    return log_softmax((x * w["ln_f.weight"] + w["ln_f.bias"]) @ w["wte.weight"].T, -1)


@pytest.mark.parametrize("tuned", [False, True])
def test_every_number_equals_its_definition(torch_runner, runner, tuned):
    rng = np.random.default_rng(0)
    lens = TunedLens(
        "random", None, rng.normal(size=(3, 24, 24)).astype(np.float32) * 0.2, np.zeros((3, 24))
    )
    lens = lens if tuned else None
    found = trajectory(runner, PROMPT, lens=lens)
    run = torch_runner.run(torch_runner.tokenizer.encode(PROMPT), taps=found.rows)
    resid = np.stack([run.taps[row][0] for row in found.rows])
    log_p = in_full(torch_runner, resid if lens is None else lens.translate(resid))
    close(found.entropy, entropy(log_p))
    close(found.kl, kl_divergence(log_p[-1], log_p))
    close(found.max_prob, max_prob(log_p))
    following = torch_runner.tokenizer.encode(PROMPT)[1:]
    ids = np.broadcast_to(following, (len(found.rows), len(following)))
    assert (rank(log_p[:, :-1], ids) == found.next_ranks[:, :-1]).all()
    assert (found.next_ranks[:, -1] == -1).all()
    close(found.js, js_divergence(log_p, log_p[-1]), 1e-5)
    assert (found.js[:-1] > 0.01).all()
    assert (found.js[-1] == 0).all()


def test_tiles_change_nothing(torch_runner, monkeypatch):
    whole = trajectory(torch_runner, PROMPT).js
    module = importlib.import_module("probes.lens.trajectories")
    monkeypatch.setattr(module, "_TILE", 3 * 4 * CONFIG.vocab_size)  # three positions at a time
    close(trajectory(torch_runner, PROMPT).js, whole, 1e-9)
    monkeypatch.setattr(module, "_TILE", 1)
    close(trajectory(torch_runner, PROMPT).js, whole, 1e-9)


def test_positions_and_bos_are_those_of_the_lens(torch_runner):
    found = trajectory(torch_runner, PROMPT, positions=[3, -1], prepend_bos=True)
    whole = trajectory(torch_runner, PROMPT, prepend_bos=True)
    lens = logit_lens(torch_runner, PROMPT, positions=[3, -1], prepend_bos=True)
    assert found.prompt_tokens == lens.prompt_tokens
    np.testing.assert_array_equal(found.positions, lens.positions)
    close(found.js, whole.js[:, found.positions])
    close(found.entropy, lens.entropy)


def test_a_tuned_trajectory_is_that_of_the_tuned_lens(torch_runner):
    lens = TunedLens.identity(torch_runner)
    found = trajectory(torch_runner, PROMPT, lens=lens)
    close(found.kl, tuned_lens(torch_runner, PROMPT, lens).kl)
    close(found.js, trajectory(torch_runner, PROMPT).js)
    assert str(found).startswith("trajectory by the tuned lens  random  float32")


def test_it_prints_a_line_a_row_and_turns_into_json(torch_runner):
    found = trajectory(torch_runner, PROMPT)
    assert all(row in str(found) for row in found.rows)
    assert "\n" not in repr(found)
    assert json.loads(found.to_json())["rows"] == list(found.rows)
    assert "-" in str(trajectory(torch_runner, "a"))  # no token that follows
    assert str(found).splitlines()[1].endswith("KL and JS to the last row")  # on one line


def test_bad_prompts_are_refused(torch_runner):
    with pytest.raises(InputError, match="the prompt is empty"):
        trajectory(torch_runner, "")
    with pytest.raises(InputError, match=r"positions \[99\] are not among the "):
        trajectory(torch_runner, PROMPT, positions=[99])
