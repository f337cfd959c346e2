"""The files beside a vocabulary: ids and texts are those of transformers."""

import itertools
import json
import shutil
from pathlib import Path

import pytest

from gpt2kit import Tokenizer, added_tokens
from gpt2kit.errors import CheckpointError
from gpt2kit.torch_engine import hub
from tests.conftest import GPT2_TOKENIZER, MERGES, byte_tokenizer

transformers = pytest.importorskip("transformers")

SIZE = byte_tokenizer().vocab_size  # the last token is <|endoftext|>
LISTED = {
    "content": "<user>",
    "lstrip": False,
    "rstrip": True,
    "single_word": False,
    "normalized": False,
    "special": True,
}
TEXTS = [
    "",
    "the cat",
    " the",
    "<user> the",
    "the<user>the <sys>the",
    "a<|endoftext|> b <|endoftext|>",
    "<x><y> <pad>x <extra> <usera <user>a <user>",
    "é<user>👍",
]
SETTINGS = {
    "none": None,
    "empty": {},
    "prefix": {"add_prefix_space": True},
    "split": {"split_special_tokens": True},
    "listed": {
        "added_tokens_decoder": {
            str(SIZE): LISTED,
            str(SIZE - 1): LISTED | {"content": "<|endoftext|>", "lstrip": True},
        },
        "pad_token": "<pad>",
    },
    "specials": {
        "tokenizer_class": "GPT2TokenizerFast",
        "additional_special_tokens": ["<x>", "<y>"],
        "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": True},
        "unk_token": None,
        "image_token": "<extra>",
        "add_bos_token": False,
    },
    "dictionary": {"extra_special_tokens": {"video_token": "<x>", "sound": "<y>"}},
    "foreign": {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True},
}
MAPS = {
    "none": None,
    "texts": {"pad_token": "<pad>", "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    "objects": {
        "eos_token": {"content": "<|endoftext|>", "rstrip": True, "normalized": True},
        "mask_token": {"content": "<sys>", "lstrip": True},
        "additional_special_tokens": ["<y>", "<user>"],
    },
    "extra": {"extra_special_tokens": ["<x>", {"content": "<user>", "single_word": True}]},
}
ADDED = {
    "none": None,
    "one": {"<user>": SIZE},
    "more": {"<usera": SIZE + 2, "<user>": SIZE, "<pad>": SIZE + 1, "the": 258},
}


def write(folder, kind: str, *, endoftext: bool = True, **sidecars) -> None:
    """A tokenizer of this kind, and the files beside it; None is no file."""
    words = sorted(byte_tokenizer()._inner.get_vocab().items(), key=lambda item: item[1])
    vocab = {word: i for word, i in words if endoftext or word != "<|endoftext|>"}
    if kind == "tokenizer.json":
        (folder / kind).write_text(byte_tokenizer().to_json())
    else:
        (folder / "vocab.json").write_text(json.dumps(vocab))
        merges = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
        (folder / "merges.txt").write_text("\n".join(merges))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    for name, content in sidecars.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))


def check_same(folder, texts=TEXTS) -> None:
    """Ours reads the folder as transformers does."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_folder(folder)
    assert ours.vocab_size == len(theirs)
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text


COMBINATIONS = [
    (kind, *names)
    for kind in ("vocab.json", "tokenizer.json")
    for names in itertools.product(SETTINGS, MAPS, ADDED)
    if (kind, names[0]) != ("vocab.json", "foreign")  # transformers cannot read that
]


@pytest.mark.parametrize(("kind", "settings", "older", "added"), COMBINATIONS)
def test_the_ids_are_those_of_transformers(tmp_path, kind, settings, older, added):
    write(
        tmp_path,
        kind,
        tokenizer_config=SETTINGS[settings],
        special_tokens_map=MAPS[older],
        added_tokens=ADDED[added],
    )
    check_same(tmp_path)


FRAMED = {
    "bos": {"add_bos_token": True},
    "both": {"add_bos_token": True, "add_eos_token": True, "eos_token": "<eos>"},
}


@pytest.mark.parametrize("settings", SETTINGS | FRAMED)
@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("kind", ["vocab.json", "tokenizer.json"])
def test_transformers_reads_the_export_like_the_source(tmp_path, kind, settings, added):
    """With the special tokens that transformers adds of itself."""
    if (kind, settings) == ("vocab.json", "foreign"):
        pytest.skip("transformers cannot read that")
    source, export = tmp_path / "source", tmp_path / "export"
    source.mkdir()
    export.mkdir()
    files = {"tokenizer_config": (SETTINGS | FRAMED)[settings], "added_tokens": ADDED[added]}
    write(source, kind, **files)
    ours = Tokenizer.from_folder(source)
    (export / "config.json").write_text('{"model_type": "gpt2"}')
    (export / "tokenizer.json").write_text(ours.to_json())
    (export / "tokenizer_config.json").write_text(json.dumps(ours.settings))
    before, after = (transformers.AutoTokenizer.from_pretrained(x) for x in (source, export))
    assert [after(text)["input_ids"] for text in TEXTS] == [before(t)["input_ids"] for t in TEXTS]
    check_same(source)


@pytest.mark.parametrize(("settings", "older", "added"), itertools.product(SETTINGS, MAPS, ADDED))
def test_what_is_written_reads_back_the_same(tmp_path, settings, older, added):
    """An export writes tokenizer.json and tokenizer_config.json alone."""
    sidecars = {"special_tokens_map": MAPS[older], "added_tokens": ADDED[added]}
    write(tmp_path, "vocab.json", tokenizer_config=SETTINGS[settings], **sidecars)
    first = Tokenizer.from_folder(tmp_path)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "tokenizer.json").write_text(first.to_json())
    (tmp_path / "export" / "tokenizer_config.json").write_text(json.dumps(first.settings))
    again = Tokenizer.from_folder(tmp_path / "export")
    assert again.to_json() == first.to_json()
    assert [again.encode(text) for text in TEXTS] == [first.encode(text) for text in TEXTS]


def test_the_hub_is_asked_for_every_file_that_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(Path, "is_file", lambda path: read.append(path.name) or False)
    assert Tokenizer.from_folder(tmp_path) is None
    monkeypatch.undo()
    assert read == ["tokenizer.json", "vocab.json"]
    others = {added_tokens._CONFIG, added_tokens._MAP, added_tokens._ADDED, "merges.txt"}
    assert {*read, *others} <= set(hub.SMALL_FILES)


def test_gpt2_grown_by_a_token(tmp_path):
    for name in ("vocab.json", "merges.txt"):
        if not GPT2_TOKENIZER.is_dir():
            pytest.skip("GPT-2's vocabulary is not at hand")
        shutil.copy(GPT2_TOKENIZER / name, tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<|user|>": 50257}')
    assert Tokenizer.from_folder(tmp_path).encode("<|user|>Hi") == [50257, 17250]
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    assert Tokenizer.from_folder(tmp_path).encode("Hello world") == [18435, 995]


def test_the_end_of_text_is_not_added_to_a_vocabulary_that_lacks_it(tmp_path):
    write(tmp_path, "vocab.json", endoftext=False)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.vocab_size == SIZE - 1
    assert len(tokenizer.encode("<|endoftext|>")) == len("<|endoftext|>")
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
    assert Tokenizer.from_folder(tmp_path).encode("<|endoftext|>") == [SIZE - 1]


@pytest.mark.parametrize("kind", ["vocab.json", "tokenizer.json"])
@pytest.mark.parametrize("ids", [(300, 290), (SIZE + 1, SIZE + 7)])
def test_the_ids_of_the_file_are_kept_with_gaps(tmp_path, kind, ids):
    """The model was trained with these ids, whatever the size of the vocabulary."""
    write(tmp_path, kind, added_tokens=dict(zip(["<a>", "<b>"], ids, strict=True)))
    tokenizer = Tokenizer.from_folder(tmp_path)
    text = "he<a> the<b><|endoftext|>"
    rest = Tokenizer(byte_tokenizer()._inner).encode
    assert tokenizer.encode(text) == [*rest("he"), ids[0], *rest(" the"), ids[1], SIZE - 1]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "tokenizer.json").write_text(tokenizer.to_json())
    assert Tokenizer.from_folder(tmp_path / "export").encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "added_tokens",
            {"<a>": 5},
            "'<a>' is added as token 5, but the vocabulary has '.*' there",
        ),
        ("added_tokens", {"he": 300}, "'he' is added .* the vocabulary has it as token 256"),
        ("added_tokens", {"<a>": SIZE, "<b>": SIZE}, "'<a>' and '<b>' have the same id"),
        ("added_tokens", {"<a>": "261"}, "'<a>': '261' is not a token and its id"),
        ("added_tokens", {"<a>": -1}, "not a token and its id"),
        ("added_tokens", {"<a>": True}, "not a token and its id"),
        ("added_tokens", {"": SIZE}, "not a token and its id"),
        ("added_tokens", {"<a>": 10**30}, "not a token and its id"),
        ("added_tokens", [], "holds list, not a JSON object"),
        ("special_tokens_map", {"pad_token": 5}, "pad_token = 5 is not a token"),
        ("special_tokens_map", {"pad_token": ""}, "pad_token = '' is not a token"),
        ("special_tokens_map", {"pad_token": {"content": "a", "lstrip": 1}}, "flags of 'a' must"),
        ("special_tokens_map", {"additional_special_tokens": "a"}, "must be a list of tokens"),
        ("special_tokens_map", {"additional_special_tokens": [None]}, "None is not a token"),
        ("special_tokens_map", "a", "holds str, not a JSON object"),
        ("tokenizer_config", {"added_tokens_decoder": []}, r"\[\] must be a JSON object"),
        ("tokenizer_config", {"added_tokens_decoder": {"x": LISTED}}, "'x' is not a token id"),
        ("tokenizer_config", {"added_tokens_decoder": {"-1": LISTED}}, "'-1' is not a token id"),
        ("tokenizer_config", {"added_tokens_decoder": {"261": "<a>"}}, "'<a>' is not a token"),
        (
            "tokenizer_config",
            {"added_tokens_decoder": {"261": LISTED, "262": LISTED}},
            "'<user>' has the ids 261 and 262",
        ),
        ("tokenizer_config", {"extra_special_tokens": {"a": 1}}, "extra_special_tokens = 1 is not"),
        ("tokenizer_config", {"add_prefix_space": "yes"}, "add_prefix_space = 'yes' must be true"),
        ("tokenizer_config", {"split_special_tokens": 1}, "split_special_tokens = 1 must be true"),
        ("tokenizer_config", {"tokenizer_class": []}, r"tokenizer_class = \[\] must be text"),
        ("added_tokens", {"\ud800": SIZE}, "tokens cannot be added .*surrogates"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["vocab.json", "tokenizer.json"])
def test_a_malformed_file_is_one_line_that_names_it(tmp_path, kind, name, content, words):
    write(tmp_path, kind, **{name: content})
    with pytest.raises(CheckpointError, match=words) as caught:
        Tokenizer.from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
