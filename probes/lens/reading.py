"""Residual vectors read as predictions: what the logit lens and the tuned lens share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit.checks import check_top_k
from gpt2kit.errors import InternalError
from gpt2kit.finite import finite_readout, finite_run
from gpt2kit.prompts import Prompt, Selection, Token, prompt_ids, select, token_ids, token_texts
from gpt2kit.readout import Floats, Ints, Readout
from gpt2kit.result import prompt_header
from gpt2kit.runner import Runner
from probes.core.tolerances import logit_tolerance
from probes.lens.lens_result import LogitLens

Targets = Token | Sequence[Token]
Translate = Callable[[Floats], Floats]  # (R, P, d_model) -> the same shape


def read_lens(
    runner: Runner,
    prompt: Prompt,
    rows: Sequence[str],
    *,
    kind: str,
    top_k: int,
    targets: Targets,
    positions: Selection,
    prepend_bos: bool,
    translate: Translate | None = None,
) -> LogitLens:
    """Read the taps `rows` at each position through ln_f and the unembedding.

    rows: the last one is the final residual stream. translate: is applied to the streams (R, P,
    d_model) before they are read; it must leave the last row as it is. For the other options, see
    `logit_lens`.
    """
    ids = prompt_ids(runner, prompt, prepend_bos=prepend_bos)
    wanted = token_ids(runner, targets, "targets")
    top_k = check_top_k(top_k, runner.config.vocab_size)
    columns = select(positions, len(ids), "positions")
    following = np.append(ids[1:], -1)[columns]
    resid, own = _streams(runner, ids, rows, columns)
    if translate is not None:
        resid = translate(resid)
    followed = np.column_stack(
        [np.maximum(following, 0), np.broadcast_to(wanted, (len(columns), len(wanted)))]
    )
    read = finite_readout(runner, resid, top_k=top_k, targets=followed, reference=resid[-1])
    _check_last_row(read, int(columns.argmax()), *own, runner.precision)
    return LogitLens(
        **prompt_header(runner, ids, has_bos=prepend_bos),
        kind=kind,
        rows=tuple(rows),
        positions=columns,
        next_ids=following,
        targets=token_texts(runner, wanted),
        top_tokens=_top_texts(runner, read.top_ids),
        **_statistics(read, following >= 0),
    )


def _statistics(read: Readout, has_next: NDArray[np.bool_]) -> dict[str, Any]:
    """The arrays of a LogitLens. read: its first target is the token that follows.

    has_next: (P,) whether a token follows.
    """
    assert read.target_logprobs is not None
    assert read.target_ranks is not None
    assert read.kl is not None
    return {
        "top_ids": read.top_ids,
        "top_logprobs": read.top_logprobs,
        "log_z": read.log_z,
        "entropy": read.entropy,
        "kl": read.kl,
        "next_logprobs": np.where(has_next, read.target_logprobs[..., 0], np.nan),
        "next_ranks": np.where(has_next, read.target_ranks[..., 0], -1),
        "target_logprobs": read.target_logprobs[..., 1:],
        "target_ranks": read.target_ranks[..., 1:],
    }


def _streams(
    runner: Runner, ids: Ints, rows: Sequence[str], columns: Ints
) -> tuple[Floats, tuple[Floats, Ints]]:
    """(R, P, d_model) the taps at some columns; and the largest logits of the last of these columns
    with their tokens, both (2,), or (1,) for a vocabulary of 1, by the model itself.

    Tokens after the last column change nothing, so they are not run.
    """
    two = min(2, runner.config.vocab_size)
    run = finite_run(runner, ids[: columns.max() + 1], taps=rows, last_only=True, top_k=two)
    assert run.top_ids is not None
    resid = np.stack([run.taps[row][0, columns] for row in rows])
    return resid, (run.logits[0, -1], run.top_ids[0, -1])


def _top_texts(runner: Runner, ids: Ints) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """(R, P, top_k) token ids as text; each id is looked up once."""
    unique = np.unique(ids)
    text = dict(zip(unique.tolist(), token_texts(runner, unique), strict=True))
    return tuple(tuple(tuple(text[i] for i in cell) for cell in row) for row in ids.tolist())


def _check_last_row(read: Readout, column: int, logits: Floats, ids: Ints, precision: str) -> None:
    """Raise InternalError unless the last row is the model's own prediction at one column.

    logits, ids: (2,) the model's two largest logits there, and their tokens; (1,) where there is
    one token.
    """
    allowed = logit_tolerance(precision) * max(1.0, float(np.abs(logits).max()))
    apart = abs(read.top_logprobs[-1, column, 0] + read.log_z[-1, column] - logits[0])
    if logits[0] - logits[-1] > 2 * allowed and read.top_ids[-1, column, 0] != ids[0]:
        apart = np.inf
    if not apart <= allowed:
        raise InternalError(
            f"the lens' last row is {apart:.2e} from the model's logits at column {column}"
        )
