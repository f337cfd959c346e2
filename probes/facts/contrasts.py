"""Measurements on cases: how much likelier the right token is, and which heads make it so.

Each function takes a runner and returns numbers. `<|endoftext|>` stands before every prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from gpt2kit.edits import Edit
from gpt2kit.finite import finite_run
from gpt2kit.readout import Floats
from gpt2kit.runner import Runner
from probes.attribution.direct import direct_logit_attribution
from probes.causal.patching import activation_patching
from probes.causal.paths import path_patching
from probes.core.metrics import Metric
from probes.facts.cases import Case, Cases
from probes.facts.measures import LayerHead, ids_of, leading_row, ranks, singles
from probes.lens.logit_lens import logit_lens


def differences(
    runner: Runner, *, cases: Cases, without: Sequence[LayerHead] = ()
) -> Sequence[float]:
    """(cases,) logit of the right token minus logit of the wrong one.

    without: heads whose z is set to 0 at the last position. Prompts of one length are one batch.
    """
    given = cases(runner)
    rows = [ids_of(runner, case.prompt) for case in given]
    out = np.empty(len(given))
    for length in {len(row) for row in rows}:
        places = [i for i, row in enumerate(rows) if len(row) == length]
        edits = [Edit.zero(f"blocks.{i}.z", head=h, pos=length - 1) for i, h in without]
        ids = np.array([rows[i] for i in places])
        logits = finite_run(runner, ids, edits=edits, last_only=True).logits[:, 0]
        for i, last in zip(places, logits.astype(np.float64), strict=True):
            right, wrong = last[singles(runner, given[i].right, given[i].wrong)]
            out[i] = right - wrong
    return out.tolist()


def mean_difference(
    runner: Runner, *, cases: Cases, without: Sequence[LayerHead] = ()
) -> Sequence[float]:
    """(1,) mean of `differences`."""
    return [float(np.mean(differences(runner, cases=cases, without=without)))]


def share_right(runner: Runner, *, cases: Cases) -> Sequence[float]:
    """(1,) share of the cases in which the right token is likelier than the wrong one."""
    return [float(np.mean(np.array(differences(runner, cases=cases)) > 0))]


def fall(runner: Runner, *, cases: Cases, heads: Sequence[LayerHead]) -> Sequence[float]:
    """(1,) the fall of the mean difference when heads are set to 0 at the last position."""
    (whole,) = mean_difference(runner, cases=cases)
    return [whole - mean_difference(runner, cases=cases, without=heads)[0]]


def attention_at_end(
    runner: Runner, *, cases: Cases, heads: Sequence[LayerHead]
) -> Sequence[float]:
    """(heads,) attention from the last position to where the wrong token stands last; mean."""
    layers, found = sorted({layer for layer, _ in heads}), list[list[float]]()
    for case in cases(runner):
        ids = ids_of(runner, case.prompt)
        (wrong,) = singles(runner, case.wrong)
        place = max(i for i, token in enumerate(ids) if token == wrong)
        taps = finite_run(runner, ids, taps=[f"blocks.{i}.pattern" for i in layers], top_k=0).taps
        found.append([float(taps[f"blocks.{i}.pattern"][0, h, -1, place]) for i, h in heads])
    return [float(x) for x in np.mean(found, axis=0)]


def lens_turn(runner: Runner, *, cases: Cases) -> Sequence[float]:
    """(1,) the first row of the logit lens from which the mean difference is positive in every row.

    Rows as in `leading_rows`; one more than all rows if it is not positive in the last.
    """
    found = []
    for case in cases(runner):
        targets = [case.right, case.wrong]
        lens = logit_lens(runner, ids_of(runner, case.prompt), targets=targets, positions=[-1])
        found.append(lens.logit_diff[:, 0])
    return [leading_row(np.mean(found, axis=0) <= 0)]


def attribution(runner: Runner, *, cases: Cases, heads: Sequence[LayerHead]) -> Sequence[float]:
    """(heads,) what each head adds to the mean difference directly, in logits."""
    scores = _attribution(runner, cases)
    return [float(scores[head]) for head in heads]


def attribution_ranks(
    runner: Runner, *, cases: Cases, heads: Sequence[LayerHead], sign: int
) -> Sequence[float]:
    """Ranks by `attribution`.

    sign: 1 for the most positive first, -1 for the most negative first.
    """
    return ranks(sign * _attribution(runner, cases), heads)


def patching_ranks(runner: Runner, *, cases: Cases, heads: Sequence[LayerHead]) -> Sequence[float]:
    """Ranks by how far a head's z, patched at all positions, restores the right token.

    It is patched from each prompt into the corrupt one; mean over the cases.
    """
    effects = [
        activation_patching(runner, *_rows(runner, case), metric=_metric(case), over="z").normalised
        for case in cases(runner)
    ]
    return ranks(np.mean(effects, axis=0), heads)


def path_ranks(
    runner: Runner, *, cases: Cases, heads: Sequence[LayerHead], receivers: Sequence[str]
) -> Sequence[float]:
    """Ranks by how far the paths from a head to some receivers restore the right token.

    Path patching, from each prompt into the corrupt one; mean over the cases.
    receivers: names as in `path_patching`, patched together.
    """
    config, scores = runner.config, list[np.ndarray]()
    senders = [f"{layer}.*" for layer in range(config.n_layer)]
    for case in cases(runner):
        clean, corrupt = _rows(runner, case)
        found = path_patching(
            runner, clean, corrupt,
            senders=senders, receivers=[tuple(receivers)], metric=_metric(case),
        )  # fmt: skip
        scores.append(found.scores.reshape(config.n_layer, config.n_head))
    return ranks(np.nan_to_num(np.mean(scores, axis=0), nan=-np.inf), heads)


def _attribution(runner: Runner, cases: Cases) -> Floats:
    """(layer, head) direct logit attribution, mean over the cases."""
    attribute = partial(direct_logit_attribution, runner, prepend_bos=True, by="head")
    found = (attribute(case.prompt, target=case.right, foil=case.wrong) for case in cases(runner))
    return np.asarray(np.mean([one.values["head"] for one in found], axis=0))


def _rows(runner: Runner, case: Case) -> tuple[list[int], list[int]]:
    """Ids of a prompt and of its corrupt twin."""
    return ids_of(runner, case.prompt), ids_of(runner, case.corrupt)


def _metric(case: Case) -> Metric:
    return Metric.logit_diff(case.right, case.wrong)
