"""Text to token ids and back: GPT-2's byte-level BPE, by the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from gpt2kit.checks import check_integers, check_text
from gpt2kit.errors import CheckpointError, InputError
from gpt2kit.json_files import read_object

END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """Encodes a text and adds nothing: no BOS, no padding.

    settings: the content of the source's tokenizer_config.json; {} without one.
    """

    def __init__(
        self, inner: tokenizers.Tokenizer, settings: Mapping[str, Any] | None = None
    ) -> None:
        self._inner = inner
        self.settings: Mapping[str, Any] = dict(settings or {})
        inner.no_truncation()
        inner.no_padding()

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer | None:
        """Read tokenizer.json, else vocab.json and merges.txt; None if the folder has neither."""
        folder = Path(folder)
        file, vocab, merges = (
            folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt")
        )
        settings = read_object(folder / "tokenizer_config.json")
        try:
            if file.is_file():
                return cls(tokenizers.Tokenizer.from_file(str(file)), settings)
            if vocab.is_file() and merges.is_file():
                return cls(_byte_level_bpe(vocab, merges), settings)
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{folder}: tokenizer files cannot be read ({error})") from error
        return None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; `<|endoftext|>` in it is the one special token.

        Raises InputError for anything but text, and for lone surrogates.
        """
        check_text("text", text)
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise InputError("the text holds lone surrogates, which are not UTF-8; remove them")
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; bytes that are not UTF-8 become U+FFFD."""
        row = check_integers("ids", ids).tolist()
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


def _byte_level_bpe(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    """GPT-2's tokenizer from the two files that it was published as."""
    bpe = models.BPE.from_file(
        str(vocab), str(merges), continuing_subword_prefix="", end_of_word_suffix=""
    )
    inner = tokenizers.Tokenizer(bpe)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    inner.add_special_tokens([END_OF_TEXT])
    return inner


def printable(token: str) -> str:
    """A token on one line: line breaks and control characters become visible signs."""
    return token.translate(_SIGNS)


_SIGNS = {code: chr(0x2400 + code) for code in range(32)}
_SIGNS |= dict.fromkeys([*range(0x80, 0xA0), 0x2028, 0x2029], "␦")  # some terminals act on these
_SIGNS |= str.maketrans({"\n": "⏎", "\t": "⇥", "\x7f": "␡"})
