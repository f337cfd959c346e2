"""How the bundled model finds the name that comes next: tables of the circuit for its card.

Prompts: `probes.ioi`. The metric everywhere is the logit of the right name minus the logit of the
other name (Wang et al. 2022, arXiv 2211.00593).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from rendering import head_name, table, token_grid

from gpt2kit import Edit, TorchRunner
from gpt2kit.finite import finite_run
from gpt2kit.prompts import prompt_ids, token_texts, tokenizer_of
from gpt2kit.readout import Floats
from probes import (
    Metric,
    Pairs,
    activation_patching,
    attention_patterns,
    direct_logit_attribution,
    ioi,
    path_patching,
    processed,
)

Heads = Sequence[tuple[int, int]]  # (layer, head)
MOVERS = 3  # heads that are called name movers
SHOWN = 6  # rows of a table
# The right name, the other name, the token after that, the other name again, the last token.
PLACES = ("right", "first", "after first", "again", "end")
FEEDING = (("end", "again"), ("again", "first"), ("again", "after first"))
INPUTS = "qkv"


@dataclass(frozen=True)
class NamePrompts:
    """Prompts with a right and a wrong name, and a runner to put them to.

    probed: how many of them the slower probes look at.
    """

    runner: TorchRunner
    pairs: Pairs
    probed: int

    @classmethod
    def of(cls, runner: TorchRunner, count: int, probed: int, seed: int = 0) -> NamePrompts:
        """`count` prompts of `probes.ioi`."""
        return cls(runner, ioi(tokenizer_of(runner), count, seed=seed), probed)

    def differences(self, edits: Sequence[Edit] = ()) -> Floats:
        """(n,) logit of the right name minus the other's."""
        ids = [prompt_ids(self.runner, prompt).tolist() for prompt in self.pairs.prompts]
        logits = finite_run(self.runner, ids, edits=edits, last_only=True).logits[:, -1]
        rows = np.arange(len(ids))
        out: Floats = logits[rows, self.pairs.target_ids] - logits[rows, self.pairs.foil_ids]
        return out

    def metric(self, i: int) -> Metric:
        """The logit difference of one prompt."""
        return Metric.logit_diff(int(self.pairs.target_ids[i]), int(self.pairs.foil_ids[i]))

    @cached_property
    def raised(self) -> dict[str, Floats]:
        """ "right" or "other" -> (layer, head) what each head adds to that name's logit directly.

        Mean over the prompts. Logits are relative to the mean of all tokens.
        """
        centred = processed(self.runner)
        names = {"right": self.pairs.target_ids, "other": self.pairs.foil_ids}
        found: dict[str, list[Floats]] = {name: [] for name in names}
        for name, i in product(names, range(self.probed)):
            parts = direct_logit_attribution(
                centred, self.pairs.prompts[i], target=int(names[name][i]), by="head"
            )
            found[name].append(parts.values["head"])
        return {name: np.asarray(np.mean(values, axis=0)) for name, values in found.items()}

    @property
    def direct(self) -> Floats:
        """(layer, head) what each head adds to the logit difference directly."""
        return self.raised["right"] - self.raised["other"]

    @cached_property
    def looks(self) -> Floats:
        """(layer, head, from, to) mean attention between PLACES."""
        found = []
        for i in range(self.probed):
            ids = prompt_ids(self.runner, self.pairs.prompts[i])
            first, again = np.flatnonzero(ids == self.pairs.foil_ids[i])
            (right,) = np.flatnonzero(ids == self.pairs.target_ids[i])
            at = np.array([right, first, first + 1, again, len(ids) - 1])
            patterns = attention_patterns(self.runner, ids.tolist()).patterns
            found.append(patterns[:, :, at][..., at])
        return np.asarray(np.mean(found, axis=0))

    def look(self, start: str, to: str) -> Floats:
        """(layer, head) mean attention from one of PLACES to another."""
        out: Floats = self.looks[..., PLACES.index(start), PLACES.index(to)]
        return out

    @cached_property
    def movers(self) -> Heads:
        """The heads that add most directly."""
        return strongest(self.direct, MOVERS)


def strongest(scores: Floats, count: int) -> list[tuple[int, int]]:
    """The places of the largest (layer, head) scores, largest first."""
    best = np.argsort(-scores, axis=None, kind="stable")[:count]
    return [divmod(int(i), scores.shape[1]) for i in best]


def answer_table(names: NamePrompts) -> str:
    """How often the right name is likelier, for prompts that name it first and second."""
    differences = names.differences()
    orders = np.array([kind.split()[0] for kind in names.pairs.kinds])
    rows = []
    for what, chosen in (
        ("right name first (ABBA)", orders == "ABBA"),
        ("right name second (BABA)", orders == "BABA"),
        ("all", np.ones(len(orders), bool)),
    ):
        own = differences[chosen]
        rows.append((what, len(own), f"{(own > 0).mean():.0%}", f"{own.mean():+.2f}"))
    return table(("prompts", "count", "right name likelier", "logit difference"), rows)


def mover_table(names: NamePrompts) -> str:
    """The heads that speak for the right name, and the two that speak most against it."""
    heads = strongest(names.direct, SHOWN) + strongest(-names.direct, 2)
    rows = [
        (
            head_name(*head),
            f"{names.direct[head]:+.2f}",
            *(f"{raised[head]:+.2f}" for raised in names.raised.values()),
            *(f"{names.look('end', place)[head]:.2f}" for place in ("right", "first", "again")),
        )
        for head in heads
    ]
    logits = ("logit difference", "right name", "other name")
    return table(("head", *logits, "looks at right", "at other", "at other again"), rows)


def patched(names: NamePrompts) -> Floats:
    """(layer, head) share of the logit difference that a head's z at the last position restores.

    It is put from each prompt into its twin, in which no name is said twice.
    """
    gains, spans = [], []
    for i in range(names.probed):
        found = activation_patching(
            names.runner, names.pairs.prompts[i], names.pairs.corrupt[i],
            metric=names.metric(i), over="z", positions=[-1],
        )  # fmt: skip
        gains.append(found.values[..., 0] - found.corrupt)
        spans.append(found.clean - found.corrupt)
    return np.asarray(np.mean(gains, axis=0) / np.mean(spans))


def patched_table(names: NamePrompts) -> str:
    """The heads that restore most, and least, when patched at the last position."""
    shares = patched(names)
    heads = strongest(shares, SHOWN) + strongest(-shares, 2)
    rows = [(head_name(*head), f"{shares[head]:+.0%}") for head in heads]
    return table(("head", "restores"), rows)


def stream_picture(names: NamePrompts) -> str:
    """Where the answer is: the residual stream after each layer, patched token by token.

    Mean over the probed prompts of the commonest kind, drawn with the tokens of the first of them.
    """
    kinds = names.pairs.kinds[: names.probed]
    kind = max(kinds, key=kinds.count)
    chosen = [i for i, other in enumerate(kinds) if other == kind]
    found = [
        activation_patching(
            names.runner, names.pairs.prompts[i], names.pairs.corrupt[i], metric=names.metric(i)
        )
        for i in chosen
    ]
    gains = np.mean([one.values - one.corrupt for one in found], axis=0)
    shares = gains / np.mean([one.clean - one.corrupt for one in found])
    ids = prompt_ids(names.runner, names.pairs.prompts[chosen[0]])
    return token_grid(shares, token_texts(names.runner, ids))


@dataclass(frozen=True)
class IntoHeads:
    """Direct paths into the queries, keys and values of some heads.

    shares: what the paths restore of the logit difference; the heads read the clean write of the
    sender through one input together.
    """

    senders: tuple[str, ...]  # (S,)
    shares: Floats  # (S, INPUTS); NaN where no path exists

    @classmethod
    def of(cls, names: NamePrompts, heads: Heads) -> IntoHeads:
        """Patch the paths from everything before `heads`, one sender after the other."""
        receivers = [tuple(f"{head_name(*head)}.{x}" for head in heads) for x in INPUTS]
        found = [
            path_patching(
                names.runner, names.pairs.prompts[i], names.pairs.corrupt[i],
                senders="*", receivers=receivers, metric=names.metric(i),
            )
            for i in range(names.probed)
        ]  # fmt: skip
        gains = np.mean([one.scores for one in found], axis=0)
        return cls(found[0].senders, gains / np.mean([one.clean - one.corrupt for one in found]))

    def feeders(self, count: int) -> Heads:
        """The heads with the strongest paths."""
        best = np.nan_to_num(np.abs(self.shares)).max(axis=1)
        order = [i for i in np.argsort(-best, kind="stable") if best[i] > 0]
        return [at for i in order if (at := place_of(self.senders[i]))][:count]

    def table(self, names: NamePrompts) -> str:
        """The strongest paths from heads, and where these look; then those from other senders."""
        heads, others = [], []
        for i in np.argsort(-np.abs(self.shares), axis=None, kind="stable"):
            sender, x = divmod(int(i), len(INPUTS))
            if np.isnan(self.shares[sender, x]):
                continue  # the sender comes later
            row = (self.senders[sender], INPUTS[x], f"{self.shares[sender, x]:+.0%}")
            if at := place_of(self.senders[sender]):
                heads.append((*row, *(f"{names.look(*look)[at]:.2f}" for look in FEEDING)))
            else:
                others.append((*row, *([""] * len(FEEDING))))
        columns = ("from", "into", "restores", *map(" → ".join, FEEDING))
        return table(columns, heads[:SHOWN] + others[:3])


def place_of(sender: str) -> tuple[int, int] | None:
    """(layer, head) of a sender such as "4.2"; None unless it is a head."""
    layer, _, head = sender.partition(".")
    return (int(layer), int(head)) if layer.isdigit() else None
