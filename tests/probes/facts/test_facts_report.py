"""Verdicts, and the report as text and JSON."""

import json
from dataclasses import replace

import pytest

from gpt2kit.runner import Source
from probes.facts.check import check_facts
from probes.facts.fact import Fact
from probes.facts.facts_report import Checked
from probes.facts.published import FACTS
from tests.probes.facts.support import small


def fact(measured=1.0, **change) -> Fact:
    given = {
        "name": "a fact", "source": "somewhere", "measure": lambda _: [measured], "claimed": (1.0,),
        "reason": "because",
    }  # fmt: skip
    return Fact(**given | change)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (fact(), "holds"),
        (fact(1.1), "differs"),
        (fact(1.1, tolerance=0.2), "holds"),
        (fact(0.9, tolerance=0.05), "differs"),
        (fact(0.9, at_most=True), "holds"),
        (fact(1.1, at_most=True), "differs"),
        (fact(float("nan"), tolerance=9), "differs"),
        (fact(float("nan"), at_most=True), "differs"),
        (fact(1.1, at_least=True), "holds"),
        (fact(0.9, at_least=True), "differs"),
        (fact(0.9, at_least=True, tolerance=0.2), "holds"),
        (fact(float("nan"), at_least=True), "differs"),
        (fact(measure=None), "skipped"),
        (fact(claimed=(1.0, 2.0), labels=("a", "b"), measure=lambda _: [1.0, 3.0]), "differs"),
    ],
)
def test_verdicts(given, verdict):
    class Weightless:
        source, precision = Source("x"), "float32"

    report = check_facts(Weightless(), [given])
    assert report.rows[0].verdict == verdict
    assert report.passed == (verdict == "holds")
    assert check_facts(Weightless(), [fact(), given]).passed == (verdict != "differs")
    assert not check_facts(Weightless(), []).passed


def test_the_table_fits_80_columns_and_shows_claim_margin_measurement_and_reason():
    runner = small(n_embd=48, n_layer=12, n_head=12)
    rows = [replace(f, measure=lambda _, f=f: [-1234.0] * len(f.claimed)) for f in FACTS]
    report = check_facts(
        runner, [*rows, fact(2.0), fact(1.0, tolerance=0.5), fact(3.0, at_least=True)]
    )
    text = str(report)
    assert max(len(line) for line in text.split("\n")) <= 80
    assert all(f.name.split(":")[0].split()[0] in text for f in FACTS)
    assert "Sid 5.281 ± 0.002" in text
    assert "rank of 11.10 ≤ 2" in text
    assert text.count("because") == 1  # the reason of what differs alone
    assert "1 ± 0.5" in text
    assert "≥ 1" in text
    assert "<pre" in report._repr_html_()


def test_json_holds_numbers_and_verdicts():
    skipped = Checked(fact(), (), "no reason")
    report = check_facts(small(n_embd=24, n_layer=1, n_head=2), [fact(1.5, labels=("x",))])
    read = json.loads(replace(report, rows=(*report.rows, skipped)).to_json())
    assert (read["source"], read["dtype"], read["passed"]) == ("small", "float32", False)
    assert read["rows"][0] == {
        "name": "a fact", "source": "somewhere", "labels": ["x"], "claimed": [1.0],
        "tolerance": 0.0, "at_most": False, "at_least": False, "reason": "because",
        "measured": [1.5], "verdict": "differs", "skipped": "", "digits": 0,
    }  # fmt: skip
    assert (read["rows"][1]["verdict"], read["rows"][1]["measured"]) == ("skipped", [])


def test_a_measurement_that_is_no_number_is_null_in_json(torch_runner):
    def nothing(runner):
        return [float("nan")]

    fact = Fact(name="x", source="s", measure=nothing, claimed=(0.0,), reason="")
    read = json.loads(check_facts(torch_runner, [fact]).to_json())
    assert read["rows"][0]["measured"] == [None]
    assert not read["passed"]
