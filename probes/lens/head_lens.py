"""The logit lens on what one attention head writes to the stream.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits": heads add to the residual
stream independently, and so each can be read by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from gpt2kit.errors import InputError
from gpt2kit.prompts import Prompt, Selection, counted, prompt_ids, select, tokenizer_of
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import Result
from gpt2kit.runner import Runner
from gpt2kit.taps import resolve_one
from probes.draw.tables import table
from probes.draw.words import title, visible


@dataclass(frozen=True, eq=False)
class HeadLens(Result):
    """What one head's write to the stream, by itself, says of the next token."""

    source: str
    dtype: str
    layer: int
    head: int
    prompt_tokens: tuple[str, ...]  # (N,)
    positions: Ints  # (P,)
    norms: Floats  # (P,) length of the write
    top_ids: Ints  # (P, top_k), likeliest first
    top_tokens: tuple[tuple[str, ...], ...]  # the same as text
    top_logprobs: Floats  # (P, top_k)
    targets: tuple[str, ...]  # (T,)
    target_logprobs: Floats  # (P, T)
    target_ranks: Ints  # (P, T), 0 = likeliest

    def render(self) -> RenderableType:
        """One line for each position."""
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
    top_k: int = 5,
    targets: str | Sequence[str] = (),
    positions: Selection = None,
) -> HeadLens:
    """Read what one head writes (the tap `head_out`) through ln_f and the unembedding.

    ln_f normalises the write by its own scale: the tokens say where the head points, `norms` how
    much it writes. Options as in `logit_lens`; a negative layer counts from the end.
    """
    tap, layer = tap_of(runner, layer, "head_out")
    check_number("head", head, runner.config.n_head)
    ids = prompt_ids(runner, prompt)
    tokenizer = tokenizer_of(runner)
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    wanted = np.array([tokenizer.single(text) for text in names], np.int64)
    columns = select(positions, len(ids), "positions")
    run = runner.run(ids, taps=[tap], last_only=True, top_k=1)
    write = run.taps[tap][0, columns, head]  # (P, d_model)
    read = runner.readout(write, top_k=top_k, targets=wanted)
    assert read.target_logprobs is not None
    assert read.target_ranks is not None
    return HeadLens(
        source=str(runner.source),
        dtype=runner.precision,
        layer=layer,
        head=head,
        prompt_tokens=tuple(tokenizer.tokens(ids.tolist())),
        positions=columns,
        norms=np.linalg.norm(write, axis=-1),
        top_ids=read.top_ids,
        top_tokens=tuple(tuple(tokenizer.tokens(row)) for row in read.top_ids.tolist()),
        top_logprobs=read.top_logprobs,
        targets=names,
        target_logprobs=read.target_logprobs,
        target_ranks=read.target_ranks,
    )


def tap_of(runner: Runner, layer: int, name: str) -> tuple[str, int]:
    """The canonical tap, and the layer counted from 0."""
    tap = resolve_one(f"blocks.{layer}.{name}", runner.config.n_layer)
    return tap, int(tap.split(".")[1])


def check_number(what: str, number: int, count: int) -> None:
    """Raise InputError unless there is such a head or neuron."""
    if not 0 <= number < count:
        raise InputError(f"{what} {number} does not exist; a layer has {what}s 0 to {count - 1}")
