"""Path patching: the direct effect of one component on another, past all the others.

Wang et al. 2022, "Interpretability in the Wild", arXiv 2211.00593; Goldowsky-Dill et al. 2023,
"Localizing Model Behavior with Path Patching", arXiv 2304.05969. The receiver alone reads the
sender's write from the clean run; every other head and MLP on the way is held at its value in the
corrupt run. (Wang et al. let the MLPs in between recompute.) The stream is a sum, so the receiver
reads the corrupt stream plus the difference of the sender's two writes.

Names and globs of senders and receivers: `probes.causal.path_ends`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.checks import check_integer
from gpt2kit.errors import InputError
from gpt2kit.progress import OnProgress, Progress
from gpt2kit.prompts import Prompt, counted
from gpt2kit.readout import Floats
from gpt2kit.result import ModelResult, Row, model_header
from gpt2kit.runner import Runner
from probes.causal.path_ends import (
    Patterns,
    ReceiverPatterns,
    Sender,
    all_receivers,
    all_senders,
    reaches,
    select_groups,
    select_names,
)
from probes.causal.path_patcher import PathPatcher
from probes.core.batching import row_batches
from probes.core.metrics import AnyMetric
from probes.core.prompt_pair import PromptPair
from probes.core.saving import Saving

if TYPE_CHECKING:
    from rich.console import RenderableType

PATHS_SHOWN = 15  # paths of a drawn table


@dataclass(frozen=True, eq=False)
class Paths(ModelResult):
    """The effect of each direct path from a sender to a receiver; NaN where no path exists."""

    method: str
    metric: str
    senders: tuple[str, ...]  # (S,)
    receivers: tuple[str, ...]  # (R,)
    scores: Floats  # (S, R) what the path adds to the corrupt run's metric
    normalised: Floats  # (S, R) the same, as a share of clean - corrupt
    clean: float
    corrupt: float
    clean_tokens: tuple[str, ...]  # (N,), up to the metric's position
    corrupt_tokens: tuple[str, ...]  # (N,)
    saving: Saving | None  # None where nothing was swept

    def top(self, count: int) -> list[tuple[str, str, float]]:
        """The strongest paths: sender, receiver, score; largest in size first."""
        check_integer("count", count, 0)
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

    def table(self) -> list[Row]:
        """One row for each path that exists."""
        return [
            {
                "sender": self.senders[s],
                "receiver": self.receivers[r],
                "score": float(self.scores[s, r]),
                "normalised": float(self.normalised[s, r]),
            }
            for s, r in np.argwhere(np.isfinite(self.scores)).tolist()
        ]

    def render(self) -> RenderableType:
        """The strongest paths, one a line."""
        from probes.draw.path_table import path_table

        read = counted(len(self.clean_tokens), "token")
        paths = counted(int(np.isfinite(self.scores).sum()), "path")
        return path_table(
            (self.method, self.source, self.dtype, read, paths),
            f"{self.metric}: {self.clean:.4g} clean, {self.corrupt:.4g} corrupt",
            self.saving.lines() if self.saving is not None else (),
            self.top(PATHS_SHOWN),
            self.clean - self.corrupt,
        )


def path_patching(
    runner: Runner,
    clean: Prompt,
    corrupt: Prompt,
    *,
    senders: Patterns,
    receivers: ReceiverPatterns,
    metric: AnyMetric,
    freeze_ln: bool = False,
    on_progress: OnProgress | None = None,
) -> Paths:
    """The effect on the metric of each direct path, through everything after the receiver.

    The corrupt prompt is run with the clean run's value on the path, as in `activation_patching`;
    swap the prompts for the other direction.

    senders, receivers: names or globs, see `probes.causal.path_ends`; the receivers of a tuple are
            patched together.
    freeze_ln: hold the scale of the receivers' layer norms at the corrupt run's, so that their
            input is linear in the sender's write.
    on_progress: called after each batch with (paths done, all paths).
    Raises InputError for prompts of different lengths, unknown names, or if no path exists.
    """
    known = all_senders(runner.config.n_layer, runner.config.n_head)
    sending = [known[name] for name in select_names(senders, known, "sender")]
    groups = select_groups(receivers, all_receivers(runner.config.n_layer, runner.config.n_head))
    count = sum(reaches(sender, group) for sender in sending for group in groups)
    if not count:
        raise InputError("no sender comes before a receiver, so there is no path between them")
    writes = list(dict.fromkeys(sender.tap for sender in sending))
    reads = [tap for group in groups for r in group for tap in (r.entry, r.scale)]
    pair = PromptPair.of(runner, (clean, corrupt), metric, writes, corrupt_taps=[*writes, *reads])
    patcher, progress = PathPatcher(pair, groups, freeze_ln), Progress(on_progress, count)
    scores = np.full((len(sending), len(groups)), np.nan)
    for column, group in enumerate(groups):
        rows = [row for row, sender in enumerate(sending) if reaches(sender, group)]
        for part in row_batches(rows, len(pair.corrupt.ids)):
            found = patcher.measure_paths(tuple(sending[row] for row in part), group)
            scores[part, column] = found - pair.corrupt_value
            progress.add(len(part))
    method = "path patching" + (", layer norms frozen" if freeze_ln else "")
    names = tuple(" + ".join(r.name for r in group) for group in groups)
    return make_paths(runner, pair, method, sending, names, scores, pair.corrupt.saving())


def make_paths(
    runner: Runner,
    pair: PromptPair,
    method: str,
    senders: Sequence[Sender],
    receivers: tuple[str, ...],
    scores: Floats,
    saving: Saving | None,
) -> Paths:
    """The result, given the scores (senders, receivers)."""
    return Paths(
        **model_header(runner),
        method=method,
        metric=pair.measure.metric.name,
        senders=tuple(sender.name for sender in senders),
        receivers=receivers,
        scores=scores,
        normalised=scores / (pair.clean_value - pair.corrupt_value),
        clean=pair.clean_value,
        corrupt=pair.corrupt_value,
        clean_tokens=pair.clean_tokens,
        corrupt_tokens=pair.corrupt_tokens,
        saving=saving,
    )
