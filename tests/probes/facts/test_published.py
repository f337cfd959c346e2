"""The list of published facts, and facts recorded from the bundled model.

The real gpt2 is not here, so its numbers are not tested.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from exporters import open_onnx
from gpt2kit import Edit, GPT2Config, Tokenizer, TorchRunner
from gpt2kit.taps import resolve
from probes.facts import measures as fact_measures
from probes.facts import published
from probes.facts.check import NEEDED_EDITS, NEEDED_TAPS, check_facts
from probes.facts.fact import Fact
from probes.facts.published import FACTS
from tests.conftest import GPT2_TOKENIZER, random_model
from tests.probes.facts.support import IOI, small


def test_every_published_fact_can_be_measured_and_a_random_model_has_few_of_them():
    runner = small(n_embd=48, n_layer=12, n_head=12)
    seen = []
    report = check_facts(runner, FACTS, on_progress=lambda *counts: seen.append(counts))
    assert seen == [(i + 1, len(FACTS)) for i in range(len(FACTS))]
    assert [row.fact for row in report.rows] == list(FACTS)
    left_out = [row for row in report.rows if row.skipped]
    assert [row.fact.claimed for row in left_out] == [(0.769,)]
    assert "not measured: 1 - KL(" in " ".join(str(report).split())
    for row in report.rows:
        if row.skipped:
            continue
        assert len(row.measured) == len(row.fact.claimed) == len(row.fact.labels)
        assert np.isfinite(row.measured).all()
        if "rank" in row.fact.labels[0]:
            assert min(row.measured) >= 1
            assert max(row.measured) <= (12 if "MLPs" in row.fact.name else 144)
    assert not report.passed
    assert [row.verdict for row in report.rows].count("differs") > len(FACTS) / 2


class Watched:
    """A runner that records the taps and edits it is called with."""

    def __init__(self, runner) -> None:
        self.config, self.tokenizer, self.source = runner.config, runner.tokenizer, runner.source
        self.dtype, self.inner, self.taps, self.edits = runner.dtype, runner, set(), set()
        self.weight, self.precision = runner.weight, runner.precision

    def run(self, ids, *, taps=(), edits=(), **options):
        self.taps |= set(resolve(taps, self.config.n_layer))
        self.edits |= {tap for edit in edits for tap in resolve(edit.tap, self.config.n_layer)}
        return self.inner.run(ids, taps=taps, edits=edits, **options)


def test_a_file_with_the_stated_taps_and_edits_answers_all_that_is_measured():
    watched = Watched(small(n_embd=48, n_layer=12, n_head=12))
    report = check_facts(watched, FACTS)
    skipped = [row.fact.name for row in report.rows if row.skipped]
    assert skipped == [fact.name for fact in FACTS if fact.measure is None]
    assert watched.taps == set(resolve(NEEDED_TAPS, 12))
    assert watched.edits == set(resolve(NEEDED_EDITS, 12))


def test_the_ids_are_those_of_gpt2s_vocabulary():
    if not GPT2_TOKENIZER.is_dir():
        pytest.skip("GPT-2's tokenizer is not here")
    tokenizer = Tokenizer.from_folder(GPT2_TOKENIZER)
    runner = TorchRunner(random_model(GPT2Config(n_embd=12, n_layer=1, n_positions=32)), tokenizer)
    assert [row.verdict for row in check_facts(runner, FACTS[:2]).rows] == ["holds", "holds"]
    for prompt, *names in IOI:
        assert len(tokenizer.encode(prompt)) == 14
        assert all(tokenizer.single(name) for name in names)


def test_claims_are_ordered_as_their_labels():
    claims = {fact.name: dict(zip(fact.labels, fact.claimed, strict=True)) for fact in FACTS}
    assert len(claims) == len(FACTS)
    differences = claims["IOI: logit differences of the 8 prompts"]
    assert differences["Mary"] == 3.337
    assert differences["Amy"] == 5.767
    assert np.mean(list(differences.values())) == pytest.approx(3.552, abs=5e-4)
    heads = next(fact for fact in FACTS if "greater-than: heads" in fact.name)
    assert heads.measure.keywords["places"][:3] == [(9, 1), (8, 11), (7, 10)]
    assert heads.labels[:3] == ("rank of 9.1", "rank of 8.11", "rank of 7.10")
    induction = {label for f in FACTS if "induction" in f.name for label in f.labels}
    assert induction >= {f"rank of {head}" for head in ("5.5", "5.8", "5.9", "6.9")}
    mlps = next(fact for fact in FACTS if "greater-than: MLPs" in fact.name)
    assert mlps.measure.keywords["places"] == [(8, 0), (9, 0), (10, 0), (11, 0)]


TEXT = "The Queen of Hearts, she made some tarts, all on a summer's day."

RECORDED = (
    Fact(
        name="loss", source="recorded", measure=partial(fact_measures.loss, text=TEXT),
        claimed=(4.590174,), tolerance=1e-4, digits=5, reason="float32",
    ),
    Fact(
        name="next", source="recorded", labels=("time", "little"), digits=4, reason="float32",
        measure=partial(
            fact_measures.probabilities, prompt="Once upon a", tokens=[" time", " little"]
        ),
        claimed=(0.0077703, 0.0142428), tolerance=1e-6,
    ),
    Fact(
        name="ids", source="recorded", labels=("Mary", "John"), claimed=(1042, 1136),
        measure=partial(fact_measures.ids_of_tokens, tokens=[" Mary", " John"]), reason="exact",
    ),
    published._looking("induction", "its card", "induction", "1.3 1.1 1.5 1.2 1.0 1.4", 6),
    published._looking("previous", "its card", "previous_token", "0.1 0.3", 2),
    Fact(
        name="weights", source="recorded", claimed=(1.0,), at_most=True, reason="a score",
        measure=partial(fact_measures.copying, head=(1, 3)),
    ),
)  # fmt: skip


def test_recorded_facts_hold_on_torch(bundled):
    report = check_facts(bundled, RECORDED)
    assert [row.verdict for row in report.rows] == ["holds"] * 6, str(report)
    assert report.passed
    assert repr(report) == "FactsReport(bundled, float32: 6 holds, 0 differs, 0 skipped)"
    wrong = replace(RECORDED[0], claimed=(4.5905,))
    assert not check_facts(bundled, [wrong, *RECORDED]).passed


@pytest.mark.slow
def test_recorded_facts_hold_on_an_exported_file_and_the_rest_says_why_not(bundled_file):
    runner = open_onnx(bundled_file(taps="blocks.*.pattern"), device="cpu")
    cut = Edit.zero("blocks.1.z", head=3)
    edited = replace(
        RECORDED[0], name="edited", measure=lambda r: [float(r.run([1], edits=[cut]).logits.max())]
    )
    mlp = replace(RECORDED[0], measure=lambda r: r.run([1], taps="blocks.0.mlp_out").taps)
    report = check_facts(runner, [*RECORDED, edited, mlp])
    assert [row.verdict for row in report.rows] == ["holds"] * 6 + ["skipped"] * 2, str(report)
    edit, tap = (row.skipped for row in report.rows[6:])
    assert "blocks.1.z" in edit
    assert "blocks.0.mlp_out" in tap
    assert report.passed
