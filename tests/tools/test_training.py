"""Training of the bundled model, on a few sentences of our own."""

import numpy as np
import pytest
import torch
import train_bundled
from corpus import IGNORED, load_corpus
from names import BOYS, GIRLS, Names
from optimize import PlainAttention
from recipe import Batches
from train_bundled import train

from gpt2kit.model import GPT2
from tests.tools.support import SMALL, story


def test_stories_are_split_between_training_and_choosing(corpus):
    texts = [corpus.tokenizer.decode(tokens[1:]) for tokens in corpus.validation.tokens]
    assert texts == [story(0), story(40)]
    assert len(corpus.train.tokens) == 78
    assert len(corpus.held_out.tokens) == 5
    assert corpus.held_out.bytes == sum(len(story(i)) for i in range(5))


def test_a_folder_without_held_out_stories_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text(story(0), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"wants held-out\.txt and other \.txt files"):
        load_corpus(tmp_path, SMALL.vocab_size)


def test_children_are_renamed_throughout_a_story_and_stay_boys_and_girls(corpus):
    names, decode = Names(corpus.tokenizer, corpus.train), corpus.tokenizer.decode
    changed = 0
    for seed, tokens in enumerate(corpus.train.tokens):
        before = decode(tokens[1:])
        after = decode(names.redraw(tokens, np.random.default_rng(seed))[1:])
        pairs = set(zip(before.split(), after.split(), strict=True))
        renamed = {(a.strip("."), b.strip(".")) for a, b in pairs if a != b}
        changed += bool(renamed)
        assert len({a for a, _ in renamed}) == len({b for _, b in renamed}) == len(renamed)
        assert all((a in BOYS) == (b in BOYS) and (a in GIRLS) == (b in GIRLS) for a, b in renamed)
    assert changed > 40


def test_batches_depend_on_seed_and_step_alone(corpus):
    def batches() -> Batches:
        return Batches(corpus.train, Names(corpus.tokenizer, corpus.train), SMALL)

    onwards, again = batches(), batches()
    in_order = [onwards.at(step) for step in range(6)]
    for step in (5, 2, 3):
        for a, b in zip(in_order[step], again.at(step), strict=True):
            assert torch.equal(a, b)
    ids, targets = in_order[5]
    text = (targets != IGNORED).all(1)
    assert torch.equal(ids[text][:, 1:], targets[text][:, :-1])
    assert ids.shape == (5, 32)
    assert text.sum() == 3  # the other two are repeated tokens
    before, after = (onwards.weights(step, ids, targets) for step in (3, 4))
    assert torch.equal(before, (targets != IGNORED).float())
    known = onwards.names.known(ids, targets)
    assert (after[known] == SMALL.name_weight).all()
    assert torch.equal(after[~known], before[~known])


def test_a_name_is_known_once_a_row_has_it_with_or_without_its_space(corpus):
    names = Names(corpus.tokenizer, corpus.train)
    (tom, tim), (bare_tom, _) = (forms[:2] for forms in names.groups[0][:2])
    row = torch.tensor([[1, tom, 2, bare_tom, 2, tim, 1, tim, tom]])
    known = names.known(row[:, :-1], row[:, 1:])
    assert known.tolist() == [[False, False, True, False, False, False, True, True]]


def test_attention_in_training_is_the_models_own(corpus):
    model = GPT2(SMALL.config)
    ids = torch.from_numpy(corpus.train.tokens[0][None, :20])
    torch.testing.assert_close(model(ids, cache=PlainAttention()).logits, model(ids).logits)


def test_a_resumed_run_gives_the_same_weights(corpus, tmp_path, monkeypatch):
    whole, _ = train(SMALL, corpus, tmp_path / "whole.pt", resume=False, every=3)

    def stop_after_three(path, recipe, model, optimizer, progress):
        save(path, recipe, model, optimizer, progress)
        raise KeyboardInterrupt

    save = train_bundled.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(train_bundled, "save_checkpoint", stop_after_three)
        with pytest.raises(KeyboardInterrupt):
            train(SMALL, corpus, tmp_path / "part.pt", resume=False, every=3)
    resumed, progress = train(SMALL, corpus, tmp_path / "part.pt", resume=True, every=3)
    assert [step for step, *_ in progress.curve] == [3, 6]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
