"""The result of a logit lens or a tuned lens: its numbers, as data and as a grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from gpt2kit.checks import check_choice, check_integer
from gpt2kit.errors import InputError
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import PromptResult, Row
from gpt2kit.result_data import from_plain, to_plain
from probes.lens import lens_data

if TYPE_CHECKING:
    from rich.console import RenderableType

LENS_KINDS = ("logit lens", "tuned lens")
QUANTITIES = ("prob", "logit", "rank", "entropy", "kl")
_OF_WHOLE_PREDICTION = ("entropy", "kl")  # a target has no part in them


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LogitLens(PromptResult):
    """Next-token predictions by layer and position.

    Rows (R) are the taps in `rows`, bottom to top of the model; the last is always the final
    residual stream, which gives the model's own prediction. Columns (P) are `positions`.
    Logarithms are natural.
    """

    kind: str  # "logit lens" or "tuned lens"
    rows: tuple[str, ...]  # (R,) tap names
    positions: Ints  # (P,)
    next_ids: Ints  # (P,) the token that follows in the prompt; -1 after the last
    top_ids: Ints  # (R, P, top_k), likeliest first
    top_tokens: tuple[tuple[tuple[str, ...], ...], ...]  # the same as text
    top_logprobs: Floats  # (R, P, top_k)
    log_z: Floats  # (R, P); logit = log-probability + log_z
    entropy: Floats  # (R, P) nats
    kl: Floats  # (R, P) nats, KL(final row || this row)
    next_logprobs: Floats  # (R, P) of next_ids; NaN where no token follows
    next_ranks: Ints  # (R, P), 0 = likeliest; -1 where no token follows
    targets: tuple[str, ...]  # (T,) tokens asked about
    target_logprobs: Floats  # (R, P, T)
    target_ranks: Ints  # (R, P, T)

    @property
    def logit_diff(self) -> Floats:
        """(R, P) logit of the first target minus the logit of the second."""
        if len(self.targets) != 2:
            raise InputError(f"a difference needs two targets, this lens has {len(self.targets)}")
        diff: Floats = self.target_logprobs[..., 0] - self.target_logprobs[..., 1]
        return diff

    def values(self, by: str = "prob") -> NDArray[Any]:
        """(R, P) one quantity of QUANTITIES, of the first target.

        Without a target: of the likeliest token, and `rank` of the token that follows.
        """
        check_choice("by", by, QUANTITIES)
        if by == "entropy":
            return self.entropy
        if by == "kl":
            return self.kl
        if by == "rank":
            return self.target_ranks[..., 0] if self.targets else self.next_ranks
        logprobs = self.target_logprobs[..., 0] if self.targets else self.top_logprobs[..., 0]
        return np.exp(logprobs) if by == "prob" else logprobs + self.log_z

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the header of every prompt result, and one entry for each cell.

        The keys model, bos_added, ids and tokens repeat the header under the names that lenses
        were first saved with; programs read them.
        """
        header = {
            "kind": self.kind,
            "schema_version": self.schema_version,
            "source": self.source,
            "dtype": self.dtype,
            "prompt_ids": self.prompt_ids.tolist(),
            "prompt_tokens": list(self.prompt_tokens),
            "has_bos": self.has_bos,
        }
        first = {key: header[name] for key, name in lens_data.FIRST_KEYS.items()}
        return {
            **header,
            **first,
            "rows": list(self.rows),
            "positions": self.positions.tolist(),
            "targets": list(self.targets),
            "units": {"logprob": "nats", "entropy": "nats", "kl": "nats", "rank": "0 = likeliest"},
            "cells": to_plain(self.cells()),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild the lens that `to_dict` described; equal to it. Raises InputError."""
        cls.check_header(data)
        return from_plain(cls, lens_data.fields(data))

    @classmethod
    def check_header(cls, data: Mapping[str, Any]) -> None:
        """Raise InputError unless `data` is a saved lens, of either kind."""
        known = isinstance(data, Mapping) and data.get("kind") in LENS_KINDS
        super().check_header({**data, "kind": cls.result_kind()} if known else data)

    def cells(self) -> list[dict[str, Any]]:
        """One entry for each row and position."""
        return [self._cell(r, p) for r in range(len(self.rows)) for p in range(len(self.positions))]

    def _cell(self, r: int, p: int) -> dict[str, Any]:
        has_next, log_z = bool(self.next_ids[p] >= 0), float(self.log_z[r, p])
        top = zip(self.top_ids[r, p], self.top_tokens[r][p], self.top_logprobs[r, p], strict=True)
        targets = zip(
            self.targets, self.target_logprobs[r, p], self.target_ranks[r, p], strict=True
        )
        return {
            "row": self.rows[r],
            "position": int(self.positions[p]),
            "token": self.prompt_tokens[self.positions[p]],
            "top": [
                {"id": int(i), "token": token, "logprob": float(lp), "logit": float(lp) + log_z}
                for i, token, lp in top
            ],
            "log_z": log_z,
            "entropy": float(self.entropy[r, p]),
            "kl": float(self.kl[r, p]),
            "next_logprob": float(self.next_logprobs[r, p]) if has_next else None,
            "next_rank": int(self.next_ranks[r, p]) if has_next else None,
            "targets": [
                {"token": token, "logprob": float(lp), "rank": int(rank)}
                for token, lp, rank in targets
            ],
        }

    def table(self) -> list[Row]:
        """One row for each row and position of the lens, the top tokens side by side."""
        return [lens_data.flat(cell) for cell in to_plain(self.cells())]

    def grid(self, *, by: str = "prob", lines: int = 1) -> RenderableType:
        """The grid for a terminal: layers upwards, positions to the right, the prompt below.

        by: the quantity of QUANTITIES that colours a cell; with a target, the cell shows it. With
        two targets, cells show the difference of their logits.
        lines: how many of the likeliest tokens a cell shows.
        """
        from probes.draw.lens_grid import number_grid, prompt_columns, word_grid
        from probes.draw.words import title, tokens_read

        check_choice("by", by, QUANTITIES)
        check_integer("lines", lines, 1, self.top_ids.shape[-1])
        if len(self.targets) > 2:
            raise InputError(f"the grid shows one target and one foil, not {len(self.targets)}")
        read = tokens_read(len(self.prompt_ids), self.has_bos)
        first = title(self.kind, self.source, self.dtype, read)
        columns = prompt_columns(
            self.prompt_tokens, self.prompt_ids.tolist(), self.positions.tolist(),
            (self.next_ids >= 0).tolist(),
        )  # fmt: skip
        if self.targets and by not in _OF_WHOLE_PREDICTION:
            difference = len(self.targets) == 2
            values = self.logit_diff if difference else self.values(by)
            by = "diff" if difference else by
            return number_grid(first, self.rows, columns, values, by=by, targets=self.targets)
        return word_grid(
            first, self.rows, columns, self.values(by),
            by=by,
            tokens=self.top_tokens,
            probabilities=np.exp(self.top_logprobs),
            correct=self.top_ids == self.next_ids[:, None],
            lines_per_row=lines,
            vocab_size=int(self.top_ids.max()) + 1,  # at least; the result does not hold the size
        )  # fmt: skip

    def render(self) -> RenderableType:
        """The grid, coloured by probability."""
        return self.grid()

    def __repr__(self) -> str:
        return (
            f"LogitLens({self.kind}, {self.source}, {len(self.rows)} rows x "
            f"{len(self.positions)} positions, top {self.top_ids.shape[-1]}; print it for the grid)"
        )
