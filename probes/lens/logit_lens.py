"""Logit lens: what the model would predict if it stopped after each layer.

nostalgebraist 2020, "interpreting GPT: the logit lens": the residual stream after a layer is read
through the final layer norm, with a scale of its own, and the unembedding.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType

from gpt2kit.errors import GPT2KitError, InputError
from gpt2kit.prompts import Prompt, Selection, prompt_ids, select, tokenizer_of
from gpt2kit.readout import Floats, Ints, Readout
from gpt2kit.result import Result
from gpt2kit.runner import Runner

SITES = {"resid": "resid_post", "mid": "resid_mid", "attn": "attn_out", "mlp": "mlp_out"}
QUANTITIES = ("prob", "logit", "rank", "entropy", "kl")
# How far the lens' last row may be from the model's logits, relative to the largest of them:
# the same product in another order.
_TOLERANCE = {"float16": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True, eq=False)
class LogitLens(Result):
    """Next-token predictions by layer and position.

    Rows (R) are the taps in `rows`, bottom to top of the model; the last is always the final
    residual stream, whose statistics are the model's own. Columns (P) are `positions`.
    Logarithms are natural.
    """

    kind: str  # "logit lens" or "tuned lens"
    source: str  # model, and revision if one was named
    dtype: str
    has_bos: bool  # whether <|endoftext|> was put before the prompt
    prompt_ids: Ints  # (N,) every token of the prompt
    prompt_tokens: tuple[str, ...]  # (N,)
    rows: tuple[str, ...]  # (R,) tap names
    positions: Ints  # (P,)
    next_ids: Ints  # (P,) the token that follows in the prompt; -1 after the last
    top_ids: Ints  # (R, P, top_k), likeliest first
    top_tokens: tuple[tuple[tuple[str, ...], ...], ...]  # the same as text
    top_logprobs: Floats  # (R, P, top_k)
    log_z: Floats  # (R, P); logit = log-probability + log_z
    entropy: Floats  # (R, P) nats
    kl: Floats  # (R, P) nats, KL(final row || this row)
    next_logprobs: Floats  # (R, P) of next_ids; NaN where there is none
    next_ranks: Ints  # (R, P), 0 = likeliest; -1 where there is none
    targets: tuple[str, ...]  # (T,) tokens asked about
    target_logprobs: Floats  # (R, P, T)
    target_ranks: Ints  # (R, P, T)

    @property
    def logit_diff(self) -> Floats:
        """(R, P) logit of the first target minus that of the second."""
        if len(self.targets) != 2:
            raise InputError(f"a difference needs two targets, this lens has {len(self.targets)}")
        diff: Floats = self.target_logprobs[..., 0] - self.target_logprobs[..., 1]
        return diff

    def values(self, by: str = "prob") -> NDArray[Any]:
        """(R, P) one quantity of QUANTITIES: of the first target if there is one, else of the top
        token (for `rank`: of the token that follows in the prompt)."""
        if by not in QUANTITIES:
            raise InputError(f"by = {by!r} is not one of {', '.join(QUANTITIES)}")
        if by == "entropy":
            return self.entropy
        if by == "kl":
            return self.kl
        if by == "rank":
            return self.target_ranks[..., 0] if self.targets else self.next_ranks
        logprobs = self.target_logprobs[..., 0] if self.targets else self.top_logprobs[..., 0]
        return np.exp(logprobs) if by == "prob" else logprobs + self.log_z

    def to_dict(self) -> dict[str, Any]:
        """Plain data: header, and one entry for each cell."""
        return {
            "kind": self.kind,
            "model": self.source,
            "dtype": self.dtype,
            "bos_added": self.has_bos,
            "ids": self.prompt_ids.tolist(),
            "tokens": list(self.prompt_tokens),
            "rows": list(self.rows),
            "units": {"logprob": "nats", "entropy": "nats", "kl": "nats", "rank": "0 = likeliest"},
            "cells": list(self.cells()),
        }

    def cells(self) -> list[dict[str, Any]]:
        """One flat entry for each row and position."""
        return [self._cell(r, p) for r in range(len(self.rows)) for p in range(len(self.positions))]

    def _cell(self, r: int, p: int) -> dict[str, Any]:
        has_next = bool(self.next_ids[p] >= 0)
        return {
            "row": self.rows[r],
            "position": int(self.positions[p]),
            "token": self.prompt_tokens[self.positions[p]],
            "top": [
                {"id": int(i), "token": token, "logprob": float(lp), "logit": float(lp + z)}
                for i, token, lp, z in zip(
                    self.top_ids[r, p],
                    self.top_tokens[r][p],
                    self.top_logprobs[r, p],
                    np.broadcast_to(self.log_z[r, p], self.top_ids.shape[-1:]),
                    strict=True,
                )
            ],
            "entropy": float(self.entropy[r, p]),
            "kl": float(self.kl[r, p]),
            "next_logprob": float(self.next_logprobs[r, p]) if has_next else None,
            "next_rank": int(self.next_ranks[r, p]) if has_next else None,
            "targets": [
                {"token": t, "logprob": float(lp), "rank": int(rank)}
                for t, lp, rank in zip(
                    self.targets, self.target_logprobs[r, p], self.target_ranks[r, p], strict=True
                )
            ],
        }

    def to_csv(self) -> str:
        """One line for each row and position, the top tokens side by side."""
        out = io.StringIO()
        writer: Any = None
        for cell in self.cells():
            flat = {k: v for k, v in cell.items() if not isinstance(v, list)}
            for kind in ("top", "targets"):
                for n, entry in enumerate(cell[kind], start=1):
                    flat |= {f"{kind.rstrip('s')}{n}_{k}": v for k, v in entry.items()}
            if writer is None:
                writer = csv.DictWriter(out, list(flat), lineterminator="\n")
                writer.writeheader()
            writer.writerow(flat)
        return out.getvalue()

    def render(self) -> RenderableType:
        """The grid, coloured by probability."""
        from probes.lens.lens_view import grid

        return grid(self)

    def __repr__(self) -> str:
        return (
            f"LogitLens({self.kind}, {self.source}, {len(self.rows)} rows x "
            f"{len(self.positions)} positions, top {self.top_ids.shape[-1]}; print it for the grid)"
        )


def logit_lens(
    runner: Runner,
    prompt: Prompt,
    *,
    top_k: int = 5,
    targets: str | Sequence[str] = (),
    sites: str = "resid",
    positions: Selection = None,
    prepend_bos: bool = False,
) -> LogitLens:
    """Read the residual stream (or what is added to it) through ln_f and the unembedding.

    prompt:  text, or token ids.
    top_k:   how many of the likeliest tokens to keep in each cell.
    targets: tokens to follow; each must be one token, its leading space included.
    sites:   "resid" (the embedding, then the stream after each layer), "mid" (after each
             attention), "attn" or "mlp" (what each layer's part writes, by itself).
    positions: which columns to keep; all by default, negative ones count from the end.
    prepend_bos: put `<|endoftext|>` first.
    Raises InputError for an empty or too long prompt, or a target that is not one token.
    """
    if sites not in SITES:
        raise InputError(f"sites = {sites!r} is not one of {', '.join(SITES)}")
    if isinstance(targets, str):
        targets = [targets]
    config = runner.config
    ids = prompt_ids(runner, prompt, prepend_bos=prepend_bos)
    tokenizer = tokenizer_of(runner)
    target_ids = [tokenizer.single(text) for text in targets]
    columns = select(positions, len(ids), "positions")
    last = config.n_layer - 1
    rows = [f"blocks.{i}.{SITES[sites]}" for i in range(config.n_layer)]
    if sites == "resid":
        rows = ["blocks.0.resid_pre", *rows]
    else:
        rows.append(f"blocks.{last}.resid_post")
    end = int(columns.argmax())  # what comes after that column has no part in any
    run = runner.run(ids[: columns[end] + 1], taps=rows, last_only=True, top_k=2)
    resid = np.stack([run.taps[row][0, columns] for row in rows])  # (R, P, d_model)
    assert run.top_ids is not None
    own = run.logits[0, -1], run.top_ids[0, -1]
    del run  # its memory is used again below
    following = np.array([*ids[1:], -1])[columns]
    asked = np.concatenate(
        [
            np.maximum(following, 0)[:, None],
            np.broadcast_to(np.asarray(target_ids, np.int64), (len(columns), len(target_ids))),
        ],
        axis=1,
    )
    read = runner.readout(resid, top_k=top_k, targets=asked, reference=resid[-1])
    _assert_last_row(read, end, *own, _TOLERANCE.get(runner.dtype, 1e-4))
    assert read.target_logprobs is not None
    assert read.target_ranks is not None
    assert read.kl is not None
    text = {int(i): tokenizer.decode([i]) for i in np.unique(read.top_ids)}
    return LogitLens(
        kind="logit lens",
        source=str(runner.source),
        dtype=runner.precision,
        has_bos=prepend_bos,
        prompt_ids=ids,
        prompt_tokens=tuple(tokenizer.tokens(ids.tolist())),
        rows=tuple(rows),
        positions=columns,
        next_ids=following,
        top_ids=read.top_ids,
        top_tokens=tuple(
            tuple(tuple(text[i] for i in c) for c in r) for r in read.top_ids.tolist()
        ),
        top_logprobs=read.top_logprobs,
        log_z=read.log_z,
        entropy=read.entropy,
        kl=read.kl,
        next_logprobs=np.where(following >= 0, read.target_logprobs[..., 0], np.nan),
        next_ranks=np.where(following >= 0, read.target_ranks[..., 0], -1),
        targets=tuple(targets),
        target_logprobs=read.target_logprobs[..., 1:],
        target_ranks=read.target_ranks[..., 1:],
    )


def _assert_last_row(
    read: Readout, column: int, logits: Floats, ids: Ints, tolerance: float
) -> None:
    """The lens' last row must be the model's own prediction, whose two largest logits at one column
    and their tokens are given, (2,)."""
    allowed = tolerance * max(1.0, float(np.abs(logits).max()))
    apart = abs(read.top_logprobs[-1, column, 0] + read.log_z[-1, column] - logits[0])
    if logits[0] - logits[1] > 2 * allowed and read.top_ids[-1, column, 0] != ids[0]:
        apart = np.inf
    if not apart <= allowed:
        raise GPT2KitError(
            f"the lens' last row is {apart:.2e} from the model's logits at column {column}; "
            "this is a bug in gpt2kit, please report it"
        )
