"""Each measurement against its definition written out."""

from functools import partial

import numpy as np
import pytest
import torch

from probes.facts import measures, published
from probes.heads.copying import copying_score
from probes.tasks.repeated_tokens import repeated_tokens
from tests.conftest import close
from tests.probes.facts.support import EVERY, IOI, LAYERS, ids_of, logits_of, order


def test_the_loss_is_the_mean_over_all_tokens_but_the_bos(runner, by_torch):
    ids = ids_of(by_torch, published.HELLO)
    assert len(ids) == 4
    want = torch.nn.functional.cross_entropy(logits_of(by_torch, ids)[:-1], torch.tensor(ids[1:]))
    close(measures.loss(runner, text=published.HELLO), [float(want)], 1e-5)


def test_probabilities_are_those_after_the_last_token(runner, by_torch):
    p = logits_of(by_torch, ids_of(by_torch, published.MILK))[-1].softmax(-1)
    tokens = (" Mary", " the", " John")
    got = measures.probabilities(runner, prompt=published.MILK, tokens=tokens)
    close(got, p[[by_torch.tokenizer.single(t) for t in tokens]], 1e-5)
    assert len(set(got)) == 3


def test_each_prompt_has_a_next_token(runner, by_torch):
    followed = [(published.MILK, " Mary"), (published.HELLO, "!"), (published.MILK, " the")]
    want = [
        logits_of(by_torch, ids_of(by_torch, prompt))[-1].softmax(-1)[
            by_torch.tokenizer.single(token)
        ]
        for prompt, token in followed
    ]
    close(measures.next_probabilities(runner, followed=followed), want, 1e-5)


def test_ids_are_compared_in_place(by_torch):
    ids = by_torch.tokenizer.encode(published.HELLO)
    count = partial(measures.matching_ids, by_torch, text=published.HELLO)
    assert count(ids=ids) == [3, 3]
    assert count(ids=[ids[0], -1, ids[2]]) == [3, 2]
    assert count(ids=[*ids, 0]) == [3, 3]
    assert count(ids=ids[1:]) == [3, 0]
    singles = measures.ids_of_tokens(by_torch, tokens=["Hello", " world"])
    assert singles == ids[:2]


@pytest.mark.parametrize("kind", ["induction", "duplicate_token", "previous_token"])
def test_attention_ranks_are_of_repeated_tokens_after_a_bos(runner, by_torch, kind):
    row, n = said_twice(by_torch), 100
    taps = by_torch.run(row, taps="*.pattern").taps
    pattern = np.stack([taps[f"blocks.{i}.pattern"][0] for i in range(LAYERS)])
    back = {"induction": n - 1, "duplicate_token": n, "previous_token": 1}[kind]
    start = 1 if kind == "previous_token" else 1 + n
    scores = np.mean([pattern[..., q, q - back] for q in range(start, len(row))], axis=0)
    assert measures.attention_ranks(runner, kind=kind, heads=EVERY) == order(scores)
    got = measures.attention_scores(runner, kind=kind, heads=EVERY)
    close(np.reshape(got, (LAYERS, -1)), scores, 1e-5)


def test_the_loss_of_repeated_tokens_is_of_all_but_the_first_that_come_again(runner, by_torch):
    row, n = said_twice(by_torch), 100

    def loss(edits=None) -> float:
        logits = logits_of(by_torch, row, edits)
        second = torch.tensor(row[n + 2 :])
        return float(torch.nn.functional.cross_entropy(logits[n + 1 : -1], second))

    def zeroed(z):
        z = z.clone()
        z[:, :, [0, 2]] = 0
        return z

    whole, cut = loss(), loss({"blocks.1.z": zeroed})
    assert abs(whole - cut) > 1e-3
    close(measures.repeated_loss(runner), [whole], 1e-5)
    close(measures.repeated_loss(runner, without=[(1, 0), (1, 2)]), [cut], 1e-5)
    close(measures.repeated_rise(runner, heads=[(1, 0), (1, 2)]), [cut - whole])


def test_a_token_leads_from_the_first_row_after_which_no_other_does(runner, by_torch):
    rows = ["blocks.0.resid_pre", *(f"blocks.{i}.resid_post" for i in range(LAYERS))]
    seen = set()
    for prompt in (published.MILK, published.HELLO, published.DUTY, *(case[0] for case in IOI)):
        taps = by_torch.run(ids_of(by_torch, prompt), taps=rows).taps
        best = [int(by_torch.unembed(taps[row][0, -1]).argmax()) for row in rows]
        token = by_torch.tokenizer.decode(best[-1:])
        want = max((i for i, b in enumerate(best) if b != best[-1]), default=-1) + 1
        assert measures.leading_rows(runner, followed=[(prompt, token)]) == [want]
        seen.add(want)
        other = by_torch.tokenizer.decode([(best[-1] + 1) % 50])
        assert measures.leading_rows(runner, followed=[(prompt, other)]) == [len(rows)]
    assert seen != {LAYERS}  # somewhere it leads before the last


def said_twice(runner) -> list[int]:
    bos, n = runner.config.bos_token_id, 100
    row = repeated_tokens(runner.config.vocab_size, 1, n, bos=bos)[0].tolist()
    assert len(row) == 1 + 2 * n
    assert row[0] == bos
    assert row[1 : 1 + n] == row[1 + n :]
    return row


def test_copying_is_the_heads_own_score(runner, by_torch):
    scores = copying_score(by_torch).scores
    for head in EVERY:
        close(measures.copying(runner, head=head), [scores[head]], 1e-5)


def test_ranks_count_from_one_and_nan_never_leads():
    scores = np.array([[3.0, 1.0], [2.0, np.nan]])
    assert measures.ranks(scores, [(0, 0), (0, 1), (1, 0), (1, 1)]) == [2, 4, 3, 5]
    assert measures.ranks(np.array([[5.0, 7.0]]), [(0, 1), (0, 0)]) == [1, 2]
