"""Measure stated facts on a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt2kit.errors import EditError, InputError, TapError
from gpt2kit.progress import OnProgress, Progress
from gpt2kit.result import model_header
from gpt2kit.runner import Runner
from probes.facts import bundled_facts, published
from probes.facts.fact import Fact
from probes.facts.facts_report import Checked, FactsReport
from probes.facts.identity import Identity
from probes.facts.real_gpt2 import GPT2, NotTheRealModel


@dataclass(frozen=True)
class KnownModel:
    """A model with stated facts.

    taps, edits: what an exported file must carry to answer every fact that is measured.
    """

    identity: Identity
    facts: tuple[Fact, ...]
    taps: tuple[str, ...]
    edits: tuple[str, ...]


KNOWN_MODELS = (
    KnownModel(
        GPT2, published.FACTS,
        taps=("embed", "pos_embed", "blocks.*.pattern", "blocks.*.z", "blocks.*.mlp_out",
              "blocks.-1.resid_post", "ln_f_scale"),
        edits=("blocks.*.z", "blocks.*.mlp_out"),
    ),
    KnownModel(
        bundled_facts.BUNDLED, bundled_facts.FACTS, bundled_facts.TAPS, bundled_facts.EDITS
    ),
)  # fmt: skip


def facts_about(runner: Runner) -> tuple[Fact, ...]:
    """The facts stated about a model. Raises NotTheRealModel, which says why, if there are none."""
    differences = list[str]()
    for known in KNOWN_MODELS:
        if not (difference := known.identity.difference(runner)):
            return known.facts
        differences.append(f"it is not {known.identity.name}: {difference}")
    raise NotTheRealModel(
        f"no facts are stated about {runner.source}: {'; '.join(differences)}; name gpt2, bundled, "
        "or a folder or file with their weights"
    )


def check_facts(
    runner: Runner,
    facts: Sequence[Fact] | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> FactsReport:
    """Measure each fact.

    facts: by default all that are stated about the model, which must then be gpt2 or the bundled
           one, in any precision.
    on_progress: called after each with (facts done, all facts).
    Facts that need taps or edits which an exported file lacks are skipped. Raises NotTheRealModel
    if no facts are given and none are stated about `runner`.
    """
    if facts is None:
        facts = facts_about(runner)
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
