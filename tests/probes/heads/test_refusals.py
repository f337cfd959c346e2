"""Bad arguments of the probes of heads, and models without a tokenizer."""

import pytest

from gpt2kit import TorchRunner
from gpt2kit.errors import InputError
from probes.heads.attention_statistics import attention_statistics
from probes.heads.circuits import ov_top_tokens, qk_top_tokens
from probes.heads.patterns import attention_patterns
from probes.heads.scores import head_scores
from tests.conftest import random_model


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: attention_patterns(r, ""), "the prompt is empty"),
        (lambda r: attention_patterns(r, []), "the prompt has no tokens"),
        (lambda r: attention_patterns(r, "x" * 41), "the context holds 40"),
        (lambda r: attention_patterns(r, "x" * 40, prepend_bos=True), "do not fit the context"),
        (
            lambda r: attention_patterns(r, "a", layers=[3]),
            r"layers \[3\] are not among the 3 there are, 0 to 2",
        ),
        (
            lambda r: attention_patterns(r, "a", layers=[-4]),
            "are not among the 3 there are, 0 to 2",
        ),
        (lambda r: attention_patterns(r, "a", layers=[]), "are not among the 3 there are, 0 to 2"),
        (
            lambda r: attention_patterns(r, "a", layers=3),
            "layers 3 are not among the 3 there are, 0 to 2",
        ),
        (lambda r: attention_patterns(r, "a", layers=[1]).show(0, 0), "the layers here are 1, hea"),
        (lambda r: attention_patterns(r, "a").show(0, 3), "head 0.3: .* heads 0 to 2"),
        (lambda r: attention_statistics(r, "a"), "one token, which can only look at itself"),
        (
            lambda r: head_scores(r, length=50),
            "length = 50: twice that does not fit the context of 40",
        ),
        (lambda r: head_scores(r, length=0), "length = 0 must be at least 1"),
        (lambda r: head_scores(r, length=4, batch=0), "batch = 0 must be at least 1"),
        (lambda r: head_scores(r, prompt=[999]), "token id 999 is outside the vocabulary"),
        (lambda r: head_scores(r, length=4).leading("copying"), "'copying' is not one of previous"),
        (lambda r: ov_top_tokens(r, 3, 0, "a"), "the model has layers 0 to 2"),
        (lambda r: qk_top_tokens(r, 0, -1, "a"), "head -1 does not exist; .* heads 0 to 2"),
        (lambda r: ov_top_tokens(r, 0, 0, "ab"), "'ab' is not one token"),
        (lambda r: ov_top_tokens(r, 0, 0, 999), "token id 999 is outside the vocabulary of 261"),
        (lambda r: qk_top_tokens(r, 0, 0, "a", top_k=0), "top_k = 0 must be from 1 to 261"),
    ],
)
def test_bad_arguments_are_refused(torch_runner, call, message):
    with pytest.raises(InputError, match=message):
        call(torch_runner)


def test_without_a_tokenizer_tokens_are_numbers():
    runner = TorchRunner(random_model())
    assert attention_patterns(runner, [5, 7]).tokens == ("5", "7")
    assert ov_top_tokens(runner, 0, 0, 5).token == "5"
    with pytest.raises(InputError, match="no tokenizer to look 'a' up; give its id"):
        ov_top_tokens(runner, 0, 0, "a")
