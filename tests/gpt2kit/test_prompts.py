"""Prompts, tokens and positions: checked in one place, refused in one line."""

import numpy as np
import pytest
import torch

from gpt2kit import TorchRunner
from gpt2kit.errors import InputError
from gpt2kit.prompts import (
    counted,
    index,
    prompt_ids,
    row_of_ids,
    select,
    token_id,
    token_texts,
    tokenizer_of,
)
from tests.conftest import CONFIG, random_model


@pytest.mark.parametrize(
    "given", [[1, 2], (1, 2), np.array([1, 2], np.int32), torch.tensor([1, 2])]
)
def test_ids_come_in_any_row_of_whole_numbers(torch_runner, given):
    ids = prompt_ids(torch_runner, given, prepend_bos=True)
    assert ids.tolist() == [CONFIG.bos_token_id, 1, 2]
    assert ids.dtype == np.int64


@pytest.mark.parametrize("given", [[1.0, 2.0], [1, 2.5], [True, False], 7, [[1, 2]], ["a"], [None]])
def test_what_is_no_row_of_ids_is_refused(torch_runner, given):
    for check in (row_of_ids, lambda x: prompt_ids(torch_runner, x)):
        with pytest.raises(InputError, match="a prompt is a text or a row of token ids, not") as it:
            check(given)
        assert "\n" not in str(it.value)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        ([], {}, "the prompt has no tokens"),
        ([0, -1], {}, "token id -1 is outside the vocabulary of 261"),
        ([261], {}, "token id 261 is outside"),
        ([5] * 41, {}, "41 positions do not fit the context of 40"),
        ([5] * 40, {"prepend_bos": True}, "41 positions do not fit"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(torch_runner, given, options, message):
    with pytest.raises(InputError, match=message):
        prompt_ids(torch_runner, given, **options)


def test_a_token_is_a_text_or_an_id(torch_runner):
    assert token_id(torch_runner, "a") == torch_runner.tokenizer.single("a")
    assert token_id(torch_runner, np.int64(5)) == 5
    for token, message in ((261, "outside"), (-1, "outside"), (1.5, "neither"), ("ab", "not one")):
        with pytest.raises(InputError, match=message):
            token_id(torch_runner, token)


def test_without_a_tokenizer_ids_are_their_own_names():
    nameless = TorchRunner(random_model())
    assert token_texts(nameless, np.array([3, 1])) == ("3", "1")
    with pytest.raises(InputError, match="has no tokenizer to name tokens with"):
        tokenizer_of(nameless)
    with pytest.raises(InputError, match="has no tokenizer to look 'a' up; give its id"):
        token_id(nameless, "a")


def test_places_count_from_either_end():
    assert [index(i, 3) for i in (0, 2, -1, -3)] == [0, 2, 2, 0]
    for i in (3, -4):
        with pytest.raises(InputError, match=f"position {i} does not lie in the prompt, which has"):
            index(i, 3)
    for where in (None, slice(None), [0, 1, -1]):
        assert select(where, 3, "heads").tolist() == [0, 1, 2]
    assert select(-1, 3, "heads").tolist() == [2]
    with pytest.raises(InputError, match=r"heads \[3\] are not among the 3"):
        select([3], 3, "heads")


def test_one_is_not_many():
    assert [counted(n, "token") for n in (0, 1, 2)] == ["0 tokens", "1 token", "2 tokens"]
