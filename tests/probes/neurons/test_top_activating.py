"""The places of a corpus where a neuron is most active."""

import json
from dataclasses import replace

import numpy as np
import pytest

from gpt2kit import TorchRunner
from gpt2kit.errors import InputError, TapError
from probes.neurons.nearest_tokens import nearest_tokens
from probes.neurons.neuron_lens import neuron_lens
from probes.neurons.top_activating import top_activating
from tests.conftest import CONFIG, close
from tests.probes.neurons.support import LAYER, NEURON

TEXTS = ["the cat", "the hat, the dog and " * 7, "", "z" * 40, "he said: <b>the</b> [red]\n"]


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


def test_results_about_neurons_print_and_turn_into_json(torch_runner):
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
def test_unknown_layers_and_neurons_are_refused(torch_runner, call, error, message):
    with pytest.raises(error, match=message):
        call(torch_runner)
