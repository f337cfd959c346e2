"""Heads of known kinds in the bundled model, and what is lost without them: tables for its card."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from corpus import Stories
from measure import loss_of
from name_movers import (
    Heads,
    IntoHeads,
    NamePrompts,
    answer_table,
    mover_table,
    patched_table,
    stream_picture,
)
from rendering import head_grids, head_name, table

from gpt2kit import Edit, TorchRunner
from gpt2kit.logits import log_softmax
from gpt2kit.readout import Floats
from probes import HeadScores, head_scores, repeated_tokens

KINDS = ("previous_token", "duplicate_token", "induction")
LENGTH = 50  # random tokens that are said twice
ROWS = 16
LEADING = 5  # heads of a table
KNOWN = 0.4  # the score of a head that is called by its kind
PROMPTS, PROBED = 200, 24  # prompts about names; the slower probes look at the second number
FEEDERS = 3
STORIES = 60  # held-out stories that are read with heads knocked out


def kind_table(scores: HeadScores) -> str:
    """The leading heads of each kind, best first, as `layer.head score`."""
    columns = [scores.leading(kind, LEADING) for kind in KINDS]
    cells = [[f"{head_name(*at)} ({score:.2f})" for *at, score in column] for column in columns]
    header = ["", *(kind.replace("_", " ") for kind in KINDS)]
    return table(header, ([rank + 1, *row] for rank, row in enumerate(zip(*cells, strict=True))))


def kind_picture(scores: HeadScores) -> str:
    """A grid of all heads for each kind."""
    return head_grids({kind.replace("_", " "): getattr(scores, kind) for kind in KINDS})


def known_heads(scores: HeadScores) -> dict[str, Heads]:
    """Kind -> the heads whose score is at least KNOWN; kinds without any are left out."""
    found: dict[str, Heads] = {}
    for kind in KINDS:
        best = scores.leading(kind, scores.induction.size)
        if heads := [(layer, head) for layer, head, score in best if score >= KNOWN]:
            found[kind.replace("_", " ")] = heads
    return found


def knock_out(heads: Heads) -> list[Edit]:
    """Edits that set the output of some heads to zero at all positions."""
    return [Edit.zero(f"blocks.{layer}.z", head=head) for layer, head in heads]


def repeated_losses(runner: TorchRunner, edits: Sequence[Edit] = ()) -> tuple[float, float]:
    """Loss in nats per token in the first and in the second saying of random tokens.

    The second saying's first token cannot be known, and is left out.
    """
    ids = repeated_tokens(runner.config.vocab_size - 1, ROWS, LENGTH, seed=1)
    logp: Floats = log_softmax(runner.run(ids, edits=edits).logits[:, :-1].astype(np.float64))
    losses = -np.take_along_axis(logp, ids[:, 1:, None], -1)[..., 0]
    return float(losses[:, : LENGTH - 1].mean()), float(losses[:, LENGTH:].mean())


def knock_out_table(
    runner: TorchRunner, groups: Iterable[tuple[str, Heads]], names: NamePrompts, stories: Stories
) -> str:
    """What each group of heads is worth: the losses and the names without it."""
    rows = []
    for what, heads in [("nothing", ()), *groups]:
        edits = knock_out(heads)
        differences = names.differences(edits)
        listed = ", ".join(head_name(*head) for head in heads)
        rows.append(
            (
                f"{what} ({listed})" if listed else what,
                f"{repeated_losses(runner, edits)[1]:.2f}",
                f"{(differences > 0).mean():.0%}",
                f"{differences.mean():+.2f}",
                f"{loss_of(runner, stories, edits):.3f}",
            )
        )
    columns = ("knocked out", "random tokens", "right name", "logit difference", "stories")
    return table(columns, rows)


def circuit_fields(runner: TorchRunner, held_out: Stories) -> dict[str, Any]:
    """The fields of the card that describe circuits."""
    scores = head_scores(runner, batch=ROWS)
    names = NamePrompts.of(runner, PROMPTS, PROBED)
    into_movers = IntoHeads.of(names, names.movers)
    feeders = into_movers.feeders(FEEDERS)
    first, second = repeated_losses(runner)
    groups = [
        *known_heads(scores).items(),
        *(("deciding", [head]) for head in names.movers),
        ("deciding, together", names.movers),
        *(("feeding them", [head]) for head in feeders),
    ]
    some = Stories(held_out.tokens[:STORIES], held_out.bytes)
    return {
        "rows": ROWS,
        "known": KNOWN,
        "block": LENGTH,
        "first_saying": first,
        "second_saying": second,
        "kind_table": kind_table(scores),
        "kind_picture": kind_picture(scores),
        "prompts": PROMPTS,
        "probed": PROBED,
        "name_prompt": names.pairs.prompts[0],
        "name_answer": names.pairs.target[0].strip(),
        "right_share": (names.differences() > 0).mean(),
        "answer_table": answer_table(names),
        "stream_picture": stream_picture(names),
        "mover_table": mover_table(names),
        "patched_table": patched_table(names),
        "movers": ", ".join(head_name(*head) for head in names.movers),
        "into_movers": into_movers.table(names),
        "feeders": ", ".join(head_name(*head) for head in feeders),
        "into_feeders": IntoHeads.of(names, feeders).table(names),
        "knock_outs": knock_out_table(runner, groups, names, some),
        "knock_stories": STORIES,
    }
