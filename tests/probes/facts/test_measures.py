"""Each measurement against its definition written out."""

from functools import partial

import numpy as np
import pytest
import torch

from probes.facts import measures as fact_measures
from probes.facts import published
from probes.heads.copying import copying_score
from tests.conftest import close
from tests.probes.facts.support import EVERY, HEADS, IOI, LAYERS, ids_of, logits_of

TWIN = [1, 0, 3, 2, 5, 4, 7, 6]


def order(scores) -> list[int]:
    """The rank of each head, found by sorting."""
    flat = np.asarray(scores).ravel()
    out = np.empty(len(flat), int)
    out[np.argsort(-flat)] = np.arange(1, len(flat) + 1)
    return out.tolist()


def difference(runner, prompt, right, wrong, edits=None) -> float:
    last = logits_of(runner, ids_of(runner, prompt), edits)[-1]
    return float(last[runner.tokenizer.single(right)] - last[runner.tokenizer.single(wrong)])


def test_the_prompts_are_those_of_the_demo():
    assert list(fact_measures.IOI) == IOI


def test_the_loss_is_the_mean_over_all_tokens_but_the_bos(runner, by_torch):
    ids = ids_of(by_torch, published.HELLO)
    assert len(ids) == 4
    want = torch.nn.functional.cross_entropy(logits_of(by_torch, ids)[:-1], torch.tensor(ids[1:]))
    close(fact_measures.loss(runner, text=published.HELLO), [float(want)], 1e-5)


def test_probabilities_are_those_after_the_last_token(runner, by_torch):
    p = logits_of(by_torch, ids_of(by_torch, published.MILK))[-1].softmax(-1)
    tokens = (" Mary", " the", " John")
    got = fact_measures.probabilities(runner, prompt=published.MILK, tokens=tokens)
    close(got, p[[by_torch.tokenizer.single(t) for t in tokens]], 1e-5)
    assert len(set(got)) == 3


def test_ids_are_compared_in_place(by_torch):
    ids = by_torch.tokenizer.encode(published.HELLO)
    count = partial(fact_measures.matching_ids, by_torch, text=published.HELLO)
    assert count(ids=ids) == [3, 3]
    assert count(ids=[ids[0], -1, ids[2]]) == [3, 2]
    assert count(ids=[*ids, 0]) == [3, 3]
    assert count(ids=ids[1:]) == [3, 0]
    singles = fact_measures.ids_of_tokens(by_torch, tokens=["Hello", " world"])
    assert singles == ids[:2]


def test_differences_are_of_the_two_names_with_and_without_a_head(runner, by_torch):
    want = [difference(by_torch, *case) for case in IOI]
    close(fact_measures.ioi_differences(runner), want)

    def zeroed(z):
        z = z.clone()
        z[:, -1, 2] = 0
        return z

    cut = [difference(by_torch, *case, edits={"blocks.0.z": zeroed}) for case in IOI]
    assert np.abs(np.array(want) - cut).min() > 1e-3
    close(fact_measures.ioi_differences(runner, without=(0, 2)), cut)
    close(fact_measures.ioi_mean(runner, without=(0, 2)), [np.mean(cut)])
    close(fact_measures.ioi_share(runner, head=(0, 2)), [np.mean(want) - np.mean(cut)])


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
    assert fact_measures.ioi_attribution(runner, heads=EVERY, sign=1) == order(scores)
    assert fact_measures.ioi_attribution(runner, heads=EVERY, sign=-1) == order(-scores)


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
    assert fact_measures.ioi_patching(runner, heads=EVERY) == order(effects)


@pytest.mark.parametrize("kind", ["induction", "duplicate_token", "previous_token"])
def test_attention_ranks_are_of_repeated_tokens_after_a_bos(runner, by_torch, kind):
    from probes.tasks.repeated_tokens import repeated_tokens

    bos, n = by_torch.config.bos_token_id, 100
    (row,) = repeated_tokens(by_torch.config.vocab_size, 1, n, bos=bos)
    assert len(row) == 1 + 2 * n
    assert row[0] == bos
    assert (row[1 : 1 + n] == row[1 + n :]).all()
    taps = by_torch.run(row, taps="*.pattern").taps
    pattern = np.stack([taps[f"blocks.{i}.pattern"][0] for i in range(LAYERS)])
    back = {"induction": n - 1, "duplicate_token": n, "previous_token": 1}[kind]
    start = 1 if kind == "previous_token" else 1 + n
    scores = np.mean([pattern[..., q, q - back] for q in range(start, len(row))], axis=0)
    assert fact_measures.attention_ranks(runner, kind=kind, heads=EVERY) == order(scores)


def years_by_hand(runner, ids, prompt, edits=None) -> float:
    p, first = logits_of(runner, ids, edits)[-1].softmax(-1), int(prompt.split("year ")[1][2:4])
    years = p[[runner.tokenizer.single(f"{y:02d}") for y in range(100)]]
    return float(years[first + 1 :].sum() - years[: first + 1].sum())


@pytest.fixture(scope="module")
def dated(by_torch) -> list[str]:
    from probes.tasks.greater_than import greater_than

    return list(greater_than(by_torch.tokenizer, 8).prompts)


def test_years_are_later_ones_minus_earlier_ones(runner, by_torch, dated):
    want = [years_by_hand(by_torch, ids_of(by_torch, p), p) for p in dated]
    assert np.ptp(want) > 0.01
    close(fact_measures.years(runner), [np.mean(want)], 1e-5)


@pytest.mark.parametrize("over", ["z", "mlp_out"])
def test_years_fall_with_what_is_patched_in_at_the_end(runner, by_torch, dated, over):
    places = EVERY if over == "z" else [(layer, 0) for layer in range(LAYERS)]
    falls = np.zeros(len(places))
    for prompt in dated:
        ids = ids_of(by_torch, prompt)
        century = prompt.split("year ")[1][:2]
        other = prompt.replace(prompt.split("year ")[1][:4], f"{century}01")
        values = by_torch.run(ids_of(by_torch, other), taps=f"*.{over}").taps
        for n, (layer, head) in enumerate(places):
            tap = f"blocks.{layer}.{over}"
            new = torch.from_numpy(values[tap])

            def put_in(x, head=head, value=new):
                x = x.clone()
                at = (0, -1, head) if over == "z" else (0, -1)
                x[at] = value[at]
                return x

            found = years_by_hand(by_torch, ids, prompt, {tap: put_in})
            falls[n] += years_by_hand(by_torch, ids, prompt) - found
    assert fact_measures.years_patching(runner, over=over, places=places) == order(falls)


def test_copying_is_the_heads_own_score(runner, by_torch):
    scores = copying_score(by_torch).scores
    for head in EVERY:
        close(fact_measures.copying(runner, head=head), [scores[head]], 1e-5)


def test_ranks_count_from_one_and_nan_never_leads():
    scores = np.array([[3.0, 1.0], [2.0, np.nan]])
    assert fact_measures.ranks(scores, [(0, 0), (0, 1), (1, 0), (1, 1)]) == [2, 4, 3, 5]
    assert fact_measures.ranks(np.array([[5.0, 7.0]]), [(0, 1), (0, 0)]) == [1, 2]
