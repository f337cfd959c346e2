"""The effect of an edit: texts and predictions with it and without."""

import numpy as np
import pytest

from gpt2kit import Edit, generate
from gpt2kit.errors import EditError, InputError
from probes import edit_effect
from tests.conftest import close

PROMPT = "the the "

OPTIONS = {"max_new_tokens": 6, "seed": 3, "top_k": 20}


def test_an_effect_is_that_of_the_edit(runner):
    edit = Edit.zero("blocks.1.mlp_out")
    got = edit_effect(runner, PROMPT, edit, shown=4, **OPTIONS)
    texts = [generate(runner, PROMPT, edits=e, **OPTIONS) for e in ((), [edit])]
    assert list(got.texts) == texts
    ids = runner.tokenizer.encode(PROMPT)
    logits = [runner.run(ids, edits=e).logits[0, -1].astype(float) for e in ((), [edit])]
    p = np.stack([np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in logits])
    top = np.argsort(-p)[:, :4]
    close(got.top_probs, np.take_along_axis(p, top, 1))
    close(got.other_probs, np.take_along_axis(p[::-1], top, 1))
    assert got.top_tokens[1] == tuple(runner.tokenizer.decode([i]) for i in top[1])
    close(got.kl, (p[0] * np.log(p[0] / p[1])).sum())
    assert got.kl > 0.01


def test_each_side_runs_the_prompt_once_more_for_all_logits(torch_runner, monkeypatch):
    run, tokens = torch_runner.run, []
    monkeypatch.setattr(
        torch_runner, "run", lambda ids, **x: tokens.append(np.size(ids)) or run(ids, **x)
    )
    edit_effect(torch_runner, PROMPT, "blocks.1.z = 0", max_new_tokens=3, greedy=True)
    length = len(torch_runner.tokenizer.encode(PROMPT))
    assert tokens == 2 * [length, 1, 1] + 2 * [length]


def test_an_edit_that_changes_nothing_has_no_effect(torch_runner):
    got = edit_effect(torch_runner, PROMPT, "blocks.1.mlp_out *= 1", max_new_tokens=4)
    assert got.texts[0] == got.texts[1]
    assert got.kl == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("edits", "options", "words"),
    [
        ([], {}, "no edits were given"),
        ("blocks.1.z", {}, "is not an edit"),
        ("blocks.1.z = 0", {"shown": 0}, "shown = 0 must be from 1"),
        ("blocks.1.z[head=7] = 0", {}, "head = 7 is out of range"),
    ],
)
def test_what_cannot_be_compared_is_refused(torch_runner, edits, options, words):
    with pytest.raises((InputError, EditError), match=words):
        edit_effect(torch_runner, PROMPT, edits, max_new_tokens=4, **options)
