"""The lens of generation: each chosen token, row by row."""

import json

import numpy as np
import pytest

from gpt2kit import Edit, generate
from gpt2kit.errors import InputError
from probes import edit_effect, generation_lens, logit_lens
from tests.conftest import CONFIG, close

PROMPT = "the the "

OPTIONS = {"max_new_tokens": 6, "seed": 3, "top_k": 20}


def test_each_token_is_read_as_a_lens_of_the_whole_text_reads_it(runner):
    got = generation_lens(runner, PROMPT, **OPTIONS)
    assert got.text == generate(runner, PROMPT, **OPTIONS)
    ids = runner.tokenizer.encode(PROMPT)
    whole = [*ids, *(step.id for step in got.steps)]
    lens = logit_lens(runner, whole, top_k=1)
    places = np.arange(len(ids) - 1, len(whole) - 1)
    close(got.logprobs, lens.next_logprobs[:, places].T, 1e-3)
    ranks = np.stack([step.ranks for step in got.steps])
    assert (ranks == lens.next_ranks[:, places].T).all()
    assert got.rows == lens.rows


def test_a_token_leads_from_the_row_after_the_last_in_which_it_did_not(torch_runner):
    got = generation_lens(torch_runner, PROMPT, **OPTIONS | {"max_new_tokens": 20})
    for step in got.steps:
        leading = step.ranks == 0
        if step.leads_from < 0:
            assert not leading[-1]
        else:
            assert leading[step.leads_from :].all()
            assert step.leads_from == 0 or not leading[step.leads_from - 1]
    greedy = generation_lens(torch_runner, PROMPT, greedy=True, max_new_tokens=5)
    assert (greedy.leads_from >= 0).all()
    assert json.loads(greedy.to_json())["steps"][0]["id"] == greedy.steps[0].id


def test_layers_have_the_same_names_as_in_edits_and_in_the_lens(torch_runner):
    got = generation_lens(torch_runner, PROMPT, greedy=True, max_new_tokens=8)
    shown = str(got).splitlines()[2:]
    for step, text in zip(got.steps, shown, strict=True):
        row = got.rows[step.leads_from]
        name = "embed" if row.endswith("resid_pre") else f"layer {row.split('.')[1]} "
        assert name in text


def test_each_step_is_reported_as_soon_as_it_is_made(torch_runner):
    seen = []
    got = generation_lens(torch_runner, PROMPT, on_step=seen.append, **OPTIONS)
    assert tuple(seen) == got.steps
    assert len(seen) > 1


def test_edits_are_seen_by_the_lens(runner):
    edit = Edit.replace("blocks.0.resid_post", np.ones(CONFIG.n_embd) * np.arange(CONFIG.n_embd))
    got = generation_lens(runner, PROMPT, edits=[edit], **OPTIONS)
    assert np.ptp(got.logprobs[:, 1]) == pytest.approx(
        np.ptp(runner.readout(edit.add, targets=[s.id for s in got.steps]).target_logprobs),
        abs=1e-3,
    )


@pytest.mark.parametrize("tap", ["ln_f", "ln_f_scale"])
def test_an_edit_after_the_last_row_still_decides_the_token(runner, tap):
    """Such an edit is not in the residual stream: the rows do not show it, the prediction does."""
    edit = Edit.steer(tap, np.arange(24) if tap == "ln_f" else 5.0)
    got = generation_lens(runner, PROMPT, edits=[edit], **OPTIONS)
    assert got.text == generate(runner, PROMPT, edits=[edit], **OPTIONS)
    assert got.text != generate(runner, PROMPT, **OPTIONS)


def test_a_lens_leaves_the_unembedding_to_its_own_rows(runner, monkeypatch):
    requested, run = [], type(runner).run

    def watched(*args, **options):
        requested.append(options["top_k"])
        return run(*args, **options)

    monkeypatch.setattr(type(runner), "run", watched)
    lens = generation_lens(runner, PROMPT, **OPTIONS)
    assert requested == [0] * len(requested)
    assert len(requested) >= len(lens.steps) > 0


def test_several_prompts_are_refused(torch_runner):
    for call in (generation_lens, lambda r, p: edit_effect(r, p, "blocks.1.z = 0")):
        with pytest.raises(InputError, match="a prompt must be text, got list; one at a time"):
            call(torch_runner, ["a", "b"])
