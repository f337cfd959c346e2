"""What is measured on cases, against its definition written out."""

from functools import partial

import numpy as np
import pytest
import torch

from probes.facts import contrasts
from probes.facts.cases import DEMO, demo_cases, ioi_cases, outsider_cases, pronoun_cases
from probes.tasks.word_lists import BOYS, GIRLS, NAMES
from tests.conftest import close
from tests.probes.facts.support import (
    EVERY,
    HEADS,
    IOI,
    LAYERS,
    TWIN,
    difference,
    ids_of,
    order,
)


def test_the_prompts_are_those_of_the_demo():
    assert [case[:3] for case in DEMO] == IOI


def test_cases_of_ioi_have_corrupt_twins_of_equal_length(by_torch):
    cases = ioi_cases(by_torch, n=12)
    assert len({case.prompt for case in cases}) == 12
    for case in cases:
        assert case.prompt.count(case.wrong) == 2
        assert case.corrupt.count(case.right) == case.prompt.count(case.right) == 1
        assert case.corrupt.count(case.wrong) == 1
        rows = [by_torch.tokenizer.encode(text) for text in (case.prompt, case.corrupt)]
        assert len(rows[0]) == len(rows[1])


def test_a_name_is_asked_against_one_that_the_prompt_lacks(by_torch):
    for asked in ("right", "wrong"):
        found = outsider_cases(by_torch, n=12, asked=asked)
        for case, of_ioi in zip(found, ioi_cases(by_torch, n=12), strict=True):
            assert (case.prompt, case.corrupt) == (of_ioi.prompt, of_ioi.corrupt)
            assert case.right == getattr(of_ioi, asked)
            assert case.wrong.strip() in NAMES
            assert case.wrong not in case.prompt
            assert case.wrong in case.corrupt


def test_every_name_has_its_pronoun(by_torch):
    cases = pronoun_cases(by_torch, templates=["Now {} says", "{} and"], his=" he", her=" she")
    assert [case.prompt for case in cases[:4]] == [
        "Now Tim says", "Now Lily says", "Now Tom says", "Now Sue says",
    ]  # fmt: skip
    assert len(cases) == 2 * len(BOYS + GIRLS)
    for prompt, right, wrong, corrupt in cases:
        is_boy = any(name in prompt for name in BOYS)
        assert (right, wrong) == ((" he", " she") if is_boy else (" she", " he"))
        assert any(name in corrupt for name in BOYS) != is_boy


def test_differences_are_of_the_two_names_with_and_without_a_head(runner, by_torch):
    want = [difference(by_torch, *case) for case in IOI]
    close(contrasts.differences(runner, cases=demo_cases), want)

    def zeroed(z):
        z = z.clone()
        z[:, -1, 2] = 0
        return z

    cut = [difference(by_torch, *case, edits={"blocks.0.z": zeroed}) for case in IOI]
    assert np.abs(np.array(want) - cut).min() > 1e-3
    close(contrasts.differences(runner, cases=demo_cases, without=[(0, 2)]), cut)
    close(contrasts.mean_difference(runner, cases=demo_cases, without=[(0, 2)]), [np.mean(cut)])
    close(contrasts.fall(runner, cases=demo_cases, heads=[(0, 2)]), [np.mean(want) - np.mean(cut)])
    assert 0 < np.mean(np.array(want) > 0) < 1
    assert contrasts.share_right(runner, cases=demo_cases) == [np.mean(np.array(want) > 0)]


def test_a_fall_is_of_all_heads_together(runner, by_torch):
    cases, heads = partial(ioi_cases, n=3), [(0, 1), (1, 0), (1, 2)]

    def zeroed(*which):
        def edit(z):
            z = z.clone()
            z[:, -1, list(which)] = 0
            return z

        return edit

    edits = {"blocks.0.z": zeroed(1), "blocks.1.z": zeroed(0, 2)}
    want = [
        difference(by_torch, *case[:3]) - difference(by_torch, *case[:3], edits=edits)
        for case in cases(by_torch)
    ]
    close(contrasts.fall(runner, cases=cases, heads=heads), [np.mean(want)])


def test_attribution_ranks_what_each_head_writes(runner, by_torch):
    scores = np.zeros((LAYERS, HEADS))
    gain = by_torch.model.ln_f.weight.double().numpy()
    for prompt, *names in IOI:
        taps = by_torch.run(ids_of(by_torch, prompt), taps=["*.head_out", "ln_f_scale"]).taps
        a, b = (by_torch.tokenizer.single(name) for name in names)
        towards = (by_torch.model.wte.weight[a] - by_torch.model.wte.weight[b]).double().numpy()
        for layer, head in EVERY:
            out = taps[f"blocks.{layer}.head_out"][0, -1, head]
            written = (out - out.mean()) / taps["ln_f_scale"][0, -1, 0] * gain
            scores[layer, head] += written @ towards / len(IOI)
    for sign in (1, -1):
        got = contrasts.attribution_ranks(runner, cases=demo_cases, heads=EVERY, sign=sign)
        assert got == order(sign * scores)
    got = contrasts.attribution(runner, cases=demo_cases, heads=EVERY)
    close(np.reshape(got, (LAYERS, HEADS)), scores)


def test_patching_ranks_what_brings_the_other_prompts_answer(runner, by_torch):
    effects = np.zeros((LAYERS, HEADS))
    for i, (clean, right, wrong) in enumerate(IOI):
        corrupt = IOI[TWIN[i]][0]
        values = by_torch.run(ids_of(by_torch, clean), taps="*.z").taps
        low, high = (difference(by_torch, p, right, wrong) for p in (corrupt, clean))
        for layer, head in EVERY:
            tap = f"blocks.{layer}.z"
            new = torch.from_numpy(values[tap])

            def put_in(z, head=head, value=new):
                z = z.clone()
                z[:, :, head] = value[:, :, head]
                return z

            found = difference(by_torch, corrupt, right, wrong, {tap: put_in})
            effects[layer, head] += (found - low) / (high - low)
    assert contrasts.patching_ranks(runner, cases=demo_cases, heads=EVERY) == order(effects)


def test_attention_at_the_end_goes_to_the_last_mention_of_the_wrong_name(runner, by_torch):
    want = np.zeros(len(EVERY))
    for prompt, _, wrong in IOI:
        ids = ids_of(by_torch, prompt)
        place = len(ids) - 1 - ids[::-1].index(by_torch.tokenizer.single(wrong))
        assert place > 8  # after "shops," or "park,"
        taps = by_torch.run(ids, taps="*.pattern").taps
        for i, (layer, head) in enumerate(EVERY):
            want[i] += taps[f"blocks.{layer}.pattern"][0, head, -1, place] / len(IOI)
    close(contrasts.attention_at_end(runner, cases=demo_cases, heads=EVERY), want, 1e-5)


def test_the_lens_turns_where_the_mean_difference_becomes_and_stays_positive(runner, by_torch):
    rows = ["blocks.0.resid_pre", *(f"blocks.{i}.resid_post" for i in range(LAYERS))]
    seen = set()
    for chosen in (IOI, IOI[:2], IOI[2:4], IOI[4:6], IOI[6:], *([case] for case in IOI)):
        cases = [case for case in DEMO if case[:3] in chosen]
        mean = np.zeros(len(rows))
        for prompt, right, wrong in chosen:
            taps = by_torch.run(ids_of(by_torch, prompt), taps=rows).taps
            a, b = (by_torch.tokenizer.single(name) for name in (right, wrong))
            logits = [by_torch.unembed(taps[row][0, -1]) for row in rows]
            mean += [float(x[a] - x[b]) for x in logits]
        behind = [i for i, x in enumerate(mean) if x <= 0]
        want = behind[-1] + 1 if behind else 0  # LAYERS + 1 if it is behind in the last
        assert contrasts.lens_turn(runner, cases=lambda _, cases=cases: cases) == [want]
        seen.add(want)
    assert len(seen) > 2


@pytest.mark.parametrize("receivers", [["1.0.q"], ["1.1.k", "1.2.q"]])
def test_paths_are_ranked_by_what_the_receivers_read_from_a_head(runner, by_torch, receivers):
    cases, effects = partial(ioi_cases, n=3), np.zeros(HEADS)
    for prompt, right, wrong, corrupt in cases(by_torch):
        clean, other = (
            by_torch.run(ids_of(by_torch, text), taps="*.head_out").taps["blocks.0.head_out"]
            for text in (prompt, corrupt)
        )
        low = difference(by_torch, corrupt, right, wrong)
        for head in range(HEADS):
            change = torch.from_numpy(clean[:, :, head] - other[:, :, head])
            read = {kind: read_with(by_torch, corrupt, change, f"blocks.1.{kind}") for kind in "qk"}
            edits = {
                f"blocks.1.{kind}": partial(
                    put_heads,
                    heads=[int(r[2]) for r in receivers if r.endswith(kind)],
                    value=value,
                )
                for kind, value in read.items()
            }
            effects[head] += difference(by_torch, corrupt, right, wrong, edits) - low
    got = contrasts.path_ranks(runner, cases=cases, heads=EVERY[:HEADS], receivers=receivers)
    assert got == order(effects)
    last = contrasts.path_ranks(runner, cases=cases, heads=EVERY[HEADS:], receivers=receivers)
    assert min(last) > HEADS  # no path leads from the last layer to these


def read_with(runner, text, change, tap) -> torch.Tensor:
    """The value of a tap of layer 1 when `change` is added to what the layer reads."""
    with torch.no_grad():
        ids = torch.tensor([ids_of(runner, text)])
        edits = {"blocks.0.resid_post": lambda x: x + change}
        return runner.model(ids, edits=edits, taps=[tap]).taps[tap]


def put_heads(x, heads, value):
    x = x.clone()
    x[:, :, heads] = value[:, :, heads]
    return x
