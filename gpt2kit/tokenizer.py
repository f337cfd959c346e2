"""Text to token ids and back: GPT-2's byte-level BPE, by the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from gpt2kit.added_tokens import END_OF_TEXT, added_tokens, joined_settings
from gpt2kit.checks import check_integers, check_text, short
from gpt2kit.errors import CheckpointError, InputError
from gpt2kit.json_files import read_object
from gpt2kit.panics import explained_panics

_GPT2_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")


class Tokenizer:
    """Encodes a text and adds nothing: no BOS, no padding.

    settings: the content of the source's tokenizer_config.json, with the special tokens that only
        special_tokens_map.json names; {} without these files.
    """

    def __init__(
        self, inner: tokenizers.Tokenizer, settings: Mapping[str, Any] | None = None
    ) -> None:
        self._inner = inner
        self.settings: Mapping[str, Any] = dict(settings or {})
        # Only tokenizers with regular expressions of their own are known to panic.
        parts = (inner.normalizer, inner.pre_tokenizer, inner.decoder)
        self._has_regex = any("Regex(" in str(part) for part in parts)
        inner.no_truncation()
        inner.no_padding()

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer | None:
        """Read tokenizer.json, else vocab.json and merges.txt; None if the folder has neither.

        The files beside them add tokens and settings, as transformers reads them; an id that a
        file gives to a token is kept. Raises CheckpointError for a damaged file, or for two files
        that disagree about an id.
        """
        folder = Path(folder)
        inner = _read_vocabulary(folder)
        if inner is None:
            return None
        settings = read_object(folder / "tokenizer_config.json")
        inner = _with_sidecars(inner, folder, settings)
        return cls(inner, joined_settings(folder, settings))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; `<|endoftext|>` in it is the one special token.

        Raises InputError for anything but text, and for lone surrogates; CheckpointError if the
        tokenizer's own regular expressions take too long.
        """
        check_text("text", text)
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise InputError("the text holds lone surrogates, which are not UTF-8; remove them")
        with explained_panics(quiet=self._has_regex):
            ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; bytes that are not UTF-8 become U+FFFD."""
        row = check_integers("ids", ids).tolist()
        with explained_panics(quiet=self._has_regex):
            text: str = self._inner.decode(row, skip_special_tokens=False)
        return text

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The text of each id by itself."""
        return [self.decode([i]) for i in check_integers("ids", ids).tolist()]

    def single(self, text: str) -> int:
        """The id of a text that is one token. Raises InputError, with its pieces, if it is not."""
        ids = self.encode(text)
        if len(ids) != 1:
            pieces = " + ".join(repr(piece) for piece in self.tokens(ids)) or "nothing"
            other = text.lstrip() if text.startswith(" ") else f" {text}"
            hint = f"; {other!r} is" if len(self.encode(other)) == 1 else ""
            raise InputError(f"{text!r} is not one token: it is {pieces}{hint}")
        return ids[0]

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        size: int = self._inner.get_vocab_size()
        return size

    def to_json(self) -> str:
        """The content of a tokenizer.json."""
        text: str = self._inner.to_str(pretty=True)
        return text


def _read_vocabulary(folder: Path) -> tokenizers.Tokenizer | None:
    """The tokenizer of tokenizer.json, or of vocab.json and merges.txt, without other files."""
    file, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if file.is_file():
            return tokenizers.Tokenizer.from_file(str(file))
        if vocab.is_file() and merges.is_file():
            return _byte_level_bpe(vocab, merges)
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{folder}: tokenizer files cannot be read ({error})") from error
    return None


def _byte_level_bpe(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    """GPT-2's tokenizer from the two files that it was published as."""
    bpe = models.BPE.from_file(
        str(vocab), str(merges), continuing_subword_prefix="", end_of_word_suffix=""
    )
    inner = tokenizers.Tokenizer(bpe)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    return inner


def _with_sidecars(
    inner: tokenizers.Tokenizer, folder: Path, settings: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    """Add the tokens and settings that other files of the folder give."""
    file, kind = folder / "tokenizer_config.json", settings.get("tokenizer_class")
    if not isinstance(kind, str | None):
        raise CheckpointError(f"{file}: tokenizer_class = {short(kind)} must be text")
    whole = (folder / "tokenizer.json").is_file()
    of_gpt2 = kind in _GPT2_CLASSES or not whole
    present = {token.content for token in inner.get_added_tokens_decoder().values()}
    ends_text = of_gpt2 and inner.token_to_id(END_OF_TEXT) is not None
    try:
        added = added_tokens(folder, settings, present, ends_text=ends_text)
        inner = _with_ids(inner, added.listed, folder)
        inner.add_tokens([added.listed[i] for i in sorted(added.listed)] + added.new)
    except (TypeError, ValueError) as error:  # lone surrogates; a vocabulary of another kind
        raise CheckpointError(f"{folder}: tokens cannot be added ({error})") from error
    if of_gpt2 and isinstance(inner.pre_tokenizer, pre_tokenizers.ByteLevel):
        inner.pre_tokenizer.add_prefix_space = _switch(settings, "add_prefix_space", file)
    inner.encode_special_tokens = _switch(settings, "split_special_tokens", file)
    if not whole:  # tokenizer.json says this itself
        _frame(
            inner,
            added.bos if _switch(settings, "add_bos_token", file) else None,
            added.eos if _switch(settings, "add_eos_token", file) else None,
        )
    return inner


def _frame(inner: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """Let programs that add special tokens put these around a text; `encode` here adds none."""
    frame = {text: inner.token_to_id(text) for text in (bos, eos) if text is not None}
    if frame:
        first, last = ([] if text is None else [f"{text}:0"] for text in (bos, eos))
        inner.post_processor = processors.TemplateProcessing(
            single=[*first, "$A:0", *last], special_tokens=list(frame.items())
        )


def _with_ids(
    inner: tokenizers.Tokenizer, listed: Mapping[int, AddedToken], folder: Path
) -> tokenizers.Tokenizer:
    """Make sure that each listed token will get its id.

    The library numbers added tokens from the size of the vocabulary on, without gaps. Tokens with
    other ids are put into the vocabulary itself. Raises CheckpointError if the vocabulary has such
    a token under another id, or another token under the same id.
    """
    for index, token in listed.items():
        found, holder = inner.token_to_id(token.content), inner.id_to_token(index)
        if (index if found is None else found, holder or token.content) != (index, token.content):
            raise CheckpointError(
                f"{folder}: {token.content!r} is added as token {index}, but the vocabulary has "
                + (f"{holder!r} there" if found is None else f"it as token {found}")
            )
    new = {t.content: i for i, t in listed.items() if inner.token_to_id(t.content) is None}
    size = inner.get_vocab_size()
    if sorted(new.values()) == list(range(size, size + len(new))):
        return inner
    content = json.loads(inner.to_str())
    content["model"]["vocab"] |= inner.get_vocab() | new
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _switch(settings: Mapping[str, Any], name: str, file: Path) -> bool:
    """A setting that is on or off; off by default."""
    value = settings.get(name)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{file}: {name} = {short(value)} must be true or false")
    return bool(value)
