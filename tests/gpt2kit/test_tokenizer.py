"""Text to ids and back; GPT-2's own vocabulary where it is at hand."""

import json
import shutil

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit import Tokenizer
from gpt2kit.errors import CheckpointError, InputError
from gpt2kit.shipped import BUNDLED
from tests.conftest import CONFIG, GPT2_TOKENIZER, byte_tokenizer

DUTY = (
    "No duty is imposed on the rich, rights of the poor is a hollow phrase...) "
    "Enough languishing in custody. Equality"
)
DUTY_IDS = [2949, 7077, 318, 10893, 319, 262, 5527, 11, 2489, 286, 262, 3595]
DUTY_IDS += [318, 257, 20596, 9546, 23029, 31779, 2786, 3929, 287, 10804, 13, 31428]
TRICKY = [
    "",
    " ",
    "  leading and trailing  ",
    "\n\n\t\r\n",
    "café naïve Straße",
    "cafe\u0301",  # not composed, and must stay so
    "日本語 العربية हिन्दी",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
    "\x00\x01\x1f\x7f\x80\x9f",
    "\u200b\u00a0\u2028\ufeff\ufffd",
    "don't WE'LL they've",
    "1234567890 3.14",
    "<|endoftext|>",
    "a<|endoftext|>b",
    "<|endoftext",
    "Ġ Ċ",  # the signs that byte-level BPE uses inside
    "x" * 1000,
]
TEXT = st.one_of(
    st.text(max_size=60),
    st.text(st.sampled_from(" \n\t\r\u00a0ab'’é👍\u200d🏽\x00\x7f\ufffd<|>"), max_size=40),
)


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    if not GPT2_TOKENIZER.is_dir():
        pytest.skip("GPT-2's vocabulary is not at hand")
    tokenizer = Tokenizer.from_folder(GPT2_TOKENIZER)
    assert tokenizer is not None
    return tokenizer


def test_published_ids(gpt2):
    assert gpt2.encode(DUTY) == DUTY_IDS
    assert gpt2.decode(DUTY_IDS) == DUTY
    assert "".join(gpt2.tokens(DUTY_IDS)) == DUTY
    assert gpt2.single(" Mary") == 5335
    assert gpt2.single(" John") == 1757
    assert gpt2.single("<|endoftext|>") == 50256
    assert gpt2.vocab_size == 50257


def test_the_ids_are_those_of_transformers(gpt2):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2TokenizerFast(
        str(GPT2_TOKENIZER / "vocab.json"), str(GPT2_TOKENIZER / "merges.txt")
    )
    for text in (*TRICKY, DUTY):
        assert gpt2.encode(text) == theirs(text)["input_ids"], text


def two_files(tmp_path, source: str):
    """vocab.json and merges.txt of a tokenizer, in a folder."""
    if source == "gpt2":
        if not GPT2_TOKENIZER.is_dir():
            pytest.skip("GPT-2's vocabulary is not at hand")
        return GPT2_TOKENIZER
    model = json.loads((BUNDLED / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    return tmp_path


@pytest.mark.parametrize("source", ["gpt2", "bundled"])
def test_two_files_give_the_tokenizer_of_the_library(tmp_path, source):
    """We build it from public classes; the library has the same behind a private name."""
    folder = two_files(tmp_path, source)
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    theirs = tokenizers.ByteLevelBPETokenizer(*files)
    theirs.add_special_tokens(["<|endoftext|>"])
    ours = Tokenizer.from_folder(folder)
    for text in (*TRICKY, DUTY):
        assert ours.encode(text) == theirs.encode(text).ids, text
    assert ours.to_json() == theirs.to_str(pretty=True)


@pytest.mark.parametrize("text", TRICKY, ids=ascii)
def test_tricky_text_comes_back(gpt2, text):
    assert gpt2.decode(gpt2.encode(text)) == text
    assert byte_tokenizer().decode(byte_tokenizer().encode(text)) == text


@given(TEXT)
@settings(deadline=None, max_examples=500)
def test_any_text_comes_back(gpt2, text):
    assert gpt2.decode(gpt2.encode(text)) == text


@given(TEXT)
@settings(deadline=None)
def test_any_text_comes_back_from_a_small_vocabulary(text):
    assert SMALL.decode(SMALL.encode(text)) == text


SMALL = byte_tokenizer()


def test_nothing_is_added_cut_or_padded(tmp_path):
    """Whatever a tokenizer.json asks for, the ids are the text's own."""
    inner = byte_tokenizer()._inner
    inner.enable_truncation(3)
    inner.enable_padding(length=50)
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert len(tokenizer.encode("abcdef")) == 6


def test_a_tokenizer_written_reads_back(tmp_path):
    (tmp_path / "tokenizer.json").write_text(SMALL.to_json(), encoding="utf-8")
    again = Tokenizer.from_folder(str(tmp_path))
    assert again.encode("the cat 👍<|endoftext|>") == SMALL.encode("the cat 👍<|endoftext|>")
    assert again.vocab_size == SMALL.vocab_size == CONFIG.vocab_size


def test_tokenizer_json_comes_before_vocab_and_merges(tmp_path):
    (tmp_path / "tokenizer.json").write_text(SMALL.to_json(), encoding="utf-8")
    (tmp_path / "vocab.json").write_text("never read")
    (tmp_path / "merges.txt").write_text("never read")
    assert Tokenizer.from_folder(tmp_path).vocab_size == SMALL.vocab_size


def test_a_folder_without_a_tokenizer_has_none(tmp_path, gpt2):
    assert Tokenizer.from_folder(tmp_path) is None
    shutil.copy(GPT2_TOKENIZER / "vocab.json", tmp_path)
    assert Tokenizer.from_folder(tmp_path) is None


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json": b"{"},
        {"tokenizer.json": b"\xff"},
        {"vocab.json": b"[]", "merges.txt": b"#version: 0.2\n"},
        {"vocab.json": b"{}", "merges.txt": b"a b\n"},
    ],
    ids=str,
)
def test_broken_files_are_refused_in_one_line(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="tokenizer files cannot be read") as caught:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_half_a_character_is_a_replacement_sign():
    first, *_ = ids = SMALL.encode("é")
    assert len(ids) == 2
    assert SMALL.decode([first]) == "\ufffd"
    assert SMALL.tokens(ids) == ["\ufffd", "\ufffd"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ab", "'ab' is not one token: it is 'a' \\+ 'b'$"),
        ("", "'' is not one token: it is nothing"),
        (" h", "' h' is not one token: it is ' ' \\+ 'h'; 'h' is$"),
    ],
)
def test_a_text_that_is_not_one_token_shows_its_pieces(text, words):
    with pytest.raises(InputError, match=words):
        SMALL.single(text)


def test_a_lone_surrogate_is_refused_in_one_line():
    with pytest.raises(InputError, match="lone surrogates"):
        SMALL.encode("a\ud800b")
