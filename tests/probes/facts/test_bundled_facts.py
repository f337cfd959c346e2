"""The facts about the bundled model hold, on both engines, and would not hold of another model."""

from dataclasses import replace

import pytest

from exporters import open_onnx
from gpt2kit import TorchRunner
from gpt2kit.taps import resolve
from probes.facts.bundled_facts import EDITS, FACTS, TAPS
from probes.facts.check import check_facts
from tests.conftest import random_model
from tests.probes.facts.support import Watched


def test_they_hold_on_torch(bundled):
    report = check_facts(bundled)
    assert report.passed, str(report)
    assert [row.verdict for row in report.rows] == ["holds"] * len(FACTS)
    assert len(FACTS) >= 8
    assert (
        repr(report) == f"FactsReport(bundled, float32: {len(FACTS)} holds, 0 differs, 0 skipped)"
    )


@pytest.mark.slow
def test_they_hold_on_an_exported_file(bundled_file):
    report = check_facts(open_onnx(bundled_file(taps=TAPS, edits=EDITS), device="cpu"))
    assert [row.verdict for row in report.rows] == ["holds"] * len(FACTS), str(report)


@pytest.mark.slow
def test_they_hold_on_a_quantised_file_but_for_paths(bundled_file):
    taps = tuple(tap for tap in TAPS if tap != "blocks.*.head_out")  # these files cannot have it
    runner = open_onnx(bundled_file(taps=taps, edits=EDITS, quantize="int8"), device="cpu")
    report = check_facts(runner)
    verdicts = {row.fact.name: row.verdict for row in report.rows}
    skipped = [name for name, verdict in verdicts.items() if verdict == "skipped"]
    assert skipped == [fact.name for fact in FACTS if "reads, " in fact.name]
    assert set(verdicts.values()) == {"holds", "skipped"}, str(report)


@pytest.mark.slow
def test_a_file_that_lacks_a_tap_says_so(bundled_file):
    report = check_facts(open_onnx(bundled_file(taps="blocks.*.pattern"), device="cpu"))
    verdicts = {row.fact.name: row.verdict for row in report.rows}
    assert report.passed
    assert set(verdicts.values()) == {"holds", "skipped"}
    skipped = " ".join(row.skipped for row in report.rows)
    assert "blocks.0.z" in skipped
    assert "resid_post" in skipped


@pytest.mark.slow
def test_they_do_not_hold_of_a_random_model_and_need_the_stated_taps_and_edits(bundled):
    layers = bundled.config.n_layer
    random = Watched(TorchRunner(random_model(bundled.config, seed=5), bundled.tokenizer))
    report = check_facts(random, FACTS)
    held = [row.fact.name for row in report.rows if row.verdict != "differs"]
    assert len(held) <= 1, held  # a rank may come out right by chance
    assert random.taps == set(resolve(TAPS, layers))
    assert random.edits == set(resolve(EDITS, layers))


def test_each_says_why_its_bar_is_where_it_is():
    assert len({fact.name for fact in FACTS}) == len(FACTS)
    for fact in FACTS:
        assert fact.reason
        assert len(fact.labels) == len(fact.claimed)
        assert fact.measure is not None
        assert not (fact.at_most and fact.at_least)


def test_a_wrong_claim_differs(bundled):
    loss = FACTS[0]
    assert not check_facts(bundled, [replace(loss, claimed=(loss.claimed[0] + 0.1,))]).passed
