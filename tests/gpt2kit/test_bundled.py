"""The model that ships: small, fluent enough, with circuits that were learned."""

import numpy as np

from gpt2kit.torch_engine.find import BUNDLED


def test_the_folder_is_small():
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) <= 8_000_000


def test_heads_find_the_earlier_copy_of_random_tokens(bundled):
    block = np.random.default_rng(1).integers(0, bundled.config.vocab_size - 1, (16, 40))
    run = bundled.run(np.tile(block, 2), taps="blocks.*.pattern")
    scores, previous = [], []
    for layer in range(bundled.config.n_layer):
        pattern = run.taps[f"blocks.{layer}.pattern"].mean(0)  # (head, query, key)
        scores.append(pattern.diagonal(1 - 40, 1, 2)[:, 1:].mean(1))
        previous.append(pattern.diagonal(-1, 1, 2).mean(1))
    assert np.max(scores) > 0.5
    assert np.max(previous) > 0.5
    assert np.max(scores[0]) < 0.2  # it takes a layer before it
    logprobs = run.logits - np.log(np.exp(run.logits).sum(-1, keepdims=True))
    loss = -np.take_along_axis(logprobs[:, :-1], np.tile(block, 2)[:, 1:, None], -1)[..., 0]
    assert loss[:, 40:].mean() < 1 < 7 < loss[:, :39].mean()


def test_it_has_read_books(bundled):
    ids = bundled.tokenizer.encode("Once upon a time there was a little girl who lived in a")
    logits = bundled.run(ids).logits[0]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -logprobs[np.arange(len(ids) - 1), ids[1:]].mean()
    assert loss < 3
