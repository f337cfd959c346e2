"""Path patching: what one component tells another directly, past all the others.

Wang et al. 2022, "Interpretability in the Wild", arXiv 2211.00593; Goldowsky-Dill et al. 2023,
"Localizing Model Behavior with Path Patching", arXiv 2304.05969. A sender's write to the residual
stream is that of the clean run, but only for the receiver; every other head and MLP on the way is
held at its value of the corrupt run. (Wang et al. let the MLPs in between recompute.) As the stream
is a sum, what the receiver reads is the corrupt stream plus the difference of the two writes.

Names: heads are "9.6" (layer.head), MLPs "mlp.9", the embeddings "embed". Receivers are a head's
"9.6.q", "9.6.k", "9.6.v", an MLP "mlp.9", or "logits". Globs select: "9.*", "*.q", "mlp.*".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from gpt2kit.edits import Edit
from gpt2kit.errors import InputError
from gpt2kit.progress import OnProgress, Progress
from gpt2kit.prompts import Prompt, counted
from gpt2kit.readout import Floats
from gpt2kit.result import Result
from gpt2kit.runner import Runner
from gpt2kit.taps import TapDict
from probes.core.batching import row_batches
from probes.core.metrics import AnyMetric
from probes.core.sweeps import Pair, Saving
from probes.draw.tables import table
from probes.draw.words import format_number, title

Patterns = str | Sequence[str]
SHOWN = 15


@dataclass(frozen=True)
class Sender:
    """What writes to the residual stream. order: its place among what reads and writes it."""

    name: str
    tap: str
    order: int
    head: int | None = None

    def write(self, taps: TapDict[Floats]) -> Floats:
        """(pos, d_model) in a run of one prompt."""
        value: Floats = taps[self.tap][0]
        return value if self.head is None else value[:, self.head]


@dataclass(frozen=True)
class Receiver:
    """What reads the residual stream.

    entry: the stream's tap that it reads. scale: that of its layer norm. tap, head: what it makes
    of it; of the logits, no tap. order: as of senders. layer: where it changes a run.
    """

    name: str
    entry: str
    scale: str
    tap: str
    order: int
    layer: int
    head: int | None = None


@dataclass(frozen=True, eq=False)
class Paths(Result):
    """The effect of each direct path from a sender to a receiver; NaN where there is none."""

    method: str
    source: str  # model, and revision if one was named
    dtype: str
    metric: str
    senders: tuple[str, ...]  # (S,)
    receivers: tuple[str, ...]  # (R,)
    scores: Floats  # (S, R) what is added to the corrupt run's metric
    normalised: Floats  # (S, R) the same, as a share of clean - corrupt
    clean: float
    corrupt: float
    clean_tokens: tuple[str, ...]  # (N,), up to the metric's position
    corrupt_tokens: tuple[str, ...]  # (N,)
    saving: Saving | None  # None where nothing was swept

    def top(self, count: int) -> list[tuple[str, str, float]]:
        """The strongest paths: sender, receiver, score; largest in size first."""
        sizes = np.nan_to_num(np.abs(self.scores), nan=-1.0)
        order = np.argsort(-sizes, axis=None, kind="stable")[:count]
        pairs = (np.unravel_index(int(i), self.scores.shape) for i in order)
        return [
            (self.senders[s], self.receivers[r], float(self.scores[s, r]))
            for s, r in pairs
            if sizes[s, r] >= 0
        ]

    def __repr__(self) -> str:
        sender, receiver, score = self.top(1)[0]
        return (
            f"Paths({self.method}, {len(self.senders)} senders x {len(self.receivers)} receivers; "
            f"strongest from {sender} to {receiver}: {score:+.3g}; print it for more)"
        )

    def render(self) -> RenderableType:
        """The strongest paths, one a line."""
        numbers = ("effect", "of clean - corrupt")
        rows = table("sender", "receiver", *numbers, numbers=numbers)
        whole = self.clean - self.corrupt
        for sender, receiver, score in self.top(SHOWN):
            rows.add_row(sender, receiver, f"{score:+.4g}", format_number(score / whole))
        read = counted(len(self.clean_tokens), "token")
        paths = counted(int(np.isfinite(self.scores).sum()), "path")
        lines = [
            title(self.method, self.source, self.dtype, read, paths),
            Text(f"{self.metric}: {self.clean:.4g} clean, {self.corrupt:.4g} corrupt"),
        ]
        if self.saving is not None:
            lines += [Text(line, "dim") for line in self.saving.lines()]
        return Group(*lines, "", rows)


def all_senders(n_layer: int, n_head: int) -> list[Sender]:
    """Everything that writes to the residual stream, bottom to top."""
    out = [Sender("embed", "blocks.0.resid_pre", -1)]
    for i in range(n_layer):
        heads = (Sender(f"{i}.{h}", f"blocks.{i}.head_out", 2 * i, h) for h in range(n_head))
        out += [*heads, Sender(f"mlp.{i}", f"blocks.{i}.mlp_out", 2 * i + 1)]
    return out


def all_receivers(n_layer: int, n_head: int) -> list[Receiver]:
    """Everything that reads the residual stream, bottom to top."""
    out = []
    for i in range(n_layer):
        at = f"blocks.{i}"
        entry, scale = f"{at}.resid_pre", f"{at}.ln_1_scale"
        for h, x in product(range(n_head), "qkv"):
            out.append(Receiver(f"{i}.{h}.{x}", entry, scale, f"{at}.{x}", 2 * i, i, h))
        entry, scale = f"{at}.resid_mid", f"{at}.ln_2_scale"
        out.append(Receiver(f"mlp.{i}", entry, scale, f"{at}.mlp_out", 2 * i + 1, i))
    last = f"blocks.{n_layer - 1}.resid_post"
    out.append(Receiver("logits", last, "ln_f_scale", "", 2 * n_layer, n_layer))
    return out


def named(patterns: Patterns, names: Iterable[str], what: str) -> list[str]:
    """The names that match, each once, in the order of the model. Raises InputError if none do."""
    known, chosen = list(names), set[str]()
    if not patterns:
        raise InputError(f"no {what} was named")
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = {name for name in known if fnmatchcase(name, pattern)}
        if not found:
            kinds = dict.fromkeys(re.sub(r"\d+", "0", name) for name in known)
            raise InputError(f"no {what} is called {pattern!r}; they are {', '.join(kinds)}, …")
        chosen |= found
    return [name for name in known if name in chosen]


def path_patching(
    runner: Runner,
    clean: Prompt,
    corrupt: Prompt,
    *,
    senders: Patterns,
    receivers: str | Sequence[str | tuple[str, ...]],
    metric: AnyMetric,
    freeze_ln: bool = False,
    on_progress: OnProgress | None = None,
) -> Paths:
    """The effect of each direct path, of everything that comes after the receiver on the metric.

    The corrupt prompt is run with the clean run's value on the path, as in `activation_patching`;
    swap the prompts for the other direction.

    senders, receivers: names or globs, see the top of this file; a tuple of receivers is patched
            together, as one.
    freeze_ln: hold the scale of the receivers' layer norms at the corrupt run's, so that what they
            read is linear in what is sent.
    on_progress: called after each batch with the number of paths that are done, and of all.
    Raises InputError for prompts of different lengths, unknown names, or where no path exists.
    """
    n_layer, n_head = runner.config.n_layer, runner.config.n_head
    known = {s.name: s for s in all_senders(n_layer, n_head)}
    sending = [known[name] for name in named(senders, known, "sender")]
    groups = _groups(receivers, {r.name: r for r in all_receivers(n_layer, n_head)})
    count = sum(_reaches(s, group) for s in sending for group in groups)
    if not count:
        raise InputError("no sender comes before a receiver, so there is no path between them")
    writes = list(dict.fromkeys(s.tap for s in sending))
    reads = [tap for group in groups for r in group for tap in (r.entry, r.scale)]
    pair = Pair.of(runner, (clean, corrupt), metric, writes, corrupt_taps=[*writes, *reads])
    run, progress = _Paths(pair, groups, freeze_ln), Progress(on_progress, count)
    scores = np.full((len(sending), len(groups)), np.nan)
    for column, group in enumerate(groups):
        rows = [row for row, sender in enumerate(sending) if _reaches(sender, group)]
        for part in row_batches(rows, len(pair.corrupt.ids)):
            found = run.through(tuple(sending[row] for row in part), group)
            scores[part, column] = found - pair.corrupt_value
            progress.add(len(part))
    method = "path patching" + (", layer norms frozen" if freeze_ln else "")
    labels = tuple(" + ".join(r.name for r in group) for group in groups)
    return paths(runner, pair, method, sending, labels, scores, pair.corrupt.saving())


def paths(
    runner: Runner,
    pair: Pair,
    method: str,
    senders: Sequence[Sender],
    receivers: tuple[str, ...],
    scores: Floats,
    saving: Saving | None,
) -> Paths:
    """The result, given its scores (senders, receivers)."""
    return Paths(
        method, str(runner.source), runner.precision, pair.measure.metric.name,
        tuple(s.name for s in senders), receivers, scores,
        scores / (pair.clean_value - pair.corrupt_value), pair.clean_value, pair.corrupt_value,
        pair.clean_tokens, pair.corrupt_tokens, saving,
    )  # fmt: skip


def _groups(
    receivers: str | Sequence[str | tuple[str, ...]], known: dict[str, Receiver]
) -> list[tuple[Receiver, ...]]:
    """Receivers one by one, then those of each tuple together."""
    given = [receivers] if isinstance(receivers, str) else list(receivers)
    alone = [pattern for pattern in given if isinstance(pattern, str)]
    tuples = [pattern for pattern in given if not isinstance(pattern, str)]
    groups = [[name] for name in named(alone, known, "receiver")] if alone or not tuples else []
    groups += [named(part, known, "receiver") for part in tuples]
    return [tuple(known[name] for name in group) for group in groups]


def _reaches(sender: Sender, group: Sequence[Receiver]) -> bool:
    return any(sender.order < receiver.order for receiver in group)


class _Paths:
    """Patches paths into the corrupt run."""

    def __init__(self, pair: Pair, groups: Sequence[tuple[Receiver, ...]], freeze_ln: bool) -> None:
        self.pair, self.base, self.freeze_ln = pair, pair.corrupt, freeze_ln
        self.known = [receiver for group in groups for receiver in group]
        self._read: tuple[Any, TapDict[Floats]] | None = None

    def through(self, senders: tuple[Sender, ...], group: Sequence[Receiver]) -> Floats:
        """(senders,) the metric with the paths from each sender to these receivers patched."""
        edits = [edit for receiver in group for edit in self._received(senders, receiver)]
        run = self.base.copies(min(r.layer for r in group), len(senders), edits)
        return self.pair.measure(run)

    def _received(self, senders: tuple[Sender, ...], receiver: Receiver) -> list[Edit]:
        """Edits, row by row a sender, that make a receiver give what it would give if it had read
        that sender's clean write."""
        if not receiver.tap:  # nothing comes after the logits: they may as well be told
            return self._told(senders, receiver)
        value = self._reading(senders, receiver)[receiver.tap]
        if receiver.head is None:
            return [Edit.replace(receiver.tap, value)]
        return [Edit.replace(receiver.tap, value[:, :, receiver.head], head=receiver.head)]

    def _reading(self, senders: tuple[Sender, ...], receiver: Receiver) -> TapDict[Floats]:
        """What all receivers at this place of the stream make of it; kept for the next of them."""
        if self._read is None or self._read[0] != (senders, receiver.entry):
            edits = self._told(senders, receiver)
            taps = [r.tap for r in self.known if r.entry == receiver.entry]
            run = self.base.copies(receiver.layer, len(senders), edits, taps)
            self._read = (senders, receiver.entry), run.taps
        return self._read[1]

    def _told(self, senders: tuple[Sender, ...], receiver: Receiver) -> list[Edit]:
        """The stream where the receiver reads it, plus what each sender would have added."""
        change = np.zeros((len(senders), *self.base.taps[receiver.entry].shape[1:]))
        for row, sender in zip(change, senders, strict=True):
            if sender.order < receiver.order:
                row += sender.write(self.pair.clean.taps) - sender.write(self.base.taps)
        edits = [Edit.steer(receiver.entry, change)]
        if self.freeze_ln:
            edits.append(Edit.replace(receiver.scale, self.base.taps[receiver.scale]))
        return edits
