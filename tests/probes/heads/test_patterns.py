"""Attention patterns and their statistics against their definitions."""

import json

import numpy as np

from probes.heads import patterns
from probes.heads.attention_statistics import attention_statistics
from probes.heads.copying import copying_score
from probes.heads.patterns import attention_patterns
from probes.heads.scores import HEAD_KINDS, head_scores
from probes.tasks.repeated_tokens import repeated_tokens
from tests import planted
from tests.conftest import CONFIG, close
from tests.probes.heads.support import PROMPT, patterns_by_hand


def test_patterns_are_those_of_the_model(torch_runner, engine):
    got = attention_patterns(engine, PROMPT)
    ids = engine.tokenizer.encode(PROMPT)
    close(got.patterns, patterns_by_hand(torch_runner, ids)[:, 0])
    close(got.patterns.sum(-1), np.ones(got.patterns.shape[:-1]))
    assert not np.triu(got.patterns, 1).any()
    assert got.layers == (0, 1, 2)
    assert "".join(got.tokens) == PROMPT
    np.testing.assert_array_equal(got.prompt_ids, ids)


def test_layers_are_chosen_and_a_bos_put_in_front(torch_runner, engine):
    got = attention_patterns(engine, PROMPT, layers=[-1, 0], prepend_bos=True)
    ids = [CONFIG.bos_token_id, *engine.tokenizer.encode(PROMPT)]
    assert got.layers == (2, 0)
    assert got.tokens[0] == "<|endoftext|>"
    close(got.patterns, patterns_by_hand(torch_runner, ids)[[2, 0], 0])
    close(got.show(0, 1).pattern, got.patterns[1, 1])


def test_statistics_equal_their_definition(torch_runner, engine):
    got = attention_statistics(engine, PROMPT)
    patterns = patterns_by_hand(torch_runner, engine.tokenizer.encode(PROMPT))[:, 0]
    entropy, distance = np.zeros_like(got.entropy), np.zeros_like(got.distance)
    queries = range(1, patterns.shape[-1])
    for query in queries:
        p = patterns[:, :, query, : query + 1].astype(np.float64)
        entropy -= (p * np.log(p)).sum(-1) / len(queries)
        distance += (p * (query - np.arange(query + 1))).sum(-1) / len(queries)
    close(got.entropy, entropy)
    close(got.distance, distance)


def test_a_long_prompt_is_read_a_few_layers_at_a_time(torch_runner, monkeypatch):
    whole = head_scores(torch_runner, length=10)
    runs = []
    monkeypatch.setattr(patterns, "_MAX_WEIGHTS", 2 * 4 * CONFIG.n_head * 20**2)
    run = torch_runner.run
    monkeypatch.setattr(torch_runner, "run", lambda *a, **k: runs.append(k["taps"]) or run(*a, **k))
    for kind, score in vars(head_scores(torch_runner, length=10)).items():
        if kind in HEAD_KINDS:
            close(score, getattr(whole, kind), 1e-6)
    assert [len(taps) for taps in runs] == [2, 1]


def test_idle_heads_look_everywhere_alike_and_write_nothing(known):
    tokens = " ".join(f"w{i}" for i in range(12))
    statistics = attention_statistics(known, tokens)
    alike = np.mean([np.log(i + 1) for i in range(1, 12)])
    run = known.run(known.tokenizer.encode(tokens), taps="blocks.*.head_out")
    for layer, head in np.ndindex(statistics.entropy.shape):
        writes = np.abs(run.taps[f"blocks.{layer}.head_out"][:, :, head]).max()
        assert (writes > 0.01) == ((layer, head) in (planted.PREVIOUS, planted.INDUCTION))
        if (layer, head) in planted.IDLE:
            close(statistics.entropy[layer, head], alike)
            close(statistics.distance[layer, head], np.mean([i / 2 for i in range(1, 12)]))
    assert statistics.entropy[planted.CURRENT] < 1e-6
    close(statistics.distance[planted.CURRENT], 0)
    close(statistics.distance[planted.PREVIOUS], 1)
    close(statistics.distance[planted.FIRST], 6)


def test_the_planted_stream_holds_what_it_says(known):
    ids = repeated_tokens(planted.VOCAB, 2, 16, seed=3)
    taps = known.run(ids, taps=["blocks.0.resid_pre", "blocks.0.resid_post", "ln_f"]).taps
    one_hot = np.eye(planted.VOCAB)
    stream = taps["blocks.0.resid_post"]
    close(stream[..., planted.TOKEN], one_hot[ids])
    close(stream[:, 1:, planted.BEFORE], one_hot[ids[:, :-1]])
    close(stream[..., planted.POSITION], np.broadcast_to(np.eye(64)[:32], (2, 32, 64)))
    even = np.where(ids % 2, -1, 1)
    close(taps["blocks.0.resid_pre"][..., planted.CLASS], even)
    close(stream.sum(-1), np.full(ids.shape, 3))
    close((stream**2).sum(-1), np.full(ids.shape, 5))


def test_json_holds_the_numbers(torch_runner):
    scores = head_scores(torch_runner, length=10)
    close(json.loads(scores.to_json())["induction"], scores.induction)
    patterns = attention_patterns(torch_runner, "ab")
    close(json.loads(patterns.to_json())["patterns"], patterns.patterns)
    assert "\n" not in repr(scores) + repr(patterns) + repr(copying_score(torch_runner))
