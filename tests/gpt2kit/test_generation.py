"""Sampling, and generation over a Runner: the same text with and without cache and batch."""

import codecs
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit import Edit, TorchRunner, generate
from gpt2kit.errors import EditError, InputError, NonFiniteError
from gpt2kit.generation import steps
from gpt2kit.logits import largest
from gpt2kit.runner import Run
from gpt2kit.sampling import Sampler
from gpt2kit.taps import TapDict
from gpt2kit.testing import FakeRunner
from tests.conftest import CONFIG, byte_tokenizer, close, random_ids, random_model

VOCAB, EOS = CONFIG.vocab_size, CONFIG.eos_token_id
TOKENIZER = byte_tokenizer()
PROMPTS = ["the cat", "é", "a longer prompt, of", "the the the"]
UNENDING = replace(CONFIG, eos_token_id=None)


@pytest.fixture(scope="module")
def talker() -> TorchRunner:
    """The random model, but flatter, so that sampling has a choice."""
    model = random_model(UNENDING)
    model.ln_f.weight.data *= 0.3
    return TorchRunner(model, TOKENIZER)


class Script(FakeRunner):
    """A Runner that predicts the tokens of a script, one line for each row; counts its runs."""

    def __init__(self, *lines, config=CONFIG) -> None:
        super().__init__(config, TOKENIZER)
        self.lines = [TOKENIZER.encode(line) if isinstance(line, str) else line for line in lines]
        self.runs = 0

    def run(self, ids, *, cache, lengths, last_only, edits, top_k, taps=()):
        logits = np.zeros((len(self.lines), 1, VOCAB), np.float32)
        for row, line in enumerate(self.lines):
            logits[row, 0, line[self.runs % len(line)]] = 50
        self.runs += 1
        values, top_ids = largest(logits, top_k)
        return Run(values, TapDict({}, 3), cache, top_ids)


def say(*lines, prompt="p", n=None, config=CONFIG, **options):
    """Text, and the pieces streamed, of a scripted row (or rows)."""
    script, pieces = Script(*lines, config=config), [[] for _ in lines]
    n = n or max(len(line) for line in script.lines)
    prompts = [prompt] * len(lines) if len(lines) > 1 else prompt
    text = generate(
        script, prompts, max_new_tokens=n, greedy=True,
        on_text=lambda row, piece: pieces[row].append(piece), **options,
    )  # fmt: skip
    return text, pieces if len(lines) > 1 else pieces[0], script


# Generation


def test_greedy_equals_a_loop_of_full_forwards(runner):
    for prompt in PROMPTS:
        ids = TOKENIZER.encode(prompt)
        for _ in range(15):
            ids.append(int(runner.run(ids).logits[0, -1].argmax()))
        want = ids[len(TOKENIZER.encode(prompt)) :]
        got = steps(
            runner, [TOKENIZER.encode(prompt)], max_new_tokens=15, sampler=Sampler(greedy=True)
        )
        assert [int(step[0]) for step in got] == want
        text = TOKENIZER.decode(want[: want.index(EOS)] if EOS in want else want)
        assert generate(runner, prompt, max_new_tokens=15, greedy=True) == text


def test_the_same_seed_gives_the_same_text_and_another_seed_another(talker):
    texts = [generate(talker, "the", max_new_tokens=20, seed=seed) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


def test_without_a_seed_texts_differ(talker):
    assert generate(talker, "the", max_new_tokens=20) != generate(talker, "the", max_new_tokens=20)


def test_a_greedy_batch_equals_each_prompt_alone(runner):
    together = generate(runner, PROMPTS, max_new_tokens=12, greedy=True)
    alone = [generate(runner, prompt, max_new_tokens=12, greedy=True) for prompt in PROMPTS]
    assert together == alone


def test_a_sampled_row_does_not_depend_on_its_batch_mates(talker):
    options = {"max_new_tokens": 12, "seed": 5, "top_k": 20, "top_p": 0.9}
    batch = generate(talker, PROMPTS, **options)
    assert batch[0] == generate(talker, PROMPTS[0], **options)
    assert batch == generate(talker, [*PROMPTS, "another"], **options)[:-1]
    others = generate(talker, ["x", PROMPTS[1], "yy", PROMPTS[3]], **options)
    assert (others[1], others[3]) == (batch[1], batch[3])


def test_the_same_prompt_twice_in_a_batch_gives_two_samples(talker):
    first, second = generate(talker, ["the", "the"], max_new_tokens=20, seed=0)
    assert first != second


def test_a_list_of_one_prompt_gives_a_list(runner):
    (text,) = generate(runner, ["the"], max_new_tokens=3, greedy=True)
    assert text == generate(runner, "the", max_new_tokens=3, greedy=True)


def test_edits_stay_at_their_positions_while_generating(talker):
    """The token after each prefix is that of a full forward with the same edits."""
    vector = np.random.default_rng(0).standard_normal(24) * 3
    edits = [Edit.steer("blocks.1.resid_post", vector, pos=8), Edit.zero("blocks.0.z", head=1)]
    ids, start = TOKENIZER.encode("the cat"), len(TOKENIZER.encode("the cat"))
    found = list(steps(talker, [ids], max_new_tokens=10, sampler=Sampler(greedy=True), edits=edits))
    for chosen in found:
        here = edits if len(ids) > 8 else edits[1:]
        assert int(talker.run(ids, edits=here).logits[0, -1].argmax()) == int(chosen[0])
        ids.append(int(chosen[0]))
    assert start <= 8 < len(ids)
    plain = generate(talker, "the cat", max_new_tokens=10, greedy=True)
    assert plain != generate(talker, "the cat", max_new_tokens=10, greedy=True, edits=edits)


def test_the_context_can_be_filled_to_its_last_position(runner):
    prompt = "x" * 30
    for n in (10, 11):  # the last new token needs no position of its own
        generate(runner, prompt, max_new_tokens=n, greedy=True)
    with pytest.raises(InputError, match=r"30 prompt tokens and 12 new ones need 41 positions"):
        generate(runner, prompt, max_new_tokens=12, greedy=True)


# Where a text ends


def test_a_row_ends_at_end_of_text_and_does_not_show_it():
    text, pieces, script = say([*TOKENIZER.encode("ab"), EOS, *TOKENIZER.encode("cd")])
    assert (text, "".join(pieces), script.runs) == ("ab", "ab", 3)


def test_end_of_text_right_away_is_an_empty_text():
    assert say([EOS, 5])[:2] == ("", [])


def test_rows_end_by_themselves_and_work_ends_with_the_last():
    text, pieces, script = say([5, EOS, 5, 5], [EOS, 9, 9, 9], [7, 7, 7, EOS, 7], n=30)
    assert text == [TOKENIZER.decode([5]), "", TOKENIZER.decode([7] * 3)]
    assert ["".join(row) for row in pieces] == text
    assert script.runs == 4


@pytest.mark.parametrize(
    ("stop", "want"),
    [
        ("cat", "on the "),
        (["the", "cat"], "on "),
        (["cat", "the c"], "on "),
        (["dog"], "on the cat mat"),
        ("on", ""),
        ("t", "on "),
        ("mat!", "on the cat mat"),
        ([], "on the cat mat"),
        ("e ca", "on th"),
    ],
    ids=str,
)
def test_a_row_ends_before_the_first_stop_string(stop, want):
    text, pieces, _ = say("on the cat mat", stop=stop)
    assert text == want
    assert "".join(pieces) == text


def test_work_ends_with_the_stop_string():
    *_, script = say("abcdefgh", stop="cd")
    assert script.runs == 4


def test_half_a_stop_string_waits_and_is_shown_when_it_was_none():
    _, pieces, _ = say("xabxabcd", stop="abcd")
    assert "".join(pieces) == "x" + "abx"
    text, pieces, _ = say("xabcz", stop="abcd")
    assert pieces == ["x", "abcz"]
    text, pieces, _ = say("xabc", stop="abcd")  # the last token: what waits is shown
    assert (text, pieces) == ("xabc", ["x", "abc"])


def test_a_stop_string_in_the_prompt_does_not_count():
    assert say("abc", prompt="stop", stop="stop")[0] == "abc"


def test_a_character_is_never_shown_half():
    text, pieces, _ = say("né 👍🏽 ok")
    assert text == "né 👍🏽 ok"
    assert pieces == ["n", "é", " ", "👍", "🏽", " ", "o", "k"]


def test_a_stop_string_may_end_in_the_middle_of_what_was_half_a_character():
    text, pieces, _ = say("abé", stop="bé")
    assert text == "a"
    assert "".join(pieces) == "a"


def test_bytes_that_are_no_text_become_replacement_signs():
    bad = TOKENIZER.encode("é")[:1]
    text, pieces, _ = say([*bad, *bad, *TOKENIZER.encode("a")])
    assert text == "\ufffd\ufffda"
    assert pieces == ["\ufffd\ufffda"]
    assert say([*TOKENIZER.encode("a"), *bad])[:2] == ("a\ufffd", ["a", "\ufffd"])


@given(
    st.lists(st.one_of(st.binary(max_size=6), st.text("ab é👍", max_size=6).map(str.encode))),
    st.lists(st.text("ab é👍", min_size=1, max_size=3), max_size=3),
)
@settings(deadline=None, max_examples=300)
def test_pieces_join_to_the_text_and_no_stop_string_is_in_it(parts, stop):
    data = b"".join(parts)[:40] or b"a"
    ids = [BYTE[byte] for byte in data]
    text, pieces, _ = say(ids, stop=stop, n=len(ids), config=UNENDING)
    assert "".join(pieces) == text
    for n in range(1, len(data) + 1):  # the first stop string to be complete ends the row
        want = data[:n].decode(errors="replace")
        found = [want.find(s) for s in stop if s in want]
        if found:
            want = want[: min(found)]
            break
    assert text == want


# Byte -> its token; byte-level BPE writes those that do not show as U+0100 and on.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = [byte for byte in range(256) if byte not in PRINTABLE]
SIGNS = {byte: chr(byte) for byte in PRINTABLE} | {b: chr(256 + n) for n, b in enumerate(HIDDEN)}
BYTE = {byte: TOKENIZER._inner.token_to_id(sign) for byte, sign in SIGNS.items()}


def test_random_models_stream_what_they_return(talker):
    pieces = [[] for _ in PROMPTS]
    text = generate(
        talker, PROMPTS, max_new_tokens=20, seed=1, on_text=lambda row, x: pieces[row].append(x)
    )
    assert ["".join(row) for row in pieces] == text
    decoder = codecs.getincrementaldecoder("utf-8")
    assert all(decoder().decode(piece.encode()) == piece for row in pieces for piece in row)


# What is refused, before any run


class Untouched(Script):
    def run(self, *_, **__):
        raise AssertionError("work was begun")


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ("", {}, "the prompt is empty"),
        (["a", ""], {}, "the prompt is empty"),
        ([], {}, "no prompts were given"),
        ("x" * 41, {}, "the prompt has 41 tokens, the context holds 40; shorten it"),
        (
            "x" * 30,
            {"max_new_tokens": 40},
            "30 prompt tokens and 40 new ones need 69 positions, the context holds 40",
        ),
        (["a", "x" * 30], {"max_new_tokens": 12}, "30 prompt tokens"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens = 0 must be at least 1"),
        ("a", {"temperature": 0}, "temperature = 0 must be above 0; .* ask for greedy"),
        ("a", {"temperature": -1.0}, "temperature = -1.0"),
        ("a", {"temperature": float("nan")}, "temperature = nan"),
        ("a", {"temperature": float("inf")}, "temperature = inf"),
        ("a", {"top_k": -1, "max_new_tokens": 1}, "top_k = -1 must not be negative"),
        ("a", {"top_k": False}, "top_k = False must be an integer"),
        ("a", {"top_k": VOCAB + 1}, f"top_k = {VOCAB + 1} is more than the vocabulary of {VOCAB}"),
        ("a", {"repetition_penalty": 0}, "repetition_penalty = 0 must be above 0"),
        ("a", {"repetition_penalty": -1.5}, "repetition_penalty = -1.5 must be above 0"),
        ("a", {"repetition_penalty": float("nan")}, "repetition_penalty = nan must be above 0"),
        ("a", {"repetition_penalty": "2"}, "repetition_penalty = '2' must be a number"),
        ("a", {"no_repeat_ngram_size": -1}, "no_repeat_ngram_size = -1 must not be negative"),
        ("a", {"no_repeat_ngram_size": 2.0}, "no_repeat_ngram_size = 2.0 must be an integer"),
        ("a", {"window": 0}, "window = 0 must be from 1 to 40"),
        ("a", {"window": 41}, "window = 41 must be from 1 to 40"),
        ("a", {"window": "all"}, "window = 'all' must be an integer"),
        ("a", {"top_p": 0}, r"top_p = 0 must be in \(0, 1\]"),
        ("a", {"top_p": 1.01}, "top_p = 1.01"),
        ("a", {"top_p": float("nan")}, "top_p = nan"),
        ("a", {"seed": -1}, "seed = -1 must not be negative"),
        ("a", {"stop": ""}, "a stop string is empty"),
        ("a", {"stop": ["b", ""]}, "a stop string is empty"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_told_before_any_work(prompt, options, words):
    with pytest.raises(InputError, match=words) as caught:
        generate(Untouched("a"), prompt, **options)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_tokenizer_cannot_read_text():
    with pytest.raises(InputError, match=r"no tokenizer: tokenizer\.json is missing"):
        generate(TorchRunner(random_model()), "text")


def test_an_edit_that_does_not_fit_is_told(talker):
    with pytest.raises(EditError, match="does not broadcast"):
        generate(talker, "text", max_new_tokens=2, edits=[Edit.steer("ln_f", np.zeros(5))])


# Sampling

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], np.float32))


def pick(sampler, logits) -> np.ndarray:
    return sampler.pick(*largest(logits, sampler.candidates(logits.shape[-1])))


def shares(n=4000, logits=LOGITS, **options) -> np.ndarray:
    """How often each token is drawn."""
    picked = pick(Sampler(seed=0, **options), np.tile(logits, (n, 1)))
    return np.bincount(picked, minlength=len(logits)) / n


def near(got, want) -> None:
    assert np.abs(got - np.array(want)).max() < 0.03
    assert ((got == 0) == (np.array(want) == 0)).all()


def test_plain_sampling_follows_the_probabilities():
    near(shares(top_k=None), [0.1, 0.4, 0.05, 0.3, 0.15])


def test_top_k_keeps_the_likeliest():
    near(shares(top_k=2), [0, 4 / 7, 0, 3 / 7, 0])
    near(shares(top_k=1), [0, 1, 0, 0, 0])
    near(shares(top_k=5), [0.1, 0.4, 0.05, 0.3, 0.15])


@pytest.mark.parametrize(
    ("top_p", "want"),
    [
        (0.3, [0, 1, 0, 0, 0]),
        (0.6, [0, 4 / 7, 0, 3 / 7, 0]),
        (0.8, [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85]),
        (1e-9, [0, 1, 0, 0, 0]),
        (1.0, [0.1, 0.4, 0.05, 0.3, 0.15]),
    ],
)
def test_top_p_keeps_the_least_set_that_holds_it(top_p, want):
    near(shares(top_k=None, top_p=top_p), want)


def test_top_p_counts_within_top_k():
    near(shares(top_k=2, top_p=0.5), [0, 1, 0, 0, 0])


def test_temperature_sharpens_and_flattens():
    p = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
    near(shares(top_k=None, temperature=0.5), p**2 / (p**2).sum())
    near(shares(top_k=None, temperature=2), p**0.5 / (p**0.5).sum())
    near(shares(top_k=None, temperature=1e6), [0.2] * 5)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
@pytest.mark.filterwarnings("error")
def test_a_temperature_near_zero_is_greedy(temperature):
    near(shares(n=50, temperature=temperature, top_k=None), [0, 1, 0, 0, 0])
    near(shares(n=50, temperature=temperature, top_k=None, logits=LOGITS * 100), [0, 1, 0, 0, 0])


def test_tokens_without_probability_are_never_drawn():
    logits = np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32)
    near(shares(logits=logits, top_k=None), [0, 0.5, 0, 0.5, 0])


@pytest.mark.parametrize("options", [{"greedy": True}, {"top_k": 1}])
def test_greedy_is_the_likeliest(options):
    logits = np.random.default_rng(0).standard_normal((6, VOCAB))
    picked = pick(Sampler(**options), logits)
    assert picked.dtype == np.int64
    assert (picked == logits.argmax(-1)).all()


def test_a_sampler_goes_on_in_its_stream():
    logits = np.tile(LOGITS, (2, 1))
    one, two = Sampler(seed=7, top_k=None), Sampler(seed=7, top_k=None)
    first = [pick(one, logits).tolist() for _ in range(20)]
    assert first == [pick(two, logits).tolist() for _ in range(20)]
    assert len({tuple(x) for x in first}) > 3


def test_token_ids_can_be_grown_without_a_tokenizer():
    runner = TorchRunner(random_model())
    rows = random_ids(3, 5)
    found = list(steps(runner, rows, max_new_tokens=4, sampler=Sampler(seed=0)))
    assert np.stack(found).shape == (4, 3)
    with pytest.raises(InputError, match="no tokens"):
        steps(runner, [[]], max_new_tokens=4, sampler=Sampler())


def test_an_edit_that_ends_with_the_prompt_is_refused_before_any_work(torch_runner):
    short = Edit.replace("blocks.0.resid_post", np.zeros((1, 4, 24)))
    sampler = Sampler(greedy=True, top_k=None)
    with pytest.raises(EditError, match="does not broadcast"):
        steps(torch_runner, [[1, 2, 3, 4]], max_new_tokens=3, sampler=sampler, edits=[short])


def test_an_edit_of_one_row_changes_that_row_alone(torch_runner):
    def run(edits):
        sampler = Sampler(greedy=True, top_k=None)
        ids = [[1, 2, 3, 4], [5, 6]]
        tokens = steps(torch_runner, ids, max_new_tokens=6, sampler=sampler, edits=edits)
        return np.stack(list(tokens))

    push = np.random.default_rng(0).standard_normal(24) * 9
    plain, edited = run([]), run([Edit.steer("blocks.2.resid_post", push, batch=1)])
    assert (plain[:, 0] == edited[:, 0]).all()
    assert (plain[:, 1] != edited[:, 1]).any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("greedy", [True, False])
def test_logits_that_are_not_numbers_are_told(greedy, wrong):
    with pytest.raises(NonFiniteError, match="logits to choose a token from are NaN or infinite"):
        pick(Sampler(top_k=2, greedy=greedy), np.array([[0.0, wrong, 1.0]]))


@pytest.mark.parametrize("k", [1, 2, 7, 40])
@pytest.mark.parametrize("values", [3, 1000])
def test_the_largest_come_first_and_ties_by_id(k, values):
    logits = np.random.default_rng(k).integers(0, values, (2, 3, 40)).astype(np.float32)
    found, ids = largest(logits, k)
    order = np.argsort(-logits, axis=-1, kind="stable")
    assert (found == np.take_along_axis(logits, order, -1)[..., :k]).all()
    if values > 40:  # of equal ones at the edge, any may be chosen
        assert (ids == order[..., :k]).all()
    assert (np.take_along_axis(logits, ids, -1) == found).all()
    assert ((np.diff(ids) > 0) | (np.diff(found) < 0)).all()


@pytest.mark.parametrize("last_only", [True, False])
def test_a_run_gives_the_largest_logits_and_their_tokens(runner, last_only):
    ids = random_ids(2, 5)
    plain = runner.run(ids, lengths=[5, 3], last_only=last_only)
    top = runner.run(ids, lengths=[5, 3], last_only=last_only, top_k=4)
    values, tokens = largest(plain.logits, 4)
    assert plain.top_ids is None
    close(top.logits, values)
    assert (top.top_ids == tokens).all()


@pytest.mark.parametrize("last_only", [True, False])
def test_a_run_without_logits_is_otherwise_the_same(runner, last_only):
    chunks = ((random_ids(2, 5), [5, 3]), (random_ids(2, 2), [1, 2]), (random_ids(2, 1), [1, 1]))
    with_logits, without = runner.new_cache(2), runner.new_cache(2)
    for ids, lengths in chunks:
        options = {"taps": "blocks.*.mlp_out", "last_only": last_only, "lengths": lengths}
        want = runner.run(ids, cache=with_logits, **options)
        got = runner.run(ids, cache=without, top_k=0, **options)
        assert got.logits.shape == got.top_ids.shape == (*want.logits.shape[:2], 0)
        for tap, value in want.taps.items():
            for row, size in enumerate(lengths):
                close(got.taps[tap][row, :size], value[row, :size])
        with_logits, without = want.cache, got.cache
    untapped = runner.run(random_ids(2, 1), cache=without, top_k=0)
    assert untapped.logits.shape == (2, 1, 0)
    assert (untapped.cache.lengths == with_logits.lengths + 1).all()


@pytest.mark.parametrize("k", [-1, CONFIG.vocab_size + 1])
def test_a_number_of_logits_that_there_is_not(runner, k):
    with pytest.raises(InputError, match=f"top_k = {k} must be from 0 to"):
        runner.run([[1, 2]], top_k=k)
