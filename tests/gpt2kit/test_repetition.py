"""Penalties for repeating, token by token as transformers has them; and the sliding window."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt2kit
from gpt2kit import Edit, TorchRunner, generate
from gpt2kit.errors import InputError
from gpt2kit.generation import steps
from gpt2kit.penalties import ban_repeated_ngrams, penalise_repetition
from gpt2kit.sampling import Sampler
from gpt2kit.testing import FakeRunner
from probes import edit_effect, generation_lens
from tests.conftest import CONFIG, byte_tokenizer, random_ids, random_model

transformers = pytest.importorskip("transformers")

NO_EFFECT = {"no_repeat_ngram_size": 12}
OPTIONS = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"repetition_penalty": 30.0},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    NO_EFFECT,
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2},
]


@pytest.fixture(scope="module")
def reference():
    """The model of the fixture `runner`, in transformers."""
    config = transformers.GPT2Config(**asdict(CONFIG))
    model = transformers.GPT2LMHeadModel(config)
    weights = {f"transformer.{name}": x for name, x in random_model().state_dict().items()}
    model.load_state_dict(weights | {"lm_head.weight": weights["transformer.wte.weight"]})
    return model.eval()


def loop(runner, ids, count: int, **options) -> np.ndarray:
    """(count, batch) greedy tokens."""
    sampler = Sampler(greedy=True, **{k: v for k, v in options.items() if k != "window"})
    window = options.get("window")
    return np.array(list(steps(runner, ids, max_new_tokens=count, sampler=sampler, window=window)))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_tokens_are_those_of_transformers(runner, reference, options):
    rows = random_ids(4, 8, seed=3)
    rows[0, 4:] = rows[0, :4]  # so that n-grams repeat from the start
    with torch.inference_mode():
        want = reference.generate(
            torch.as_tensor(rows),
            attention_mask=torch.ones(rows.shape, dtype=torch.int64),
            max_new_tokens=30,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )[:, 8:]
    got = loop(runner, rows, 30, **options).T
    assert got.tolist() == want.tolist()
    if options != NO_EFFECT:
        assert got.tolist() != loop(runner, rows, 30).T.tolist()


def test_the_row_of_a_batch_is_that_of_the_prompt_alone(runner):
    rows = [[5, 6, 7, 5, 6], [9], [1, 2, 3, 4, 1, 2, 3, 4, 1]]
    options = {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2}
    together = loop(runner, rows, 20, **options)
    for row, alone in enumerate(rows):
        assert together[:, row].tolist() == loop(runner, [alone], 20, **options)[:, 0].tolist()


SCORES = st.lists(st.floats(-5, 5, width=32), min_size=9, max_size=9)
TEXT = st.lists(st.integers(0, 8), min_size=1, max_size=20)


@given(SCORES, TEXT, st.floats(0.1, 5), st.integers(1, 5))
@settings(deadline=None)
def test_the_logits_are_those_of_transformers(scores, text, penalty, size):
    logits = np.array([scores], np.float32)
    ids, theirs = torch.tensor([text]), torch.as_tensor(logits)
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    np.testing.assert_array_equal(
        penalise_repetition(logits, [text], penalty), processor(ids, theirs.clone())
    )
    processor = transformers.NoRepeatNGramLogitsProcessor(size)
    np.testing.assert_array_equal(
        ban_repeated_ngrams(logits, [text], size), processor(ids, theirs.clone())
    )


def test_candidates_are_chosen_after_the_penalty():
    """The likeliest two tokens are in the text; the penalty puts both behind the third."""
    logits = np.array([[4.0, 3.9, 3.0, -9.0]], np.float32)
    sampler = Sampler(top_k=1, repetition_penalty=2.0, seed=0)
    assert sampler.look_back(logits, [[0, 1, 0]]).argmax() == 2
    runner = FakeRunner()
    plain = loop(runner, [[3, 4]], 6)
    drawn = steps(
        runner, [[3, 4]], max_new_tokens=6, sampler=Sampler(top_k=1, repetition_penalty=1e9, seed=0)
    )
    greedy = loop(runner, [[3, 4]], 6, repetition_penalty=1e9)
    assert np.array(list(drawn)).tolist() == greedy.tolist() != plain.tolist()


def test_a_token_beyond_the_model_is_no_fault():
    logits = np.ones((1, 3), np.float32)
    assert penalise_repetition(logits, [[1, 7]], 2.0).tolist() == [[1, 0.5, 1]]
    assert ban_repeated_ngrams(logits, [[7, 7]], 1).tolist() == [[1, 1, 1]]


def test_no_token_that_is_left_is_told():
    runner = FakeRunner(replace(FakeRunner().config, vocab_size=2))
    with pytest.raises(InputError, match="no_repeat_ngram_size = 1 leaves no token to choose"):
        loop(runner, [[0]], 5, no_repeat_ngram_size=1)


# The window


def by_hand(runner, ids: list[int], count: int, window: int) -> list[int]:
    text = list(ids)
    for _ in range(count):
        text.append(int(runner.run(text[-window:]).logits[0, -1].argmax()))
    return text[len(ids) :]


@pytest.mark.parametrize("window", [1, 7, 39, 40])
def test_the_window_is_a_loop_over_the_last_tokens(runner, window):
    rows = [random_ids(n, seed=n).tolist() for n in (3, 12, 40, 60)]
    got = loop(runner, rows, 45, window=window)
    for row, ids in enumerate(rows):
        assert got[:, row].tolist() == by_hand(runner, ids, 45, window)


def test_a_window_that_is_never_full_changes_nothing(runner):
    rows = [[1, 2, 3], [4]]
    assert loop(runner, rows, 20, window=40).tolist() == loop(runner, rows, 20).tolist()


def test_penalties_see_the_whole_text_not_the_window(torch_runner):
    ids = random_ids(5).tolist()
    got = loop(torch_runner, [ids], 60, window=4, no_repeat_ngram_size=1)[:, 0].tolist()
    assert len(set(ids + got)) == len(set(ids)) + 60


def test_a_text_may_be_longer_than_the_context(torch_runner):
    tokenizer = byte_tokenizer()
    runner = TorchRunner(random_model(replace(CONFIG, eos_token_id=None)), tokenizer)
    prompt = "the cat sat on the mat, " * 3
    with pytest.raises(InputError, match=r"the prompt has .* tokens, the context holds 40"):
        generate(runner, prompt)
    text = generate(runner, prompt, window=30, greedy=True, max_new_tokens=50)
    ids = tokenizer.encode(prompt)
    assert text == tokenizer.decode(by_hand(runner, ids, 50, 30))
    lens = generation_lens(runner, prompt, window=30, greedy=True, max_new_tokens=50)
    assert lens.text == text
    effect = edit_effect(
        runner, prompt, [Edit.scale("blocks.1.attn_out", 0.5)], window=30, greedy=True
    )
    assert text.startswith(effect.texts[0])


def test_edits_count_positions_in_the_window(torch_runner):
    push = np.random.default_rng(0).standard_normal(24) * 9
    edits = [Edit.steer("blocks.0.resid_post", push, pos=2)]
    text = random_ids(6).tolist()
    options = {"sampler": Sampler(greedy=True), "window": 5}
    got = steps(torch_runner, [text], max_new_tokens=8, edits=edits, **options)
    want = list(text)
    for _ in range(8):
        run = torch_runner.run(want[-5:], edits=edits)
        want.append(int(run.logits[0, -1].argmax()))
    assert [int(step[0]) for step in got] == want[6:]


# No limit to the candidates


@pytest.mark.parametrize("limit", [None, 0, CONFIG.vocab_size])
def test_no_top_k_is_all_tokens(torch_runner, limit):
    options = {"max_new_tokens": 20, "seed": 3, "temperature": 9.0}
    text = generate(torch_runner, "the", top_k=limit, **options)
    assert text == generate(torch_runner, "the", top_k=None, **options)
    assert text != generate(torch_runner, "the", top_k=5, **options)
    assert gpt2kit.sampling.Sampler(top_k=limit).candidates(7) == min(7, limit or 7)
