"""Attention probes against their definitions, and against heads that were put there on purpose."""

import json
import re

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from gpt2kit import Edit, TorchRunner
from gpt2kit.errors import InputError
from probes.heads import patterns
from probes.heads.circuits import ov_top_tokens, qk_top_tokens
from probes.heads.copying import copying_score
from probes.heads.patterns import attention_patterns
from probes.heads.scores import KINDS, head_scores
from probes.heads.statistics import attention_statistics
from probes.tasks.datasets import repeated_tokens
from tests import by_hand, planted
from tests.conftest import CONFIG, byte_tokenizer, close, random_ids, random_model
from tests.planted import planted_runner

PROMPT = "the cat, the hat, the"
PLANTED = dict(
    zip(
        KINDS,
        (planted.PREVIOUS, planted.DUPLICATE, planted.INDUCTION, planted.FIRST, planted.CURRENT),
        strict=True,
    )
)


def patterns_by_hand(torch_runner, ids) -> np.ndarray:
    """(layer, batch, head, query, key)."""
    values = by_hand.forward(torch_runner.model, np.atleast_2d(ids))
    return np.stack([values[f"blocks.{i}.pattern"] for i in range(CONFIG.n_layer)])


def loss(runner, ids, heads=()) -> np.ndarray:
    """(batch, pos - 1) nats, with some heads knocked out."""
    edits = [Edit.zero(f"blocks.{layer}.z", head=head) for layer, head in heads]
    logits = runner.run(ids, edits=edits).logits.astype(np.float64)[:, :-1]
    shifted = logits - logits.max(-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(logprobs, np.asarray(ids)[:, 1:, None], -1)[..., 0]


@pytest.fixture(scope="module")
def known() -> TorchRunner:
    return planted_runner()


@pytest.fixture(params=["torch", "onnx"])
def engine(request):
    return request.getfixturevalue(f"{request.param}_runner")


# Patterns and statistics


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
        if kind in KINDS:
            close(score, getattr(whole, kind), 1e-6)
    assert [len(taps) for taps in runs] == [2, 1]


# Scores


def targets_by_hand(ids: list[int], i: int) -> dict[str, set[int]]:
    """Where the head of each kind looks from position i."""
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
    paid = {kind: [] for kind in KINDS}
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
    assert all(np.isnan(getattr(head_scores(torch_runner, prompt="a"), k)).all() for k in KINDS)
    assert json.loads(got.to_json())["induction"] == [[None] * 3] * 3
    assert "induction" in str(got)


def test_leading_heads_come_best_first(torch_runner):
    got = head_scores(torch_runner, length=10)
    best = got.leading("induction", 9)
    assert [score for *_, score in best] == sorted(got.induction.ravel(), reverse=True)
    assert all(got.induction[layer, head] == score for layer, head, score in best)
    assert len(got.leading("current_token", 2)) == 2


# Heads that are known


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_detector_finds_the_planted_head_and_no_other(known, kind, seed):
    scores = getattr(head_scores(known, length=32, seed=seed), kind).copy()
    assert scores[PLANTED[kind]] > 0.999
    scores[PLANTED[kind]] = 0
    assert scores.max() < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_text_too(known, kind):
    prompt = " ".join(f"w{i}" for i in [*range(20), 3, 4, 5, 6, 7, 8, 11, 12, 13])
    scores = getattr(head_scores(known, prompt=prompt), kind).copy()
    assert scores[PLANTED[kind]] > 0.999
    scores[PLANTED[kind]] = 0
    assert scores.max() < 0.25  # heads that look everywhere alike, on few keys


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
    found = [head[:2] for head in head_scores(bundled).leading("induction", 36) if head[2] > 0.5]
    assert sorted(found) == [(1, head) for head in range(6)]
    ids = repeated_tokens(bundled.config.vocab_size - 1, 4, 40, seed=5)

    def second_half(heads) -> float:
        return loss(bundled, ids, heads)[:, 40:].mean()

    untouched, without = second_half([]), second_half(found)
    assert untouched < 0.05
    assert without > 8
    # As many heads of any later layer do next to nothing; those of layer 0 feed these.
    others = [second_half([(layer, head) for head in range(6)]) for layer in range(2, 6)]
    assert max(others) < 0.2


# Circuits


def dense_ov(runner: TorchRunner, layer: int, head: int, embedding: torch.Tensor) -> torch.Tensor:
    """(vocab, vocab) OV of a head, all of it, in float64; embedding: what is looked at."""
    w = {name: x.double() for name, x in runner.model.state_dict().items()}
    c, width = runner.config, runner.config.d_head
    own = slice(2 * c.n_embd + head * width, 2 * c.n_embd + (head + 1) * width)
    w_v = w[f"h.{layer}.attn.c_attn.weight"][:, own]
    w_o = w[f"h.{layer}.attn.c_proj.weight"][head * width : (head + 1) * width]
    centre = torch.eye(c.n_embd).double() - 1 / c.n_embd
    read = embedding @ torch.diag(w[f"h.{layer}.ln_1.weight"]) @ w_v
    unembed = w.get("lm_head.weight", w["wte.weight"])
    return read @ w_o @ centre @ torch.diag(w["ln_f.weight"]) @ unembed.T


def centred(embedding: torch.Tensor) -> torch.Tensor:
    return embedding.double() - embedding.double().mean(-1, keepdim=True)


def test_copying_scores_equal_those_of_the_whole_matrix(torch_runner, double):
    for runner, tolerance in ((torch_runner, 1e-4), (double, 1e-9)):
        got = copying_score(runner).scores
        assert (np.abs(got) <= 1).all()
        for layer, head in np.ndindex(got.shape):
            whole = dense_ov(runner, layer, head, centred(runner.model.wte.weight))
            eigenvalues = torch.linalg.eigvals(whole).numpy()
            large = eigenvalues[np.abs(eigenvalues) > 1e-9 * np.abs(eigenvalues).max()]
            assert len(large) <= CONFIG.d_head
            close(got[layer, head], (large.sum() / np.abs(large).sum()).real, tolerance)


def test_the_planted_induction_head_is_the_one_that_copies(known):
    scores = copying_score(known).scores
    close(scores[planted.INDUCTION], 1)
    scores[planted.INDUCTION] = np.nan
    assert np.isnan(scores).all()
    assert "1.2  1.00" in str(copying_score(known))


def test_a_head_turned_round_suppresses(torch_runner):
    scores = copying_score(torch_runner).scores
    model = random_model()
    for block in model.h:
        block.attn.c_proj.weight.neg_()
    close(copying_score(TorchRunner(model)).scores, -scores)


def test_induction_heads_of_the_bundled_model_copy(bundled):
    scores = copying_score(bundled).scores
    assert scores[1].min() > 0.9
    vocab = bundled.config.vocab_size

    def own_ranks(layer: int, head: int) -> list[int]:
        """Of tokens, among those that the head promotes when it looks at them."""
        some = range(300, 1500, 60)
        read = {t: ov_top_tokens(bundled, layer, head, t, top_k=vocab) for t in some}
        return [int(np.flatnonzero(ov.ids == t)[0]) for t, ov in read.items()]

    assert all(np.median(own_ranks(1, head)) <= 2 for head in range(6))
    assert scores[5, 0] < -0.9
    assert np.median(own_ranks(5, 0)) > vocab / 2


def test_ov_tokens_are_the_largest_of_a_row_of_the_whole_matrix(double):
    token, layer, head = 17, 2, 1
    c = double.config
    embedding = torch.nn.functional.layer_norm(
        double.model.wte.weight, [c.n_embd], eps=c.layer_norm_epsilon
    )
    row = dense_ov(double, layer, head, embedding)[token]
    got = ov_top_tokens(double, layer, head, token, top_k=c.vocab_size)
    close(got.values, row.sort(descending=True).values, 1e-9)
    np.testing.assert_array_equal(got.ids, row.argsort(descending=True))
    some = ov_top_tokens(double, layer, head, double.tokenizer.decode([token]), top_k=4)
    np.testing.assert_array_equal(some.ids, got.ids[:4])
    assert list(some.tokens) == double.tokenizer.tokens(some.ids)
    assert some.token == double.tokenizer.decode([token])


def test_ov_is_what_the_model_writes_when_it_looks_at_one_token():
    """Without positions, a sequence of one token is a head that looks at that token alone."""
    model = random_model(dtype=torch.float64)
    model.wpe.weight.zero_()
    runner = TorchRunner(model, byte_tokenizer())
    a, b = (runner.run([[t]], taps="blocks.0.head_out").taps["blocks.0.head_out"][0, 0, 1]
            for t in (17, 30))  # fmt: skip
    norm, unembed = model.ln_f.weight.numpy(), model.unembedding.numpy()
    want = unembed @ ((a - b - (a - b).mean()) * norm)  # what is the same for all tokens drops out
    rows = [ov_top_tokens(runner, 0, 1, t, top_k=CONFIG.vocab_size) for t in (17, 30)]
    ordered = [row.values[np.argsort(row.ids)] for row in rows]
    close(ordered[0] - ordered[1], want, 1e-9)


def test_qk_is_the_models_score_without_positions():
    model = random_model(dtype=torch.float64)
    model.wpe.weight.zero_()
    runner = TorchRunner(model, byte_tokenizer())
    keys, query = random_ids(30, seed=3), 17
    taps = runner.run([*keys, query], taps="blocks.0.attn_scores").taps
    scores = taps["blocks.0.attn_scores"][0, 2, -1, :-1]
    got = qk_top_tokens(runner, 0, 2, query, top_k=CONFIG.vocab_size)
    mine = got.values[np.argsort(got.ids)][keys]
    close(mine - mine[0], scores - scores[0], 1e-9)
    assert (np.diff(got.values) <= 0).all()


def test_qk_of_planted_heads_finds_what_they_match(known):
    got = qk_top_tokens(known, *planted.DUPLICATE, "w5", top_k=2)
    assert got.tokens[0] == "w5"
    assert got.values[0] > got.values[1] + planted.SHARP
    assert ov_top_tokens(known, *planted.INDUCTION, "w9").tokens[0] == "w9"
    for probe in (ov_top_tokens, qk_top_tokens):  # the last layer, from either end
        first, last = (probe(known, layer, 2, "w9") for layer in (1, -1))
        assert last.layer == 1
        assert last.to_dict() == first.to_dict()


# What is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: attention_patterns(r, ""), "the prompt is empty"),
        (lambda r: attention_patterns(r, []), "the prompt has no tokens"),
        (lambda r: attention_patterns(r, "x" * 41), "the context holds 40"),
        (lambda r: attention_patterns(r, "x" * 40, prepend_bos=True), "do not fit the context"),
        (
            lambda r: attention_patterns(r, "a", layers=[3]),
            r"layers \[3\] are not among the 3 there are, 0 to 2",
        ),
        (
            lambda r: attention_patterns(r, "a", layers=[-4]),
            "are not among the 3 there are, 0 to 2",
        ),
        (lambda r: attention_patterns(r, "a", layers=[]), "are not among the 3 there are, 0 to 2"),
        (
            lambda r: attention_patterns(r, "a", layers=3),
            "layers 3 are not among the 3 there are, 0 to 2",
        ),
        (lambda r: attention_patterns(r, "a", layers=[1]).show(0, 0), "the layers here are 1, hea"),
        (lambda r: attention_patterns(r, "a").show(0, 3), "head 0.3: .* heads 0 to 2"),
        (lambda r: attention_statistics(r, "a"), "one token, which can only look at itself"),
        (lambda r: head_scores(r), "length = 50: twice that does not fit the context of 40"),
        (lambda r: head_scores(r, length=0), "length = 0 must be at least 1"),
        (lambda r: head_scores(r, length=4, batch=0), "batch = 0 must be at least 1"),
        (lambda r: head_scores(r, prompt=[999]), "token id 999 is outside the vocabulary"),
        (lambda r: head_scores(r, length=4).leading("copying"), "'copying' is not one of previous"),
        (lambda r: ov_top_tokens(r, 3, 0, "a"), "the model has layers 0 to 2"),
        (lambda r: qk_top_tokens(r, 0, -1, "a"), "head -1 does not exist; .* heads 0 to 2"),
        (lambda r: ov_top_tokens(r, 0, 0, "ab"), "'ab' is not one token"),
        (lambda r: ov_top_tokens(r, 0, 0, 999), "token id 999 is outside the vocabulary of 261"),
        (lambda r: qk_top_tokens(r, 0, 0, "a", top_k=0), "top_k = 0 must be from 1 to 261"),
    ],
)
def test_bad_arguments_are_refused(torch_runner, call, message):
    with pytest.raises(InputError, match=message):
        call(torch_runner)


def test_circuits_are_the_same_on_every_engine(torch_runner, runner):
    close(copying_score(runner).scores, copying_score(torch_runner).scores)
    for circuit in (ov_top_tokens, qk_top_tokens):
        got, want = (circuit(r, 1, 2, "a", top_k=20) for r in (runner, torch_runner))
        close(got.values, want.values)
        assert got.tokens == want.tokens


def test_without_a_tokenizer_tokens_are_numbers():
    runner = TorchRunner(random_model())
    assert attention_patterns(runner, [5, 7]).tokens == ("5", "7")
    assert ov_top_tokens(runner, 0, 0, 5).token == "5"
    with pytest.raises(InputError, match="no tokenizer to look 'a' up; give its id"):
        ov_top_tokens(runner, 0, 0, "a")


# How it looks


def drawn(result, width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(result.render())
    return capture.get()


@pytest.mark.parametrize("width", [22, 40, 80, 200])
@pytest.mark.parametrize("prompt", ["a", PROMPT, "日本語 🙂[b]\x1b", "x" * 40])
def test_a_grid_fits_the_terminal(torch_runner, width, prompt):
    result = attention_patterns(torch_runner, prompt).show(1, 2)
    text = drawn(result, width)
    assert all(cell_len(line) <= width for line in text.split("\n"))
    assert "\x1b" not in text
    assert "\n" not in repr(result)
    assert result._repr_html_().count("<span") > len(result.tokens) / 2


def test_a_grid_shows_percentages_where_they_fit(known):
    result = attention_patterns(known, "w1 w2 w3 w1 w2").show(*planted.INDUCTION)
    lines = drawn(result, 80).split("\n")
    assert lines[0] == "attention of head 1.2  planted  float32  5 tokens"
    assert "percent of the row's attention" in lines[1]
    assert lines[5].split() == ["2", "w3", "·", "50", "50"]
    assert lines[6][14:] == "  ·100  ·  ·"
    assert lines[8].split() == ["0", "1", "2", "3", "4"]
    assert lines[6].index("100") + 2 == lines[8].index("1")


def test_a_narrow_grid_shows_shades_and_a_very_narrow_one_takes_tokens_together(known):
    block = " ".join(f"w{i}" for i in range(20))
    result = attention_patterns(known, f"{block} {block}").show(*planted.PREVIOUS)
    lines = re.findall(r"^ +\d+ w.*", drawn(result, 60), re.MULTILINE)
    assert len(lines) == 40
    assert all(lines[i].rstrip().index("█") == 14 + i - 1 for i in range(1, 40))
    text = drawn(result, 34)
    assert "2 tokens a cell" in text.replace("\n", " ")
    starts = re.findall(r"^ +\d+ w.*", text, re.MULTILINE)
    assert len(starts) == 20
    # Of a pair, the first token looks into the pair before and the second into its own.
    assert starts[7].rstrip()[-2:] == "▒▒"


def test_tables_name_the_heads_that_lead(known):
    text = str(head_scores(known, length=32))
    first = next(line for line in text.split("\n") if "1.00" in line)
    assert first.split()[::2] == ["0.1", "0.3", "1.2", "1.0", "0.0"]
    assert text.startswith(
        "what heads look at  planted  float32  4 x 32 random tokens, said twice\n"
    )
    looks = str(attention_patterns(known, "w1 w2 w3 w1 w2"))
    assert re.search(r"^1\.2 +4 w2 +2 w3 +1\.000$", looks, re.MULTILINE)
    assert " 0 w" not in looks  # nothing of the first token
    statistics = str(attention_statistics(known, "w1 w2 w3 w1 w2"))
    assert statistics.index("0.0  0.00") < statistics.index("0.2  1.20")
    assert "'w5'" in str(ov_top_tokens(known, *planted.INDUCTION, "w5"))


def test_json_holds_the_numbers(torch_runner):
    scores = head_scores(torch_runner, length=10)
    close(json.loads(scores.to_json())["induction"], scores.induction)
    patterns = attention_patterns(torch_runner, "ab")
    close(json.loads(patterns.to_json())["patterns"], patterns.patterns)
    assert "\n" not in repr(scores) + repr(patterns) + repr(copying_score(torch_runner))
