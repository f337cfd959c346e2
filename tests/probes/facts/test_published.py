"""The list of published facts. The real gpt2 is not here, so its numbers are not tested."""

import numpy as np
import pytest

from gpt2kit import GPT2Config, Tokenizer, TorchRunner
from gpt2kit.taps import resolve
from probes.facts.check import KNOWN_MODELS, check_facts
from probes.facts.published import FACTS
from tests.conftest import GPT2_TOKENIZER, random_model
from tests.probes.facts.support import IOI, Watched, small


def test_every_published_fact_can_be_measured_and_a_random_model_has_few_of_them():
    runner, known = Watched(small(n_embd=48, n_layer=12, n_head=12)), KNOWN_MODELS[0]
    assert known.facts is FACTS
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
    # A file with the stated taps and edits answers all that is measured.
    assert runner.taps == set(resolve(known.taps, 12))
    assert runner.edits == set(resolve(known.edits, 12))


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
