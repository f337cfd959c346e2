"""Prompts, positions and tokens as users give them, checked and turned into numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt2kit.batch import prepare
from gpt2kit.errors import InputError
from gpt2kit.readout import Ints
from gpt2kit.runner import Runner
from gpt2kit.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Selection = Sequence[int] | slice | None
Token = str | int  # a text that is one token, its leading space included, or an id


def prompt_ids(runner: Runner, prompt: Prompt, *, prepend_bos: bool = False) -> Ints:
    """(N,) token ids of a text, or those given; with `<|endoftext|>` first if asked for.

    Raises InputError for no tokens or too many, and for what is not a row of ids of the vocabulary.
    """
    ids = np.asarray(encode(runner, prompt)) if isinstance(prompt, str) else row_of_ids(prompt)
    if prepend_bos:
        if runner.config.bos_token_id is None:
            raise InputError(f"{runner.source} has no BOS token in its config")
        ids = np.array([runner.config.bos_token_id, *ids], np.int64)
    checked: Ints = prepare(ids, None, None, runner.config).ids[0]
    return checked


def row_of_ids(ids: Any) -> Ints:
    """(N,) what must be one row of at least one whole number. Raises InputError if it is not."""
    try:
        row = np.asarray(ids)
    except ValueError as error:  # rows of different lengths
        raise InputError("a prompt is a text or a row of token ids, not several rows") from error
    if not row.size:
        raise InputError("the prompt has no tokens; give at least one")
    if row.ndim != 1 or row.dtype.kind not in "iu":
        what = f"{row.dtype} of shape {row.shape}"
        raise InputError(f"a prompt is a text or a row of token ids, not {what}")
    return row.astype(np.int64)


def tokenizer_of(runner: Runner) -> Tokenizer:
    """The runner's tokenizer. Raises InputError if it has none."""
    if runner.tokenizer is None:
        raise InputError(f"{runner.source} has no tokenizer to name tokens with")
    return runner.tokenizer


def token_texts(runner: Runner, ids: Ints) -> tuple[str, ...]:
    """The text of each id; the id itself without a tokenizer."""
    if runner.tokenizer is None:
        return tuple(str(i) for i in ids)
    return tuple(runner.tokenizer.tokens(ids.tolist()))


def token_id(runner: Runner, token: Token, name: str = "token") -> int:
    """The id of a text that is one token, or the id given. Raises InputError, naming `name`."""
    if isinstance(token, str):
        if runner.tokenizer is None:
            raise InputError(f"{runner.source} has no tokenizer to look {token!r} up; give its id")
        return runner.tokenizer.single(token)
    if not isinstance(token, int | np.integer) or isinstance(token, bool):
        raise InputError(f"{name} = {token!r} is neither a text nor a token id")
    size = runner.config.vocab_size
    if not 0 <= token < size:
        raise InputError(f"token id {token} is outside the vocabulary of {size}")
    return int(token)


def check_foil(target: Token, target_id: int, foil_id: int) -> None:
    """Raise InputError if target and foil are one token. target: as the user gave it."""
    if target_id == foil_id:
        raise InputError(
            f"target and foil are both {target!r}, whose difference is always 0; name two tokens"
        )


def token_ids(runner: Runner, tokens: Token | Sequence[Token], name: str = "targets") -> Ints:
    """(T,) ids of one token or several, each a text that is one token or an id.

    name: of the argument, for errors. Raises InputError for anything else.
    """
    single = isinstance(tokens, str | int | np.integer)
    if not single and not isinstance(tokens, Sequence | np.ndarray):
        raise InputError(f"{name} = {tokens!r} must be a token or a list of tokens")
    each: Any = [tokens] if single else tokens
    for token in each:
        if not isinstance(token, str | int | np.integer) or isinstance(token, bool):
            raise InputError(f"{name}: {token!r} is neither the text nor the id of a token")
    return np.array([token_id(runner, token) for token in each], np.int64)


def index(position: int, length: int, what: str = "position", where: str = "the prompt") -> int:
    """A position counted from 0; the one given may count from the end. Raises InputError."""
    if not isinstance(position, int | np.integer) or isinstance(position, bool):
        raise InputError(f"{what} {position!r} must be an integer, got {type(position).__name__}")
    if not -length <= position < length:
        has = counted(length, "token")
        raise InputError(f"{what} {position} does not lie in {where}, which has {has}")
    return position % length


def select(where: Selection, size: int, what: str) -> Ints:
    """Indices of an axis: those given, negative ones from the end, or all."""
    every = np.arange(size)
    if where is None:
        return every
    try:
        chosen = np.atleast_1d(every[where if isinstance(where, slice) else np.asarray(where)])
    except (IndexError, ValueError) as error:  # out of range; a slice with step 0
        raise InputError(
            f"{what} {where} are not among the {size} there are, 0 to {size - 1}"
        ) from error
    if not chosen.size:
        raise InputError(f"{what} {where} select none of the {size} there are")
    return chosen


def counted(number: int, noun: str) -> str:
    """ "1 token", "2 tokens"."""
    return f"{number} {noun}" + "s" * (number != 1)


def encode(runner: Runner, prompt: str) -> list[int]:
    """Token ids of a prompt, checked to be non-empty and to fit the context."""
    if not isinstance(prompt, str):
        raise InputError(f"a prompt must be text, got {type(prompt).__name__}; one at a time")
    if runner.tokenizer is None:
        raise InputError(
            f"{runner.source} has no tokenizer: tokenizer.json is missing beside the model"
        )
    ids = runner.tokenizer.encode(prompt)
    if not ids:
        raise InputError("the prompt is empty; give some text (or <|endoftext|> to start from)")
    if len(ids) > runner.config.n_positions:
        raise InputError(
            f"the prompt has {len(ids)} tokens, the context holds {runner.config.n_positions}; "
            "shorten it"
        )
    return ids
