"""Arguments of a wrong type are refused by an InputError that names them; ids serve as tokens."""

import numpy as np
import pytest

import probes
from gpt2kit.errors import InputError
from probes import TunedLens
from probes.facts.check import check_facts

A = "the cat"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda r: probes.logit_lens(r, 5), "prompt"),
        (lambda r: probes.logit_lens(r, None), "prompt"),
        (lambda r: probes.logit_lens(r, A, targets=[1.9]), "targets"),
        (lambda r: probes.logit_lens(r, A, targets=1.9), "targets"),
        (lambda r: probes.logit_lens(r, A, targets=b"x"), "targets"),
        (lambda r: probes.logit_lens(r, A, targets=None), "targets"),
        (lambda r: probes.logit_lens(r, A, targets=[True]), "targets"),
        (lambda r: probes.logit_lens(r, A, targets=[[1, 2]]), "targets"),
        (lambda r: probes.logit_lens(r, A, targets=np.array([1.5])), "targets"),
        (lambda r: probes.logit_lens(r, A, top_k=1.5), "top_k"),
        (lambda r: probes.logit_lens(r, A, top_k=None), "top_k"),
        (lambda r: probes.logit_lens(r, A, positions="x"), "positions"),
        (lambda r: probes.logit_lens(r, A, positions=1.5), "positions"),
        (lambda r: probes.logit_lens(r, A, positions=[0, None]), "positions"),
        (lambda r: probes.logit_lens(r, A, positions=[[0], [1]]), "positions"),
        (lambda r: probes.logit_lens(r, A, positions=True), "positions"),
        (lambda r: probes.logit_lens(r, A, prepend_bos="yes"), "prepend_bos"),
        (lambda r: probes.logit_lens(r, A, sites=3), "sites"),
        (lambda r: probes.logit_lens(r, A, sites=["resid"]), "sites"),
        (lambda r: probes.logit_lens(r, A).values(3), "by"),
        (lambda r: probes.logit_lens(r, A).grid(by=None), "by"),
        (lambda r: probes.logit_lens(r, A).grid(lines=1.5), "lines"),
        (lambda r: probes.tuned_lens(r, A, "lens.safetensors"), "lens"),
        (lambda r: probes.tuned_lens(r, A, TunedLens.identity(r), targets=1.9), "targets"),
        (lambda r: probes.trajectory(r, A, lens=5), "lens"),
        (lambda r: probes.trajectory(r, A, positions="x"), "positions"),
        (lambda r: probes.generation_lens(r, 5), "prompt"),
        (lambda r: probes.generation_lens(r, A, max_new_tokens=1.5), "max_new_tokens"),
        (lambda r: probes.generation_lens(r, A, on_step=5), "on_step"),
        (lambda r: probes.head_lens(r, A, 1.5, 0), "layer"),
        (lambda r: probes.head_lens(r, A, "1", 0), "layer"),
        (lambda r: probes.head_lens(r, A, 1, 0.0), "head"),
        (lambda r: probes.head_lens(r, A, 1, True), "head"),
        (lambda r: probes.head_lens(r, A, 1, 0, targets=[1.9]), "targets"),
        (lambda r: probes.head_lens(r, A, 1, 0, top_k="3"), "top_k"),
        (lambda r: probes.attention_patterns(r, 3.5), "prompt"),
        (lambda r: probes.attention_patterns(r, A, layers=1.5), "layers"),
        (lambda r: probes.attention_patterns(r, A, layers="x"), "layers"),
        (lambda r: probes.attention_patterns(r, A).show(None, 0), "head None.0"),
        (lambda r: probes.attention_statistics(r, None), "prompt"),
        (lambda r: probes.head_scores(r, prompt=5), "prompt"),
        (lambda r: probes.head_scores(r, length=1.5), "length"),
        (lambda r: probes.head_scores(r, length=5, batch="2"), "batch"),
        (lambda r: probes.head_scores(r, length=5, seed=0.5), "seed"),
        (lambda r: probes.head_scores(r, length=5).leading(3), "kind"),
        (lambda r: probes.head_scores(r, length=5).leading("induction", 1.5), "n = 1.5"),
        (lambda r: probes.ov_top_tokens(r, 0.5, 0, "a"), "layer"),
        (lambda r: probes.qk_top_tokens(r, 0, None, "a"), "head"),
        (lambda r: probes.ov_top_tokens(r, 0, 0, 1.9), "token"),
        (lambda r: probes.qk_top_tokens(r, 0, 0, "a", top_k=1.5), "top_k"),
        (lambda r: probes.neuron_lens(r, "x", 0), "layer"),
        (lambda r: probes.neuron_lens(r, 0, 1.5), "neuron"),
        (lambda r: probes.nearest_tokens(r, 0, 1, top_k=1.5), "top_k"),
        (lambda r: probes.top_activating(r, 0, 1, 5), "texts"),
        (lambda r: probes.top_activating(r, 0, 1, [5]), "texts"),
        (lambda r: probes.top_activating(r, 0, 1, [None]), "texts"),
        (lambda r: probes.top_activating(r, 0, 1, [[1.5]]), "texts"),
        (lambda r: probes.top_activating(r, 0, 1, [A], top_k=1.5), "top_k"),
        (lambda r: probes.top_activating(r, 0, 1, [A], context="8"), "context"),
        (lambda r: probes.train_tuned_lens(r, 5, length=2), "text"),
        (lambda r: probes.train_tuned_lens(r, A, length=2, steps=1.5), "steps"),
        (lambda r: probes.train_tuned_lens(r, A, length=2.0), "length"),
        (lambda r: probes.train_tuned_lens(r, A, length=2, batch=None), "batch"),
        (lambda r: probes.train_tuned_lens(r, A, length=2, lr="fast"), "lr"),
        (lambda r: probes.train_tuned_lens(r, A, length=2, seed=1.5), "seed"),
        (lambda r: probes.train_tuned_lens(r, A, length=2, on_progress="x"), "on_progress"),
        (lambda r: check_facts(r, 5), "facts"),
        (lambda r: check_facts(r, ["IOI"]), "facts"),
    ],
)
def test_a_wrong_type_is_an_input_error_that_names_the_argument(torch_runner, call, named):
    with pytest.raises(InputError, match=named):
        call(torch_runner)


def test_ids_and_texts_of_targets_give_the_same(torch_runner):
    a, b = (torch_runner.tokenizer.single(text) for text in "ab")
    by_text = probes.logit_lens(torch_runner, A, targets=["a", "b"])
    assert probes.logit_lens(torch_runner, A, targets=[a, "b"]) == by_text
    assert probes.logit_lens(torch_runner, A, targets=np.array([a, b])) == by_text
    lens = TunedLens.identity(torch_runner)
    assert probes.tuned_lens(torch_runner, A, lens, targets=a) == probes.tuned_lens(
        torch_runner, A, lens, targets="a"
    )
    assert probes.head_lens(torch_runner, A, 1, 0, targets=[a]) == probes.head_lens(
        torch_runner, A, 1, 0, targets="a"
    )


def test_ids_and_texts_of_prompts_give_the_same(torch_runner):
    ids = torch_runner.tokenizer.encode(A)
    for probe in (
        probes.logit_lens,
        probes.trajectory,
        probes.attention_patterns,
        probes.attention_statistics,
        lambda r, prompt: probes.head_scores(r, prompt=prompt),
        lambda r, prompt: probes.head_lens(r, prompt, 0, 1),
        lambda r, prompt: probes.top_activating(r, 0, 1, [prompt, prompt]),
    ):
        assert probe(torch_runner, ids) == probe(torch_runner, A)


def test_an_id_outside_the_vocabulary_is_refused(torch_runner):
    with pytest.raises(InputError, match="token id 999 is outside the vocabulary"):
        probes.logit_lens(torch_runner, A, targets=[999])
    with pytest.raises(InputError, match="token id 999 is outside the vocabulary"):
        probes.top_activating(torch_runner, 0, 1, [[5, 999]])
