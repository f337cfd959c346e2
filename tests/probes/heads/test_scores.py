"""Scores of heads against their definition, and against heads planted in a model."""

import json

import numpy as np
import pytest

from probes.heads.scores import HEAD_KINDS, head_scores
from probes.tasks.repeated_tokens import repeated_tokens
from tests import planted
from tests.conftest import CONFIG, close
from tests.probes.heads.support import PROMPT, loss, patterns_by_hand

PLANTED = dict(
    zip(
        HEAD_KINDS,
        (planted.PREVIOUS, planted.DUPLICATE, planted.INDUCTION, planted.FIRST, planted.CURRENT),
        strict=True,
    )
)


def targets_by_hand(ids: list[int], i: int) -> dict[str, set[int]]:
    """The positions that a head of each kind attends to from position i."""
    copies = {j for j in range(i) if ids[j] == ids[i]}
    return {
        "previous_token": {i - 1},
        "duplicate_token": copies,
        "induction": {j + 1 for j in copies if j + 1 < i},
        "first_token": {0},
        "current_token": {i},
    }


def scores_by_hand(torch_runner, ids: np.ndarray, start: int) -> dict[str, np.ndarray]:
    patterns = patterns_by_hand(torch_runner, ids)
    paid = {kind: [] for kind in HEAD_KINDS}
    for row, tokens in enumerate(ids.tolist()):
        for i in range(start, len(tokens)):
            for kind, targets in targets_by_hand(tokens, i).items():
                if targets:
                    paid[kind].append(patterns[:, row, :, i, sorted(targets)].sum(0))
    none = np.full((CONFIG.n_layer, CONFIG.n_head), np.nan)
    return {kind: np.mean(found, 0) if found else none for kind, found in paid.items()}


def test_scores_on_repeated_tokens_equal_their_definition(torch_runner, engine):
    got = head_scores(engine, length=12, batch=3, seed=7)
    ids = repeated_tokens(CONFIG.vocab_size, 3, 12, seed=7)
    for kind, want in scores_by_hand(torch_runner, ids, start=12).items():
        close(getattr(got, kind), want)
    # In the second half the copy of token i is at i - 12, and what came after it at i - 11.
    patterns = patterns_by_hand(torch_runner, ids)
    for kind, back in {"duplicate_token": 12, "induction": 11}.items():
        diagonal = patterns.diagonal(-back, 3, 4)[..., 12 - back :]
        close(getattr(got, kind), diagonal.mean((1, 3)))


@pytest.mark.parametrize("prompt", [PROMPT, "aabab", "aa", [5, 5, 5, 5, 2]])
def test_scores_on_a_text_equal_their_definition(torch_runner, engine, prompt):
    ids = engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    got = head_scores(engine, prompt=prompt)
    for kind, want in scores_by_hand(torch_runner, np.array([ids]), start=1).items():
        np.testing.assert_allclose(getattr(got, kind), want, rtol=1e-4, atol=1e-4, err_msg=kind)


def test_a_kind_without_targets_has_no_score(torch_runner):
    got = head_scores(torch_runner, prompt="abc")
    assert np.isnan(got.duplicate_token).all()
    assert np.isnan(got.induction).all()
    assert not np.isnan(got.previous_token).any()
    assert got.leading("induction") == []
    assert all(
        np.isnan(getattr(head_scores(torch_runner, prompt="a"), k)).all() for k in HEAD_KINDS
    )
    assert json.loads(got.to_json())["induction"] == [[None] * 3] * 3
    assert "induction" in str(got)


def test_leading_heads_come_best_first(torch_runner):
    got = head_scores(torch_runner, length=10)
    best = got.leading("induction", 9)
    assert [score for *_, score in best] == sorted(got.induction.ravel(), reverse=True)
    assert all(got.induction[layer, head] == score for layer, head, score in best)
    assert len(got.leading("current_token", 2)) == 2


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_detector_finds_the_planted_head_and_no_other(known, kind, seed):
    scores = getattr(head_scores(known, length=32, seed=seed), kind).copy()
    assert scores[PLANTED[kind]] > 0.999
    scores[PLANTED[kind]] = 0
    assert scores.max() < 0.05


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_every_detector_finds_the_planted_head_on_a_text(known, kind):
    prompt = " ".join(f"w{i}" for i in [*range(20), 3, 4, 5, 6, 7, 8, 11, 12, 13])
    scores = getattr(head_scores(known, prompt=prompt), kind).copy()
    assert scores[PLANTED[kind]] > 0.999
    scores[PLANTED[kind]] = 0
    assert scores.max() < 0.25  # heads that look everywhere alike, on few keys


def test_planted_induction_needs_both_of_its_heads(known):
    ids = repeated_tokens(planted.VOCAB, 4, 32)
    uniform, second = np.log(planted.VOCAB), slice(32, None)
    losses = loss(known, ids)
    assert losses[:, second].max() < 0.01
    assert losses[:, :31].min() > uniform - 1
    for head in (planted.PREVIOUS, planted.INDUCTION):
        assert loss(known, ids, [head])[:, second].mean() > uniform - 0.5
    others = [planted.CURRENT, planted.DUPLICATE, planted.FIRST, *planted.IDLE]
    close(loss(known, ids, others), losses)


def test_knocking_out_the_bundled_models_induction_heads_stops_induction(bundled):
    found = [head[:2] for head in head_scores(bundled).leading("induction", 48) if head[2] > 0.5]
    assert {layer for layer, _ in found} == {1, 2}
    assert len(found) > 6
    ids = repeated_tokens(bundled.config.vocab_size - 1, 4, 40, seed=5)

    def second_half(heads) -> float:
        return loss(bundled, ids, heads)[:, 40:].mean()

    untouched, without = second_half([]), second_half(found)
    assert untouched < 0.05
    assert without > 8
    # All heads of any later layer do next to nothing; those of layer 0 feed these.
    others = [second_half([(layer, head) for head in range(6)]) for layer in range(3, 8)]
    assert max(others) < 0.2
