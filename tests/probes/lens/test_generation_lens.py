"""Generation looked into: a lens of each chosen token, and texts with and without an edit."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from gpt2kit import Edit, generate
from gpt2kit.cli import main
from gpt2kit.errors import EditError, InputError
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


def test_a_token_leads_from_the_row_after_the_last_where_it_did_not(torch_runner):
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


def test_layers_are_called_what_edits_and_the_lens_call_them(torch_runner):
    got = generation_lens(torch_runner, PROMPT, greedy=True, max_new_tokens=8)
    shown = str(got).splitlines()[2:]
    for step, text in zip(got.steps, shown, strict=True):
        row = got.rows[step.leads_from]
        name = "embed" if row.endswith("resid_pre") else f"layer {row.split('.')[1]} "
        assert name in text


def test_steps_are_told_as_they_come(torch_runner):
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
def test_what_comes_after_the_last_row_still_decides_the_token(runner, tap):
    """An edit there is none of the stream; the rows show it, the model predicts from the edit."""
    edit = Edit.steer(tap, np.arange(24) if tap == "ln_f" else 5.0)
    got = generation_lens(runner, PROMPT, edits=[edit], **OPTIONS)
    assert got.text == generate(runner, PROMPT, edits=[edit], **OPTIONS)
    assert got.text != generate(runner, PROMPT, **OPTIONS)


def test_a_lens_leaves_the_unembedding_to_its_own_rows(runner, monkeypatch):
    asked, run = [], type(runner).run

    def watched(*args, **options):
        asked.append(options["top_k"])
        return run(*args, **options)

    monkeypatch.setattr(type(runner), "run", watched)
    lens = generation_lens(runner, PROMPT, **OPTIONS)
    assert asked == [0] * len(asked)
    assert len(asked) >= len(lens.steps) > 0


# With and without an edit


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


# The command


def generated(*arguments):
    return CliRunner().invoke(main, ["generate", "--model", "bundled", *arguments])


def test_the_command_shows_each_token_and_then_the_text():
    result = generated("Once upon a time", "--lens", "--greedy", "-n", "5")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("token")
    assert sum("layer" in line and line.endswith("%") for line in lines[2:7]) >= 4
    assert lines[-1].startswith("Once upon a time")


def test_the_command_shows_both_texts():
    result = generated("Once upon a time", "--edit", "blocks.0.attn_out *= 0", "-n", "5")
    assert result.exit_code == 0, result.output
    for words in ("text, without", "text, with", "next, without", "KL(without || with)"):
        assert words in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a", "b", "--lens"), "take one prompt at a time"),
        (("a", "--edit", "nonsense"), "'nonsense' is not an edit"),
        (("a", "--edit", "blocks.77.z = 0"), "the model has layers 0 to 5"),
        (("a", "--edit", "blocks.0.z[head=9] = 0"), "head = 9 is out of range"),
        (("", "--lens"), "the prompt is empty"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, words):
    result = generated(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_several_prompts_are_refused(torch_runner):
    for call in (generation_lens, lambda r, p: edit_effect(r, p, "blocks.1.z = 0")):
        with pytest.raises(InputError, match="a prompt must be text, got list; one at a time"):
            call(torch_runner, ["a", "b"])
