"""The tokens that files beside a vocabulary add to it, in transformers' order of precedence.

tokenizer_config.json may list every added token (`added_tokens_decoder`); the older files
special_tokens_map.json and added_tokens.json count only if it does not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from gpt2kit.checks import short
from gpt2kit.errors import CheckpointError
from gpt2kit.json_files import read_object

END_OF_TEXT = "<|endoftext|>"
_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_END_OF_TEXT_BY_DEFAULT = ("bos_token", "eos_token", "unk_token")
_LIST = "added_tokens_decoder"
_EXTRA, _OLDER_EXTRA = "extra_special_tokens", "additional_special_tokens"
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")

GivenToken = str | AddedToken  # a text takes the default flags of a special token
Specials = dict[str, GivenToken | None]  # name -> token; None: no such token


@dataclass(frozen=True)
class AddedTokens:
    """The tokens that files add.

    listed: those that have an id in a file. new: those without one, in their order.
    bos, eos: the texts of the tokens that begin and end a text, if there are such tokens.
    """

    listed: dict[int, AddedToken]
    new: list[AddedToken]
    bos: str | None
    eos: str | None


def added_tokens(
    folder: Path, settings: Mapping[str, Any], present: Collection[str], *, ends_text: bool
) -> AddedTokens:
    """The tokens that the files of a folder add to its vocabulary.

    settings: the content of tokenizer_config.json.
    present: tokens that tokenizer.json added; they keep their flags unless a list names them.
    ends_text: `<|endoftext|>` is a special token by default.
    Raises CheckpointError, which names the file, for anything malformed.
    """
    file = folder / _CONFIG
    named, extra = _named(settings, file), _extra(settings, file)
    listed = _listed(settings, file)
    if listed is None:
        older, file = _older_settings(folder, settings), folder / _MAP
        named |= _named(older, file)
        more = _extra(older, file)
        if _EXTRA in older:
            extra, more = extra + more, []
        special = {str(token) for token in (*named.values(), *extra)}
        listed = _older_list(folder / _ADDED, special)
        extra = extra or more
    if ends_text:
        for name in _END_OF_TEXT_BY_DEFAULT:
            named.setdefault(name, END_OF_TEXT)
    texts = {token.content for token in listed.values()} | set(present)
    new: list[GivenToken] = []
    for token in (*_in_order(named), *extra):
        if token is not None and str(token) not in texts and token not in new:
            new.append(token)
    bos, eos = (str(named[name]) if named.get(name) else None for name in _NAMED[:2])
    return AddedTokens(listed, [_special(token) for token in new], bos, eos)


def joined_settings(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The content of tokenizer_config.json, with what only special_tokens_map.json names."""
    names = (_EXTRA, _OLDER_EXTRA)
    kept = names if any(settings.get(name) for name in names) else ()
    older = _older_settings(folder, settings)
    return settings | {name: value for name, value in older.items() if name not in kept}


def _older_settings(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of special_tokens_map.json, if it counts. settings: of tokenizer_config.json."""
    return {} if _LIST in settings else read_object(folder / _MAP)


def _in_order(named: Specials) -> list[GivenToken | None]:
    """The tokens with a well-known name first."""
    others = [token for name, token in named.items() if name not in _NAMED]
    return [named.get(name) for name in _NAMED] + others


def _special(token: GivenToken) -> AddedToken:
    if isinstance(token, AddedToken):
        token.special = True
        return token
    return AddedToken(token, special=True)


def _named(content: Mapping[str, Any], file: Path) -> Specials:
    """The special tokens that have a name of their own."""
    named: Specials = {}
    for name, value in content.items():
        if name in _NAMED and value is None:
            named[name] = None
        elif name in _NAMED or (name.endswith("_token") and isinstance(value, str | dict)):
            named[name] = _token(value, file, name)
    extra = content.get(_EXTRA)
    if isinstance(extra, dict):
        named |= {name: _token(value, file, _EXTRA) for name, value in extra.items()}
    return named


def _extra(content: Mapping[str, Any], file: Path) -> list[GivenToken]:
    """The special tokens without a name, under the new key or else under the older one."""
    name = _EXTRA if content.get(_EXTRA) else _OLDER_EXTRA
    extra = content.get(name) or []
    if isinstance(extra, dict) and name == _EXTRA:
        return []  # these have names
    if not isinstance(extra, list):
        raise CheckpointError(f"{file}: {name} = {short(extra)} must be a list of tokens")
    return [_token(value, file, name) for value in extra]


def _token(value: Any, file: Path, where: str) -> GivenToken:
    """A token from JSON: its text, or an object that also has flags."""
    return value if isinstance(value, str) and value else _flagged(value, file, where)


def _flagged(value: Any, file: Path, where: str) -> AddedToken:
    """A token from a JSON object of its text and its flags."""
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, str) or not content:
        raise CheckpointError(f"{file}: {where} = {short(value)} is not a token")
    flags = {name: value[name] for name in _FLAGS if name in value}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise CheckpointError(f"{file}: {where}: the flags of {content!r} must be true or false")
    return AddedToken(content, **flags)


def _listed(settings: Mapping[str, Any], file: Path) -> dict[int, AddedToken] | None:
    """`added_tokens_decoder`, from ids to tokens; None without one."""
    if _LIST not in settings:
        return None
    if not isinstance(settings[_LIST], dict):
        raise CheckpointError(f"{file}: {_LIST} = {short(settings[_LIST])} must be a JSON object")
    pairs = [(key, _flagged(value, file, _LIST)) for key, value in settings[_LIST].items()]
    for key, _ in pairs:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise CheckpointError(f"{file}: {_LIST}: {short(key)} is not a token id")
    return _by_id([(int(key), token) for key, token in pairs], file)


def _older_list(file: Path, special: Collection[str]) -> dict[int, AddedToken]:
    """added_tokens.json, from tokens to ids, as ids to tokens."""
    pairs = []
    for text, index in read_object(file).items():
        whole = isinstance(index, int) and not isinstance(index, bool)
        if not (text and whole and 0 <= index < 10**9):
            raise CheckpointError(
                f"{file}: {short(text)}: {short(index)} is not a token and its id"
            )
        flag = text in special
        pairs.append((index, AddedToken(text, special=flag, normalized=not flag)))
    return _by_id(pairs, file)


def _by_id(pairs: list[tuple[int, AddedToken]], file: Path) -> dict[int, AddedToken]:
    """Ids to tokens. Raises CheckpointError if two pairs share an id or a text."""
    ids: dict[str, int] = {}
    listed: dict[int, AddedToken] = {}
    for index, token in pairs:
        text = token.content
        if index in listed:
            both = f"{listed[index].content!r} and {text!r}"
            raise CheckpointError(f"{file}: {both} have the same id {index}")
        if text in ids:
            raise CheckpointError(f"{file}: {text!r} has the ids {ids[text]} and {index}")
        listed[index], ids[text] = token, index
    return listed
