"""Measure published facts on a model."""

from __future__ import annotations

from collections.abc import Sequence

from gpt2kit.errors import EditError, InputError, TapError
from gpt2kit.progress import OnProgress, Progress
from gpt2kit.result import model_header
from gpt2kit.runner import Runner
from probes.facts.fact import Fact
from probes.facts.facts_report import Checked, FactsReport
from probes.facts.published import FACTS
from probes.facts.real_gpt2 import require_gpt2

# The taps and edits that an exported file must have to answer every fact.
NEEDED_TAPS = (
    "embed", "pos_embed", "blocks.*.pattern", "blocks.*.z", "blocks.*.mlp_out",
    "blocks.-1.resid_post", "ln_f_scale",
)  # fmt: skip
NEEDED_EDITS = ("blocks.*.z", "blocks.*.mlp_out")


def check_facts(
    runner: Runner,
    facts: Sequence[Fact] | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> FactsReport:
    """Measure each fact.

    facts: by default all of `published.FACTS`; then the model must be the real gpt2.
    on_progress: called after each with (facts done, all facts).
    Facts that need taps or edits which an exported file lacks are skipped. Raises NotTheRealModel
    if no facts are given and `runner` is not gpt2.
    """
    if facts is None:
        require_gpt2(runner)
        facts = FACTS
    if not isinstance(facts, Sequence) or not all(isinstance(fact, Fact) for fact in facts):
        raise InputError("facts must be a list of Facts")
    rows, progress = [], Progress(on_progress, len(facts))
    for fact in facts:
        rows.append(_check_fact(runner, fact))
        progress.add(1)
    return FactsReport(**model_header(runner), rows=tuple(rows))


def _check_fact(runner: Runner, fact: Fact) -> Checked:
    if fact.measure is None:
        return Checked(fact, (), f"not measured: {fact.reason}")
    try:
        return Checked(fact, tuple(float(x) for x in fact.measure(runner)))
    except (TapError, EditError) as error:
        return Checked(fact, (), str(error))
