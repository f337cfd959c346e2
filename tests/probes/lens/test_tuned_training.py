"""Training brings the readings nearer to the final prediction, and refuses bad options."""

from pathlib import Path

import numpy as np
import pytest
import torch

import gpt2kit
from gpt2kit import TorchRunner
from gpt2kit.errors import InputError
from probes import logit_lens
from probes.lens.tuned_lens import tuned_lens
from probes.lens.tuned_training import train_tuned_lens
from tests.conftest import close, random_ids

TEXT = (Path(gpt2kit.__file__).parents[1] / "exporters" / "parity" / "held_out.txt").read_text(
    "utf-8"
)


def test_training_brings_every_layer_nearer_to_the_final_one_on_text_not_trained_on(bundled):
    ids = bundled.tokenizer.encode(TEXT)
    held_out, seen = ids[:256], ids[256:]
    steps = []
    lens = train_tuned_lens(
        bundled, seen, steps=40, batch=2, length=96,
        on_progress=lambda step, losses: steps.append((step, losses)),
    )  # fmt: skip
    before = logit_lens(bundled, held_out, top_k=1).kl.mean(1)
    after = tuned_lens(bundled, held_out, lens, top_k=1).kl.mean(1)
    assert (after[:-1] < 0.9 * before[:-1]).all(), (before, after)
    assert [step for step, _ in steps] == list(range(1, 41))
    assert (steps[-1][1] < steps[0][1]).all()
    assert lens.sha256[0] == bundled.weights_sha256


def test_the_loss_is_the_kl_and_a_seed_gives_one_lens(torch_runner):
    ids = np.random.default_rng(0).integers(0, 250, 20)
    losses = []
    first, second, third = (
        train_tuned_lens(
            torch_runner, ids, steps=2, batch=2, length=20 - (seed == 1), seed=seed,
            on_progress=lambda _, x: losses.append(x),
        )
        for seed in (0, 0, 1)
    )  # fmt: skip
    np.testing.assert_array_equal(first.weight, second.weight)
    assert not np.array_equal(first.weight, third.weight)
    # one piece is the whole text, so that the loss before the first step is known
    close(losses[0], logit_lens(torch_runner, ids, top_k=1).kl[:-1].mean(1))
    assert all(not p.requires_grad and p.grad is None for p in torch_runner.model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps = 0 must be at least 1"),
        ({"lr": float("nan")}, "lr = nan must be above 0"),
        ({"length": 41}, "length = 41 must be from 1 to 40"),
        ({"length": 39}, "the text has 11 tokens, one piece is 39"),
    ],
)
def test_bad_options_of_training_are_refused(torch_runner, options, message):
    with pytest.raises(InputError, match=message):
        train_tuned_lens(torch_runner, "x" * 11, **{"length": 8} | options)


def test_text_needs_a_tokenizer_and_may_be_ids(torch_runner):
    nameless = TorchRunner(torch_runner.model)
    with pytest.raises(InputError, match="give token ids"):
        train_tuned_lens(nameless, "x" * 11, length=8)
    ids = torch_runner.tokenizer.encode("x" * 11)
    by_ids = train_tuned_lens(nameless, ids, steps=1, length=8)
    by_text = train_tuned_lens(torch_runner, "x" * 11, steps=1, length=8)
    np.testing.assert_array_equal(by_ids.bias, by_text.bias)


def test_training_works_within_inference_mode(torch_runner):
    ids = random_ids(20)
    given = {"steps": 2, "batch": 1, "length": 8}
    with torch.inference_mode():
        within = train_tuned_lens(torch_runner, ids, **given)
        assert torch.is_inference_mode_enabled()
    np.testing.assert_array_equal(
        within.weight, train_tuned_lens(torch_runner, ids, **given).weight
    )
    assert within.weight.any()
