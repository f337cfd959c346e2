"""The logit lens on what one attention head writes to the stream.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits": heads add to the residual
stream independently, so each write can be read alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.checks import check_top_k
from gpt2kit.defaults import Default
from gpt2kit.finite import finite_readout, finite_run
from gpt2kit.prompts import (
    Prompt,
    Selection,
    counted,
    prompt_ids,
    select,
    token_ids,
    token_texts,
)
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import PromptResult, Row, prompt_header
from gpt2kit.runner import Runner
from probes.core.parts import check_head, tap_at
from probes.lens.reading import Targets

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class HeadLens(PromptResult):
    """The next tokens that one head's write to the stream, read alone, predicts."""

    layer: int
    head: int
    positions: Ints  # (P,)
    norms: Floats  # (P,) length of the write
    top_ids: Ints  # (P, top_k), likeliest first
    top_tokens: tuple[tuple[str, ...], ...]  # the same as text
    top_logprobs: Floats  # (P, top_k)
    targets: tuple[str, ...]  # (T,)
    target_logprobs: Floats  # (P, T)
    target_ranks: Ints  # (P, T), 0 = likeliest

    def table(self) -> list[Row]:
        """One row for each position, the top tokens side by side."""
        return [self._row(p) for p in range(len(self.positions))]

    def _row(self, p: int) -> Row:
        position = int(self.positions[p])
        row: Row = {
            "position": position,
            "token": self.prompt_tokens[position],
            "norm": float(self.norms[p]),
        }
        for k, token in enumerate(self.top_tokens[p]):
            row |= {
                f"top{k + 1}_id": int(self.top_ids[p, k]),
                f"top{k + 1}_token": token,
                f"top{k + 1}_logprob": float(self.top_logprobs[p, k]),
            }
        for t, token in enumerate(self.targets):
            row |= {
                f"target{t + 1}_token": token,
                f"target{t + 1}_logprob": float(self.target_logprobs[p, t]),
                f"target{t + 1}_rank": int(self.target_ranks[p, t]),
            }
        return row

    def render(self) -> RenderableType:
        """One line for each position."""
        from rich.console import Group
        from rich.text import Text

        from probes.draw.tables import table
        from probes.draw.words import title, visible

        names = ("pos", "token", "|write|", "likeliest next tokens", *map(visible, self.targets))
        rows = table(*names, numbers=("pos", "|write|"))
        for p, position in enumerate(self.positions):
            rows.add_row(
                str(position),
                Text(visible(self.prompt_tokens[position])),
                f"{self.norms[p]:.2f}",
                Text("  ".join(visible(token) for token in self.top_tokens[p])),
                *(f"rank {rank}" for rank in self.target_ranks[p]),
            )
        read = counted(len(self.prompt_tokens), "token")
        what = f"lens on the write of head {self.layer}.{self.head}"
        return Group(title(what, self.source, self.dtype, read), "", rows)

    def __repr__(self) -> str:
        return (
            f"HeadLens({self.source}, head {self.layer}.{self.head}, {len(self.positions)} "
            f"positions, top {self.top_ids.shape[-1]})"
        )


def head_lens(
    runner: Runner,
    prompt: Prompt,
    layer: int,
    head: int,
    *,
    top_k: int = Default(5),
    targets: Targets = (),
    positions: Selection = None,
) -> HeadLens:
    """Read what one head writes (the tap `head_out`) through ln_f and the unembedding.

    ln_f normalises the write by its own scale: the tokens say where the head points, `norms` how
    much it writes. Options as in `logit_lens`; a negative layer counts from the end.
    """
    tap, layer = tap_at(runner.config, layer, "head_out")
    check_head(runner.config, head)
    top_k = check_top_k(top_k, runner.config.vocab_size)
    ids, wanted = prompt_ids(runner, prompt), token_ids(runner, targets, "targets")
    columns = select(positions, len(ids), "positions")
    run = finite_run(runner, ids, taps=[tap], last_only=True, top_k=1)
    write = run.taps[tap][0, columns, head]  # (P, d_model)
    read = finite_readout(runner, write, top_k=top_k, targets=wanted)
    assert read.target_logprobs is not None
    assert read.target_ranks is not None
    return HeadLens(
        **prompt_header(runner, ids),
        layer=layer,
        head=head,
        positions=columns,
        norms=np.linalg.norm(write, axis=-1),
        top_ids=read.top_ids,
        top_tokens=tuple(token_texts(runner, row) for row in read.top_ids),
        top_logprobs=read.top_logprobs,
        targets=token_texts(runner, wanted),
        target_logprobs=read.target_logprobs,
        target_ranks=read.target_ranks,
    )
