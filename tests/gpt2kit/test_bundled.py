"""The model that ships: small, fluent in simple stories, with circuits that were learned."""

import json

import numpy as np
import pytest

from gpt2kit import generate
from gpt2kit.logits import log_softmax
from gpt2kit.shipped import BUNDLED, LENS_FILE
from probes import ioi, repeated_tokens

OPENING = "Once upon a time, there was a little girl named Lily."
MIDDLE = (
    " She had a red ball. One day, Lily went to the park with her mom. She saw a boy who was sad."
    ' "Do you want to play with my ball?" asked Lily. The boy smiled and said, "Yes, thank you."'
    " They played all day and became good friends."
)
END = " And they lived happily ever after."
WORDS = """Tim Tom Sam Ben Max Bob Jack John Lily Sue Mia Lucy Anna Amy Sally Sara Jane
    mom dad boy girl dog ball park friend he him his she her""".split()  # noqa: SIM905
MODEL = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
OTHERS = ("README.md", "training.json", LENS_FILE)


def log_probs(runner, ids) -> np.ndarray:
    """(pos, vocab) log-probabilities after each token of one row."""
    return log_softmax(runner.run(ids).logits[0].astype(np.float64))


def test_the_files_and_the_weights_are_few_and_small(bundled):
    assert {file.name for file in BUNDLED.iterdir()} == {*MODEL, *OTHERS}
    sizes = {file.name: file.stat().st_size for file in BUNDLED.iterdir()}
    assert sum(sizes[name] for name in MODEL) <= 10_000_000
    assert sizes[LENS_FILE] <= 2_000_000
    assert sum(weight.numel() for weight in bundled.model.parameters()) <= 4_500_000
    assert bundled.config.n_positions >= 256


def test_other_programs_sample_from_it_as_it_is_without_penalties():
    given = json.loads((BUNDLED / "generation_config.json").read_text(encoding="utf-8"))
    assert given["do_sample"] is True
    assert 0.5 <= given["temperature"] <= 1
    assert not {"repetition_penalty", "no_repeat_ngram_size"} & set(given)


def test_any_text_is_encoded_and_decoded(bundled):
    tokenizer = bundled.tokenizer
    texts = [*map(chr, range(128)), "naïve Ωμέγα 日本語 🙂 \u202e", OPENING + MIDDLE + END]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts
    vocab = json.loads((BUNDLED / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert sum(len(token) == 1 for token in vocab) == 256  # one for each byte


def test_names_and_common_words_are_one_token_with_their_space(bundled):
    assert [word for word in WORDS if len(bundled.tokenizer.encode(f" {word}")) > 1] == []


def test_it_has_read_stories(bundled):
    ids = bundled.tokenizer.encode(OPENING + MIDDLE + END)
    likelihood = log_probs(bundled, ids)[np.arange(len(ids) - 1), ids[1:]]
    assert -likelihood.mean() < 2


def test_a_story_ends_with_the_end_token(bundled):
    (end,) = bundled.config.end_tokens
    told = [bundled.tokenizer.encode(text) for text in (OPENING, OPENING + MIDDLE + END)]
    begun, over = (float(np.exp(log_probs(bundled, ids)[-1, end])) for ids in told)
    assert begun < 0.01 < 0.5 < over


@pytest.mark.parametrize("seed", range(3))
def test_a_story_of_its_own_comes_to_an_end(bundled, seed):
    room = bundled.config.n_positions - len(bundled.tokenizer.encode(OPENING))
    options = {"temperature": 0.7, "top_p": 0.95, "top_k": None, "seed": seed}
    text = generate(bundled, OPENING, max_new_tokens=room, **options)
    assert 20 < len(bundled.tokenizer.encode(text)) < room - 1
    assert text.rstrip()[-1] in '.!?"'


def test_heads_find_the_earlier_copy_of_random_tokens(bundled):
    length = 40
    ids = repeated_tokens(bundled.config.vocab_size - 1, 16, length, seed=1)
    run = bundled.run(ids, taps="blocks.*.pattern")
    induction, previous = [], []
    for layer in range(bundled.config.n_layer):
        pattern = run.taps[f"blocks.{layer}.pattern"].mean(0)  # (head, query, key)
        induction.append(pattern.diagonal(1 - length, 1, 2)[:, 1:].mean(1))
        previous.append(pattern.diagonal(-1, 1, 2).mean(1))
    assert np.max(induction) >= 0.8
    assert np.max(previous) > 0.5
    assert np.max(induction[0]) < 0.2  # it takes a layer before it
    loss = -np.take_along_axis(log_softmax(run.logits)[:, :-1], ids[:, 1:, None], -1)[..., 0]
    assert loss[:, length:].mean() < 1 < 7 < loss[:, : length - 1].mean()


def test_it_knows_who_gets_the_ball(bundled):
    pairs = ioi(bundled.tokenizer, 200)
    rows = [bundled.tokenizer.encode(prompt) for prompt in pairs.prompts]
    logits = bundled.run(rows, last_only=True).logits[:, 0]
    at = np.arange(len(rows))
    right = logits[at, pairs.target_ids] > logits[at, pairs.foil_ids]
    assert right.mean() >= 0.7  # the aim is 0.85; chance is 0.5
