"""The metadata of an exported file, typed. The `gpt2kit.*` keys are named here and nowhere else.

A key is the name of a field of `FileMetadata` after `gpt2kit.`; a value is text, or JSON. The key
`gpt2kit.format` counts the versions of this layout. Files without it are of version 1: the first
files had no such key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gpt2kit.config import GPT2Config
from gpt2kit.errors import EngineError
from gpt2kit.json_files import parse_json
from gpt2kit.runner import Source

FORMAT = 1  # increase it when older code would misread a file
_FORMAT_KEY = "gpt2kit.format"


def _stored(
    encode: Callable[[Any], str], decode: Callable[[str], Any]
) -> Mapping[str, Callable[[Any], Any]]:
    """How a field becomes text in the file, and the inverse."""
    return MappingProxyType({"encode": encode, "decode": decode})


def _checked_json(kind: type, make: Callable[[Any], Any]) -> Callable[[str], Any]:
    """A decoder of JSON that must hold this kind of value, which `make` then converts."""

    def decode(text: str) -> Any:
        value = parse_json(text)
        if not isinstance(value, kind):
            raise ValueError(f"{kind.__name__} expected, got {type(value).__name__}")
        return make(value)

    return decode


@dataclass(frozen=True)
class DataStamp:
    """What a graph says of its external data: length in bytes, and the digest that ends it."""

    length: int
    sha256: str

    def __post_init__(self) -> None:
        if type(self.length) is not int or not re.fullmatch("[0-9a-f]{64}", str(self.sha256)):
            raise ValueError(f"{self!r} must be a number of bytes and a digest")


def data_stamp(metadata: Mapping[str, str], path: Path) -> DataStamp | None:
    """The stamp in a file's metadata; None if there is none. EngineError if it is damaged."""
    if (text := metadata.get("gpt2kit.data")) is None:
        return None
    try:
        stamp: DataStamp = _decode_stamp(text)
    except ValueError as error:
        message = f"{path}: the metadata gpt2kit.data is damaged; export it again"
        raise EngineError(message) from error
    return stamp


def _make_stamp(values: dict[str, Any]) -> DataStamp:
    if values.keys() != {"length", "sha256"}:
        raise ValueError(f"length and sha256 expected, got {list(values)}")
    return DataStamp(**values)


def _only_texts(values: dict[str, Any]) -> dict[str, str]:
    if not all(isinstance(value, str) for value in values.values()):
        raise ValueError("every value must be text")
    return values


def _whole_summary(values: dict[str, Any]) -> dict[str, Any]:
    """A summary of a parity report with what `inspect` shows of it."""
    quantity, error, case = values["worst"]
    numbers = [error, values["tolerance"], values["cases"]]
    if cost := values.get("cost"):
        numbers += [cost["kl"], cost["top1"]]
    texts = isinstance(quantity, str) and isinstance(case, str)
    if not (texts and all(isinstance(number, int | float) for number in numbers)):
        raise ValueError("numbers or texts of the parity summary are of another kind")
    if not isinstance(values["passed"], bool):
        raise ValueError("passed must be true or false")
    return values


_decode_stamp = _checked_json(dict, _make_stamp)
_TEXT = _stored(str, str)
_OPTIONAL_TEXT = _stored(lambda value: value or "", lambda text: text or None)
_INTEGER = _stored(str, int)
_NAMES = _stored(json.dumps, _checked_json(list, lambda names: tuple(map(str, names))))
_TEXTS = _stored(json.dumps, _checked_json(dict, _only_texts))
_SUMMARY = _stored(json.dumps, _checked_json(dict, _whole_summary))
_STAMP = _stored(lambda stamp: json.dumps(asdict(stamp)), _decode_stamp)
_CONFIG = _stored(
    lambda config: json.dumps(config.to_hf()), _checked_json(dict, GPT2Config.from_hf)
)


@dataclass(frozen=True)
class FileMetadata:
    """What an exported file is.

    version: the gpt2kit that wrote it.
    model, revision: the source of the weights, as `gpt2kit.load` takes them.
    weights_sha256: digest of the weights in the file's dtype, before quantisation.
    quantize: "int8", "int4", "int4-all", or None.
    taps, edits: canonical names of the taps that are outputs, and of those that can be edited.
    weights: checkpoint name -> initializer, for weights that the graph holds under another name.
    data: length and digest of the external data; None if the weights are in the file.
    parity: summary of the parity report; None until the file has passed its check.
    parity_sha256: digest of the whole report, which lies beside the file.
    """

    version: str = field(metadata=_TEXT)
    model: str = field(metadata=_TEXT)
    revision: str | None = field(metadata=_OPTIONAL_TEXT)
    weights_sha256: str = field(metadata=_TEXT)
    config: GPT2Config = field(metadata=_CONFIG)
    dtype: str = field(metadata=_TEXT)
    profile: str = field(metadata=_TEXT)
    opset: int = field(metadata=_INTEGER)
    taps: tuple[str, ...] = field(metadata=_NAMES)
    edits: tuple[str, ...] = field(metadata=_NAMES)
    # The first files lack the keys below.
    quantize: str | None = field(default=None, metadata=_OPTIONAL_TEXT)
    weights: dict[str, str] = field(default_factory=dict, metadata=_TEXTS)
    data: DataStamp | None = field(default=None, metadata=_STAMP)
    parity: dict[str, Any] | None = field(default=None, metadata=_SUMMARY)
    parity_sha256: str | None = field(default=None, metadata=_TEXT)

    @property
    def source(self) -> Source:
        """Where the weights came from."""
        return Source(self.model, self.revision)

    @property
    def precision(self) -> str:
        """How the weights are stored: `quantize`, or else `dtype`."""
        return self.quantize or self.dtype

    def to_metadata(self) -> dict[str, str]:
        """Keys and values for the ONNX file. Entries that come later are left out while None."""
        entries = {_FORMAT_KEY: str(FORMAT)}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not (value is None and entry.name.startswith(("data", "parity"))):
                entries[_key(entry)] = entry.metadata["encode"](value)
        return entries

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> FileMetadata:
        """The inverse of `to_metadata`. path: the file, for the message of an error.

        Raises EngineError if a key is missing or damaged, or if a newer gpt2kit wrote the file;
        ConfigError if the model is not one that gpt2kit computes.
        """
        try:
            _check_format(metadata, path)
            values = {
                entry.name: entry.metadata["decode"](metadata[_key(entry)])
                for entry in fields(cls)
                if _key(entry) in metadata or _required(entry)
            }
            return cls(**values)
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise EngineError(
                f"{path}: not made by gpt2kit; make it with `gpt2kit export --onnx`"
            ) from error


def _key(entry: Field[Any]) -> str:
    return f"gpt2kit.{entry.name}"


def _required(entry: Field[Any]) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


def _check_format(metadata: Mapping[str, str], path: Path) -> None:
    """Raise EngineError for a file of a newer format, ValueError if the key is damaged."""
    text = metadata.get(_FORMAT_KEY, "1")
    if not text.isascii():  # int() reads the digits of every script
        raise ValueError(f"{_FORMAT_KEY} = {text!r}")
    found = int(text)
    if found > FORMAT:
        raise EngineError(
            f"{path}: made by a newer gpt2kit (format {found}, this one reads {FORMAT}); "
            "update gpt2kit"
        )
    if found < 1:
        raise ValueError(f"{_FORMAT_KEY} = {found}")
