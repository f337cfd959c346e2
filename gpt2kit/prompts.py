"""Prompts, positions and tokens as users give them, checked and turned into numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gpt2kit.batch import prepare
from gpt2kit.checks import as_int64, check_flag, short
from gpt2kit.errors import InputError
from gpt2kit.readout import Ints
from gpt2kit.runner import Runner
from gpt2kit.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Selection = Sequence[int] | slice | None
Token = str | int  # a text that is one token, its leading space included, or an id


def prompt_ids(runner: Runner, prompt: Prompt, *, prepend_bos: bool = False) -> Ints:
    """(N,) token ids of a prompt, which is a text or a row of ids.

    prepend_bos: put `<|endoftext|>` first.
    Raises InputError for no tokens, too many, an id outside the vocabulary, or anything else.
    """
    check_flag("prepend_bos", prepend_bos)
    ids = np.asarray(encode(runner, prompt)) if isinstance(prompt, str) else row_of_ids(prompt)
    if prepend_bos:
        if runner.config.bos_token_id is None:
            raise InputError(f"{runner.source} has no BOS token in its config")
        ids = np.array([runner.config.bos_token_id, *ids], np.int64)
    checked: Ints = prepare(ids, None, None, runner.config).ids[0]
    return checked


def row_of_ids(ids: Any) -> Ints:
    """(N,) one row of at least one integer. Raises InputError for anything else."""
    try:
        row = np.asarray(ids)
    except (ValueError, RuntimeError) as error:  # rows of unequal length; a tensor on a GPU
        raise InputError("a prompt is a text or a row of token ids, not several rows") from error
    if not row.size:
        raise InputError("the prompt has no tokens; give at least one")
    if row.ndim != 1 or row.dtype.kind not in "iu":
        what = f"{row.dtype} of shape {row.shape}"
        raise InputError(f"a prompt is a text or a row of token ids, not {what}")
    return as_int64(row)


def encode(runner: Runner, prompt: str, *, window: int | None = None) -> list[int]:
    """Token ids of a text. Raises InputError if it is empty or does not fit the context.

    window: with one (see `gpt2kit.generate`), the text may be longer than the context.
    """
    if not isinstance(prompt, str):
        raise InputError(f"a prompt must be text, got {type(prompt).__name__}; one at a time")
    if runner.tokenizer is None:
        raise InputError(
            f"{runner.source} has no tokenizer: tokenizer.json is missing beside the model"
        )
    ids = runner.tokenizer.encode(prompt)
    if not ids:
        raise InputError("the prompt is empty; give some text (or <|endoftext|> to start from)")
    if window is None and len(ids) > runner.config.n_positions:
        raise InputError(
            f"the prompt has {len(ids)} tokens, the context holds {runner.config.n_positions}; "
            "shorten it"
        )
    return ids


def tokenizer_of(runner: Runner) -> Tokenizer:
    """The runner's tokenizer. Raises InputError if it has none."""
    if runner.tokenizer is None:
        raise InputError(f"{runner.source} has no tokenizer to name tokens with")
    return runner.tokenizer


def token_texts(runner: Runner, ids: Ints) -> tuple[str, ...]:
    """The text of each id; without a tokenizer, the id itself."""
    if runner.tokenizer is None:
        return tuple(str(i) for i in ids)
    return tuple(runner.tokenizer.tokens(ids.tolist()))


def token_id(runner: Runner, token: Token, name: str = "token") -> int:
    """The id of one token, given as text or as id.

    name: the argument, for the message. Raises InputError for a text that is not exactly one token,
    an id outside the vocabulary, or anything else, such as a list.
    """
    if isinstance(token, str):
        if runner.tokenizer is None:
            raise InputError(f"{runner.source} has no tokenizer to look {token!r} up; give its id")
        return runner.tokenizer.single(token)
    if not isinstance(token, int | np.integer) or isinstance(token, bool):
        raise InputError(f"{name} = {short(token)} is neither a text nor a token id")
    size = runner.config.vocab_size
    if not 0 <= token < size:
        where = "" if name == "token" else f"{name}: "
        raise InputError(f"{where}token id {token} is outside the vocabulary of {size}")
    return int(token)


def token_ids(
    runner: Runner, tokens: Token | Sequence[Token] | Ints, name: str = "targets"
) -> Ints:
    """(n,) ids of one token or several, each given as text or as id.

    name: the argument, for the message. Raises InputError as `token_id` does.
    """
    if isinstance(tokens, str | int | np.integer):
        return np.array([token_id(runner, tokens, name)], np.int64)
    given: Any = np.atleast_1d(tokens).tolist() if isinstance(tokens, np.ndarray) else tokens
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise InputError(f"{name} = {short(given)} must be a token or a list of tokens")
    return np.array([token_id(runner, token, name) for token in given], np.int64)


def check_foil(target: Token, target_id: int, foil_id: int) -> None:
    """Raise InputError if target and foil are the same token.

    target: as the user gave it, for the message.
    """
    if target_id == foil_id:
        raise InputError(
            f"target and foil are both {target!r}, whose difference is always 0; name two tokens"
        )


def index(position: int, length: int, what: str = "position", where: str = "the prompt") -> int:
    """A position counted from 0; a negative one counts from the end.

    Raises InputError if `position` is not an integer or does not lie in `where`.
    """
    if not isinstance(position, int | np.integer) or isinstance(position, bool):
        kind = type(position).__name__
        raise InputError(f"{what} {short(position)} must be an integer, got {kind}")
    if not -length <= position < length:
        has = counted(length, "token")
        raise InputError(f"{what} {position} does not lie in {where}, which has {has}")
    return int(position % length)


def select(where: Selection, size: int, what: str) -> Ints:
    """Indices of an axis: those in `where`, negative ones counted from the end; None is all.

    what: what is selected, for the message: "heads". Raises InputError if `where` selects nothing
    or something outside the axis.
    """
    every = np.arange(size)
    if where is None:
        return every
    try:
        chosen = np.atleast_1d(every[where if isinstance(where, slice) else np.asarray(where)])
    except (IndexError, ValueError, TypeError) as error:  # out of range; not integers; step 0
        raise InputError(
            f"{what} {short(where)} are not among the {size} there are, 0 to {size - 1}"
        ) from error
    if not chosen.size:
        raise InputError(f"{what} {short(where)} select none of the {size} there are")
    if chosen.ndim > 1:  # True, or rows of indices
        raise InputError(f"{what} = {short(where)} must be one row of integers, or a slice")
    return chosen


def counted(number: int, noun: str) -> str:
    """ "1 token", "2 tokens"."""
    return f"{number} {noun}" + "s" * (number != 1)
