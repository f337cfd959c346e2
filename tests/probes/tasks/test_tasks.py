"""Prompts with known answers: their text, their alignment, and refusals."""

import json
import re

import numpy as np
import pytest

from gpt2kit import Tokenizer, load
from gpt2kit.errors import InputError
from probes.tasks.docstring_like import docstring_like
from probes.tasks.greater_than import GreaterThan, greater_than
from probes.tasks.ioi import TEMPLATES, ioi
from probes.tasks.pairs import Pairs
from probes.tasks.repeated_tokens import repeated_tokens
from probes.tasks.word_lists import ARGUMENTS, NAMES, OBJECTS, PLACES
from tests.conftest import GPT2_TOKENIZER, byte_tokenizer
from tests.planted import planted_tokenizer

N = 60


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    if not GPT2_TOKENIZER.is_dir():
        pytest.skip("GPT-2's tokenizer is not here")
    return Tokenizer.from_folder(GPT2_TOKENIZER)


@pytest.fixture(scope="module")
def stories() -> Tokenizer:
    return load("bundled", device="cpu").tokenizer


def differences(tokenizer: Tokenizer, a: str, b: str) -> list[int]:
    """Positions at which two texts of equal length differ."""
    a, b = tokenizer.encode(a), tokenizer.encode(b)
    assert len(a) == len(b)
    return [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]


@pytest.mark.parametrize(
    ("make", "name"), [(ioi, "gpt2"), (ioi, "stories"), (docstring_like, "gpt2")]
)
def test_answers_are_one_token_and_kinds_have_one_length(request, make, name):
    tokenizer = request.getfixturevalue(name)
    data = make(tokenizer, N)
    lengths = {}
    for i, kind in enumerate(data.kinds):
        lengths.setdefault(kind, set()).add(len(tokenizer.encode(data.prompts[i])))
        assert tokenizer.decode([data.target_ids[i]]) == data.target[i] != data.foil[i]
        assert tokenizer.decode([data.foil_ids[i]]) == data.foil[i]
        assert len(differences(tokenizer, data.prompts[i], data.corrupt[i])) == 1
        # Text and answer are tokenised apart as they are together.
        whole = tokenizer.encode(data.prompts[i] + data.target[i])
        assert whole == [*tokenizer.encode(data.prompts[i]), data.target_ids[i]]
    assert all(len(sizes) == 1 for sizes in lengths.values())


@pytest.mark.parametrize("make", [ioi, docstring_like, greater_than])
def test_a_seed_says_it_all(gpt2, make):
    once, again, other = make(gpt2, N, seed=3), make(gpt2, N, seed=3), make(gpt2, N, seed=4)
    assert once.to_dict() == again.to_dict()
    assert once.prompts != other.prompts
    assert len(set(once.prompts)) > N / 2
    assert make(gpt2, 5, seed=3).prompts == once.prompts[:5]


def test_ioi_names_the_subject_twice_and_the_answer_once(gpt2):
    data = ioi(gpt2, N)
    assert {kind.split()[0] for kind in data.kinds} == {"ABBA", "BABA"}
    assert {int(kind.split()[1]) for kind in data.kinds} == set(range(len(TEMPLATES)))
    for i, kind in enumerate(data.kinds):
        names = re.findall(rf" ({'|'.join(NAMES)})\b", data.prompts[i])
        third = re.findall(rf" ({'|'.join(NAMES)})\b", data.corrupt[i])
        answer, subject = data.target[i][1:], data.foil[i][1:]
        assert (
            names
            == {"ABBA": [answer, subject, subject], "BABA": [subject, answer, subject]}[
                kind.split()[0]
            ]
        )
        assert third[:2] == names[:2]
        assert third[2] not in names
        assert data.prompts[i].endswith(" to")


def test_ioi_is_the_same_for_gpt2_and_the_bundled_model(gpt2, stories):
    for tokenizer in (gpt2, stories):
        assert all(len(tokenizer.encode(f" {word}")) == 1 for word in NAMES + PLACES + OBJECTS)
    assert ioi(gpt2, N).prompts == ioi(stories, N).prompts


def test_greater_than_counts_the_later_years_as_right(gpt2):
    data = greater_than(gpt2, N)
    for i, year in enumerate(data.years):
        found = re.fullmatch(
            r"The \w+ lasted from the year (\d\d)(\d\d) to the year (\d\d)", data.prompts[i]
        )
        assert found
        assert found[1] == found[3]
        assert int(found[2]) == year
        assert gpt2.tokens(gpt2.encode(data.prompts[i]))[-6:-4] == [f" {found[1]}", found[2]]
        assert data.right[i] == tuple(f"{y:02d}" for y in range(year + 1, 100))
        assert data.wrong[i] == tuple(f"{y:02d}" for y in range(year + 1))
        assert gpt2.tokens(data.right_ids[i]) == list(data.right[i])
        assert gpt2.tokens(data.wrong_ids[i]) == list(data.wrong[i])
        assert data.corrupt[i] == data.prompts[i].replace(found[1] + found[2], found[1] + "01")
        (changed,) = differences(gpt2, data.prompts[i], data.corrupt[i])
        assert gpt2.tokens(gpt2.encode(data.corrupt[i]))[changed] == "01"
    assert len({len(gpt2.encode(prompt)) for prompt in data.prompts}) == 1
    assert len({prompt[-2:] for prompt in data.prompts}) > 3  # several centuries


def test_the_docstring_is_to_name_the_third_argument(gpt2):
    data = docstring_like(gpt2, N)
    for prompt, corrupt, target, foil in zip(
        data.prompts, data.corrupt, data.target, data.foil, strict=True
    ):
        args = re.search(r"def \w+\(self, (\w+), (\w+), (\w+), (\w+)\):\n", prompt).groups()
        assert re.findall(r":param (\w+): \w+ \w+\n", prompt) == list(args[:2])
        assert prompt.endswith("\n    :param")
        assert (target, foil) == (f" {args[2]}", f" {args[3]}")
        assert not re.search(rf"\b{args[2]}\b", corrupt)
        compile(prompt + '"""', "prompt", "exec")


def test_repeated_tokens_say_different_tokens_twice():
    rows = repeated_tokens(50, 6, 20, seed=1)
    assert rows.shape == (6, 40)
    np.testing.assert_array_equal(rows[:, :20], rows[:, 20:])
    assert all(len(set(row)) == 20 for row in rows.tolist())
    assert (rows.min() >= 0) & (rows.max() < 50)
    assert len({tuple(row) for row in rows.tolist()}) == 6
    np.testing.assert_array_equal(rows, repeated_tokens(50, 6, 20, seed=1))
    assert (rows != repeated_tokens(50, 6, 20, seed=2)).any()


def test_a_bos_stands_in_front_and_nowhere_else():
    rows = repeated_tokens(21, 6, 20, bos=7)
    assert rows.shape == (6, 41)
    assert (rows[:, 0] == 7).all()
    assert (rows[:, 1:] != 7).all()
    assert set(rows[0, 1:21].tolist()) == set(range(21)) - {7}


# What cannot be made


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (ioi, r"ioi: 0 of \d+ names are one token .* 3 are needed \(' Tim' is ' ' \+ 'T' \+ 'i'"),
        (greater_than, r"greater_than: 0 of \d+ events are one token .*\(' war' is ' ' \+ 'w'"),
        (docstring_like, r"docstring_like: 0 of \d+ argument names .*\(' load' is ' ' \+ 'l'"),
    ],
)
def test_a_tokenizer_without_the_words_is_refused(make, message):
    with pytest.raises(InputError, match=message) as error:
        make(byte_tokenizer(), 3)
    assert "\n" not in str(error.value)


def test_numbers_in_single_digits_are_refused(stories):
    with pytest.raises(InputError, match=r"greater_than: '00' is not one token: it is '0' \+ '0'"):
        greater_than(stories, 3)


def test_years_that_are_not_two_tokens_are_refused():
    with pytest.raises(InputError, match="no year such as ' 1732' is two tokens, ' 17' \\+ '32'"):
        greater_than(planted_tokenizer(), 3)  # every unknown word is one token there


def test_a_smaller_vocabulary_leaves_words_out(stories):
    data = docstring_like(stories, N)
    used = {name for name in ARGUMENTS if any(f" {name}" in prompt for prompt in data.prompts)}
    assert 6 <= len(used) < len(ARGUMENTS)
    assert all(len(stories.encode(f" {name}")) == 1 for name in used)
    for prompt, corrupt in zip(data.prompts, data.corrupt, strict=True):
        assert len(differences(stories, prompt, corrupt)) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: ioi(t, 0), "0 prompts are too few"),
        (lambda t: greater_than(t, -1), "-1 prompts are too few"),
        (lambda t: docstring_like(t, 1, seed=-1), "seed = -1 must not be negative"),
        (lambda t: repeated_tokens(10, 0, 3), "0 prompts are too few"),
        (lambda t: repeated_tokens(10, 1, 0), "length = 0 must be from 1 to 10"),
        (lambda t: repeated_tokens(10, 1, 11), "length = 11 must be from 1 to 10"),
        (lambda t: repeated_tokens(10, 1, 10, bos=3), "length = 10 must be from 1 to 9"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(byte_tokenizer())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: ioi(None, 1), "tokenizer = None must be a Tokenizer"),
        (lambda t: docstring_like("gpt2", 1), "tokenizer = 'gpt2' must be a Tokenizer"),
        (lambda t: ioi(t, 1.5), "n = 1.5 must be an integer, got float"),
        (lambda t: greater_than(t, None), "n = None must be an integer"),
        (lambda t: docstring_like(t, "2"), "n = '2' must be an integer, got str"),
        (lambda t: ioi(t, 1, seed=0.5), "seed = 0.5 must be an integer"),
        (lambda t: ioi(t, 1, seed=None), "seed = None must be an integer"),
        (lambda t: repeated_tokens(10, 1.5, 3), "batch = 1.5 must be an integer"),
        (lambda t: repeated_tokens(10, 1, "3"), "length = '3' must be an integer"),
        (lambda t: repeated_tokens(None, 1, 3), "vocab_size = None must be an integer"),
        (lambda t: repeated_tokens(10, 1, 3, bos=1.5), "bos = 1.5 must be an integer"),
    ],
)
def test_wrong_types_are_refused_by_the_arguments_name(call, message):
    with pytest.raises(InputError, match=message):
        call(byte_tokenizer())


# How it looks


@pytest.mark.parametrize("make", [ioi, docstring_like, greater_than])
def test_printing_shows_the_first_prompts(gpt2, make):
    data = make(gpt2, 6)
    assert "\n" not in repr(data)
    assert "6 prompts" in repr(data)
    text = str(data)
    assert "  6 prompts  the first 4 are shown\n" in text
    assert not re.search("[─━│┃]", text)  # no boxes, as all other tables
    read = json.loads(data.to_json())
    assert read["prompts"] == list(data.prompts)
    answers = data.right if make is greater_than else data.target
    assert str(answers[0][0] if make is greater_than else answers[0]).replace(" ", "·") in text
    assert "the first" not in str(make(gpt2, 4))
    assert "1 prompt" in repr(make(gpt2, 1))
    assert "1 prompts" not in repr(make(gpt2, 1))


@pytest.mark.parametrize(("make", "kind"), [(ioi, Pairs), (greater_than, GreaterThan)])
def test_prompts_are_a_table_and_are_read_back(gpt2, make, kind):
    data = make(gpt2, 3)
    rows = data.table()
    assert [row["prompt"] for row in rows] == list(data.prompts)
    assert kind.from_json(data.to_json()) == data
    if kind is GreaterThan:
        assert [int(row["right_from"]) for row in rows] == [year + 1 for year in data.years]
