"""Neurons: their effect on the logits, their nearest tokens, and the text that drives them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from gpt2kit import TorchRunner
from gpt2kit.edits import Edit
from gpt2kit.errors import InputError, TapError
from probes.neurons.nearest_tokens import nearest_tokens
from probes.neurons.neuron_lens import neuron_lens
from probes.neurons.top_activating import top_activating
from tests.conftest import CONFIG, byte_tokenizer, close, random_model

LAYER, NEURON = 1, 37
TEXTS = ["the cat", "the hat, the dog and " * 7, "", "z" * 40, "he said: <b>the</b> [red]\n"]


def weights(runner) -> dict[str, np.ndarray]:
    return {name: x.double().numpy() for name, x in runner.model.state_dict().items()}


# What it writes


def test_the_effect_is_what_the_logits_do(double):
    """With the final scale held fixed, what the last layer's neuron adds moves the logits so."""
    lens = neuron_lens(double, -1, NEURON, top_k=CONFIG.vocab_size)
    ids, scale, tap = [5, 6, 7], "ln_f_scale", "blocks.2.mlp_post"
    before = double.run(ids, taps=scale)
    s = before.taps[scale]
    held = Edit.replace(scale, s)
    after = double.run(ids, edits=[Edit.steer(tap, 3.0, d_mlp=NEURON), held])
    effect = np.empty(CONFIG.vocab_size)
    effect[lens.raised_ids] = lens.raised
    close(after.logits[0] - before.logits[0], 3.0 / s[0] * effect, 1e-9)
    assert lens.layer == 2
    np.testing.assert_array_equal(lens.lowered_ids[:5], lens.raised_ids[::-1][:5])
    close(lens.lowered, lens.raised[::-1])


def test_the_formula(torch_runner):
    lens = neuron_lens(torch_runner, LAYER, NEURON, top_k=4)
    w = weights(torch_runner)
    row = w[f"h.{LAYER}.mlp.c_proj.weight"][NEURON]
    effect = w["wte.weight"] @ ((row - row.mean()) * w["ln_f.weight"])
    close(lens.raised, np.sort(effect)[::-1][:4])
    close(lens.lowered, np.sort(effect)[:4])
    close(effect[lens.raised_ids], lens.raised)
    close(effect[lens.lowered_ids], lens.lowered)
    assert lens.raised_tokens == tuple(torch_runner.tokenizer.tokens(lens.raised_ids.tolist()))


def test_an_unembedding_of_its_own_is_used():
    untied = TorchRunner(random_model(replace(CONFIG, tie_word_embeddings=False)), byte_tokenizer())
    w = weights(untied)
    row = w["h.0.mlp.c_proj.weight"][3]
    written = (row - row.mean()) * w["ln_f.weight"]
    close(neuron_lens(untied, 0, 3, top_k=1).raised, [(w["lm_head.weight"] @ written).max()])
    cosine = w["lm_head.weight"] @ written / np.linalg.norm(written)
    cosine /= np.linalg.norm(w["lm_head.weight"], axis=1)
    close(nearest_tokens(untied, 0, 3, top_k=1).written_similarity, [cosine.max()])


# What it is near to


def test_nearest_tokens_are_by_cosine(torch_runner):
    near = nearest_tokens(torch_runner, LAYER, NEURON, top_k=6)
    w = torch_runner.model.state_dict()
    read = w[f"h.{LAYER}.mlp.c_fc.weight"][:, NEURON] * w[f"h.{LAYER}.ln_2.weight"]
    row = w[f"h.{LAYER}.mlp.c_proj.weight"][NEURON]
    written = (row - row.mean()) * w["ln_f.weight"]
    for x, ids, values in (
        (read - read.mean(), near.read_ids, near.read_similarity),
        (written, near.written_ids, near.written_similarity),
    ):
        cosine = torch.nn.functional.cosine_similarity(w["wte.weight"], x[None])
        close(values, cosine.topk(6).values)
        close(cosine[torch.from_numpy(ids)], values)


def test_every_engine_gives_the_same(torch_runner, runner):
    lens, near = (
        [probe(r, LAYER, NEURON) for r in (runner, torch_runner)]
        for probe in (neuron_lens, nearest_tokens)
    )
    for name in ("raised", "lowered"):
        close(getattr(lens[0], name), getattr(lens[1], name))
        assert getattr(lens[0], f"{name}_tokens") == getattr(lens[1], f"{name}_tokens")
    for name in ("read", "written"):
        close(getattr(near[0], f"{name}_similarity"), getattr(near[1], f"{name}_similarity"))
        assert getattr(near[0], f"{name}_tokens") == getattr(near[1], f"{name}_tokens")


def test_planted_weights_are_found():
    model = random_model()
    model.h[0].ln_2.weight.data.fill_(1)
    model.ln_f.weight.data.fill_(1)
    model.wte.weight.data -= model.wte.weight.data.mean(-1, keepdim=True)
    model.h[0].mlp.c_fc.weight.data[:, 5] = 2 * model.wte.weight.data[70]
    model.h[0].mlp.c_proj.weight.data[5] = 3 * model.wte.weight.data[90]
    runner = TorchRunner(model, byte_tokenizer())
    near = nearest_tokens(runner, 0, 5)
    assert (near.read_ids[0], near.written_ids[0]) == (70, 90)
    close(near.read_similarity[0], 1.0)
    close(near.written_similarity[0], 1.0)


# What drives it


def every_activation(runner, texts) -> list[tuple[float, int, int, int]]:
    """(activation, text, position, id) of every token, in the order of the corpus."""
    out = []
    for number, text in enumerate(texts):
        ids = runner.tokenizer.encode(text)
        for start in range(0, len(ids), CONFIG.n_positions):
            piece = ids[start : start + CONFIG.n_positions]
            tap = f"blocks.{LAYER}.mlp_post"
            values = runner.run(piece, taps=tap).taps[tap][0, :, NEURON]
            places = zip(values.tolist(), piece, strict=True)
            out += [(v, number, start + i, id_) for i, (v, id_) in enumerate(places)]
    return out


def test_the_top_of_a_corpus_is_that_of_all_its_tokens(torch_runner, runner):
    everything = every_activation(torch_runner, TEXTS)
    best = sorted(everything, key=lambda place: -place[0])
    found = top_activating(runner, LAYER, NEURON, iter(TEXTS), top_k=7, context=3)
    close(found.activations, [place[0] for place in best[:7]])
    for k in range(7):
        at = found.texts[k], found.positions[k], found.token_ids[k]
        close(found.activations[k], next(p[0] for p in everything if p[1:] == at))
        ids = torch_runner.tokenizer.encode(TEXTS[at[0]])
        start, i = at[1] // CONFIG.n_positions * CONFIG.n_positions, at[1]
        piece = ids[start : start + CONFIG.n_positions]
        assert ids[i] == at[2]
        assert found.tokens[k] == torch_runner.tokenizer.decode([at[2]])
        i -= start
        assert found.before[k] == torch_runner.tokenizer.decode(piece[max(0, i - 3) : i])
        assert found.after[k] == torch_runner.tokenizer.decode(piece[i + 1 : i + 4])
    assert found.n_tokens == len(everything)
    close(found.mean, np.mean([place[0] for place in everything]))
    close(found.active, np.mean([place[0] > 0 for place in everything]))


def test_batches_change_nothing_and_ties_go_by_order(torch_runner, monkeypatch):
    texts = TEXTS + TEXTS[:2]
    whole = top_activating(torch_runner, LAYER, NEURON, texts, top_k=12)
    monkeypatch.setattr("probes.core.batching.PROMPTS_POSITIONS", 10)
    alone = top_activating(torch_runner, LAYER, NEURON, texts, top_k=12)
    close(alone.activations, whole.activations)
    doubled = top_activating(torch_runner, LAYER, NEURON, ["the cat"] * 3, top_k=3)
    assert doubled.texts.tolist() == [0, 1, 2]


def test_a_small_corpus_gives_all_of_it(torch_runner):
    found = top_activating(torch_runner, LAYER, NEURON, "the cat")
    ids = torch_runner.tokenizer.encode("the cat")
    assert sorted(found.token_ids) == sorted(ids)
    assert found.n_tokens == len(ids)


# How it looks, and what is refused


def test_they_print_and_turn_into_json(torch_runner):
    found = top_activating(torch_runner, LAYER, NEURON, TEXTS)
    assert str(found).count("\n") > 10
    assert f"neuron {LAYER}.{NEURON}" in str(found)
    assert str(found).count("«") == 10
    assert len(json.loads(found.to_json())["tokens"]) == 10
    assert "-0.000" not in str(replace(found, activations=found.activations * 0 - 1e-9))
    for result in (
        neuron_lens(torch_runner, LAYER, NEURON),
        nearest_tokens(torch_runner, LAYER, NEURON),
    ):
        assert str(result).count("\n") > 10
        assert "\n" not in repr(result)
        assert json.loads(result.to_json())["neuron"] == NEURON


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: neuron_lens(r, 0, 96), InputError, "neuron 96 does not exist; .* 0 to 95"),
        (lambda r: nearest_tokens(r, 0, -1), InputError, "neuron -1 does not exist"),
        (lambda r: top_activating(r, 0, 96, TEXTS), InputError, "neuron 96 does not exist"),
        (lambda r: neuron_lens(r, 3, 0), TapError, "the model has layers 0 to 2"),
        (lambda r: neuron_lens(r, 0, 0, top_k=0), InputError, "top_k = 0 must be from 1"),
        (lambda r: nearest_tokens(r, 0, 0, top_k=999), InputError, "top_k = 999 must be from 1"),
        (lambda r: top_activating(r, 0, 0, TEXTS, top_k=0), InputError, "top_k = 0 must be at"),
        (lambda r: top_activating(r, 0, 0, [""]), InputError, "the texts hold no tokens"),
        (lambda r: neuron_lens(TorchRunner(r.model), 0, 0), InputError, "no tokenizer"),
    ],
)
def test_what_is_not_there_is_refused(torch_runner, call, error, message):
    with pytest.raises(error, match=message):
        call(torch_runner)
