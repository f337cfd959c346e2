"""Effects on the logits and nearest tokens of neurons, by their weights."""

from dataclasses import replace

import numpy as np
import torch

from gpt2kit import TorchRunner
from gpt2kit.edits import Edit
from probes.neurons.nearest_tokens import nearest_tokens
from probes.neurons.neuron_lens import neuron_lens
from tests.conftest import CONFIG, byte_tokenizer, close, random_model
from tests.probes.neurons.support import LAYER, NEURON, weights


def test_the_effect_is_what_the_logits_do(double):
    """With the final scale held fixed, activating a neuron of the last layer adds its effect."""
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
