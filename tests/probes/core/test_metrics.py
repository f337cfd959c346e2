"""Metrics against their definitions, on arrays and on tensors."""

import numpy as np
import pytest
import torch

from gpt2kit.errors import InputError
from gpt2kit.logits import log_softmax
from probes.causal.patching import activation_patching
from probes.core.metrics import Metric, as_metric
from tests.conftest import CONFIG, close
from tests.probes.causal.support import CLEAN, CORRUPT, POS


def test_every_metric_equals_its_definition_on_arrays_and_tensors():
    logits, clean = np.random.default_rng(0).normal(0, 3, (2, 5, 17))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    r = np.exp(clean[0]) / np.exp(clean[0]).sum()
    want = {
        Metric.logit_diff(3, 5): logits[:, 3] - logits[:, 5],
        Metric.prob(3): p[:, 3],
        Metric.logprob(3): np.log(p[:, 3]),
        Metric.rank(3): [sorted(row)[::-1].index(row[3]) for row in logits],
        Metric.kl(): (r * (np.log(r) - np.log(p))).sum(-1),
        Metric.of(lambda x: x[:, 2] ** 2): logits[:, 2] ** 2,
    }
    for metric, values in want.items():
        ids = np.array(metric.tokens, int)
        reference = log_softmax(clean[0])
        close(metric(logits, ids, reference), values, 1e-12)
        tensors = torch.tensor(logits), ids, torch.tensor(reference)
        close(metric(*tensors).numpy(), values, 1e-12)


def test_a_target_is_a_text_or_an_id_and_may_be_one_a_prompt(torch_runner):
    a, b, c = (torch_runner.tokenizer.single(text) for text in "abc")
    assert Metric.logit_diff("a", np.int64(b)).ids(torch_runner).tolist() == [[a, b]]
    assert Metric.logit_diff(["a", b], "c").ids(torch_runner, 2).tolist() == [[a, c], [b, c]]
    assert "'a'" in repr(Metric.prob("a"))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (Metric.prob("cat"), "'cat' is not one token: it is 'c' \\+ 'a' \\+ 't'"),
        (Metric.prob(CONFIG.vocab_size), f"outside the vocabulary of {CONFIG.vocab_size}"),
        (Metric.prob(["a", "b"]), "names 2 tokens for 1 prompt;"),
        (Metric.logit_diff("a", "a"), "target and foil are both 'a', whose difference is always 0"),
        (lambda x: x, r"gave shape \(1, \d+\) for logits"),
        (lambda x: 1.0, "gave float for logits"),
        ("logit_diff", "'logit_diff' is neither a Metric nor a function"),
        (
            Metric.prob("a", position=POS),
            f"position {POS} does not lie in the prompt, which has {POS} tokens",
        ),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(torch_runner, metric, message):
    with pytest.raises(InputError, match=message) as caught:
        activation_patching(torch_runner, CLEAN, CORRUPT, metric=metric)
    assert "\n" not in str(caught.value)


def test_a_metric_of_several_prompts_says_which_token_is_which():
    assert Metric.logit_diff(["a", "b"], ["c", "d"]).name == (
        "logit of each prompt's target minus logit of each prompt's foil"
    )


def test_a_plain_function_is_a_metric():
    metric = as_metric(lambda logits: logits[:, 0])
    assert metric.name == "<lambda>"
    assert as_metric(metric) is metric
