"""Copying scores and circuits against the whole matrices, and in planted heads."""

import numpy as np
import torch

from gpt2kit import TorchRunner
from probes.heads.circuits import ov_top_tokens, qk_top_tokens
from probes.heads.copying import copying_score
from tests import planted
from tests.conftest import CONFIG, byte_tokenizer, close, random_ids, random_model


def dense_ov(runner: TorchRunner, layer: int, head: int, embedding: torch.Tensor) -> torch.Tensor:
    """(vocab, vocab) the whole OV matrix of a head, in float64. embedding: of the keys."""
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
    assert scores[1, 1:].min() > 0.6
    vocab = bundled.config.vocab_size

    def own_ranks(layer: int, head: int) -> list[int]:
        """The rank of some tokens among those that the head promotes when it attends to them."""
        some = range(300, 1500, 60)
        read = {t: ov_top_tokens(bundled, layer, head, t, top_k=vocab) for t in some}
        return [int(np.flatnonzero(ov.ids == t)[0]) for t, ov in read.items()]

    assert all(np.median(own_ranks(1, head)) < vocab / 4 for head in range(1, 6))
    assert scores[6, 4] < -0.9
    assert np.median(own_ranks(6, 4)) > vocab / 2


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
    """Without positions, the head attends only to the one token of a sequence of length 1."""
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


def test_circuits_are_the_same_on_every_engine(torch_runner, runner):
    close(copying_score(runner).scores, copying_score(torch_runner).scores)
    for circuit in (ov_top_tokens, qk_top_tokens):
        got, want = (circuit(r, 1, 2, "a", top_k=20) for r in (runner, torch_runner))
        close(got.values, want.values)
        assert got.tokens == want.tokens
