"""The measurements behind the facts: each function takes a runner and returns numbers.

`<|endoftext|>` stands before every prompt. Nothing here knows the claimed numbers. What is measured
on prompts with a right and a wrong answer is in `contrasts`, on years in `year_measures`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpt2kit.edits import Edit
from gpt2kit.finite import finite_run
from gpt2kit.logits import log_softmax
from gpt2kit.prompts import encode, prompt_ids, token_id
from gpt2kit.readout import Floats, Ints
from gpt2kit.runner import Runner
from probes.heads.copying import copying_score
from probes.heads.scores import head_scores
from probes.lens.generation_lens import leads_from
from probes.lens.logit_lens import logit_lens
from probes.tasks.repeated_tokens import repeated_tokens

LayerHead = tuple[int, int]  # layer, head


def loss(runner: Runner, *, text: str) -> Sequence[float]:
    """Mean negative log-probability of the tokens of a text, in nats."""
    ids = ids_of(runner, text)
    logprobs = log_softmax(finite_run(runner, ids).logits[0, :-1].astype(np.float64))
    return [-float(logprobs[np.arange(len(ids) - 1), ids[1:]].mean())]


def probabilities(runner: Runner, *, prompt: str, tokens: Sequence[str]) -> Sequence[float]:
    """(tokens,) the probability of each token as the next one."""
    logprobs = log_softmax(last_logits(runner, ids_of(runner, prompt)))
    return [float(np.exp(logprobs[i])) for i in singles(runner, *tokens)]


def next_probabilities(runner: Runner, *, followed: Sequence[tuple[str, str]]) -> Sequence[float]:
    """(pairs,) the probability of the token that follows each prompt.

    followed: pairs of a prompt and its next token.
    """
    return [probabilities(runner, prompt=prompt, tokens=[token])[0] for prompt, token in followed]


def ids_of_tokens(runner: Runner, *, tokens: Sequence[str]) -> Sequence[float]:
    """(tokens,) the ids of some tokens."""
    return singles(runner, *tokens)


def matching_ids(runner: Runner, *, text: str, ids: Sequence[int]) -> Sequence[float]:
    """(2,) the number of tokens of a text, and how many of them equal `ids` at the same place."""
    found = encode(runner, text)
    return [len(found), sum(a == b for a, b in zip(found, ids, strict=False))]


def attention_ranks(runner: Runner, *, kind: str, heads: Sequence[LayerHead]) -> Sequence[float]:
    """Ranks by the `head_scores` of a kind, on 100 random tokens said twice."""
    return ranks(_attention(runner, kind), heads)


def attention_scores(runner: Runner, *, kind: str, heads: Sequence[LayerHead]) -> Sequence[float]:
    """(heads,) the `head_scores` of a kind, from 0 to 1, on 100 random tokens said twice."""
    scores = _attention(runner, kind)
    return [float(scores[head]) for head in heads]


def repeated_loss(runner: Runner, *, without: Sequence[LayerHead] = ()) -> Sequence[float]:
    """(1,) mean loss in nats on the second copy of 100 random tokens said twice, but its first.

    without: heads whose z is set to 0.
    """
    ids = _repeated(runner)
    edits = [Edit.zero(f"blocks.{layer}.z", head=head) for layer, head in without]
    logits = finite_run(runner, ids, edits=edits).logits[0]
    start = len(ids) // 2 + 1  # the first token of the second copy
    logprobs = log_softmax(logits[start:-1].astype(np.float64))
    return [-float(logprobs[np.arange(len(logprobs)), ids[start + 1 :]].mean())]


def repeated_rise(runner: Runner, *, heads: Sequence[LayerHead]) -> Sequence[float]:
    """(1,) by how many nats `repeated_loss` rises without some heads."""
    return [repeated_loss(runner, without=heads)[0] - repeated_loss(runner)[0]]


def leading_rows(runner: Runner, *, followed: Sequence[tuple[str, str]]) -> Sequence[float]:
    """(pairs,) the first row of the logit lens from which the next token leads in every row.

    Row 0 is the embedding, row i the stream after the i-th layer, counted from 1. One more than all
    rows if the token does not lead in the last. followed: pairs of a prompt and its next token.
    """
    found = []
    for prompt, token in followed:
        lens = logit_lens(runner, prompt, targets=token, positions=[-1], top_k=1, prepend_bos=True)
        found.append(leading_row(lens.target_ranks[:, 0, 0]))
    return found


def leading_row(behind: Ints | NDArray[np.bool_]) -> float:
    """The first row from which all of (R,) are 0; R if the last is not."""
    row = leads_from(behind)
    return float(row if row >= 0 else len(behind))


def copying(runner: Runner, *, head: LayerHead) -> Sequence[float]:
    """(1,) a head's copying score, from -1 to 1."""
    return [float(copying_score(runner).scores[head])]


def ranks(scores: Floats, places: Sequence[LayerHead]) -> Sequence[float]:
    """Rank of each place by scores (layer, head), 1 for the largest.

    A NaN counts as larger when other places are ranked, and ranks last itself.
    """
    return [1 + int((~(scores <= scores[place])).sum()) for place in places]


def _attention(runner: Runner, kind: str) -> Floats:
    """(layer, head) the `head_scores` of a kind, on 100 random tokens said twice."""
    scores: Floats = getattr(head_scores(runner, prompt=_repeated(runner).tolist()), kind)
    return scores


def _repeated(runner: Runner) -> Ints:
    """(201,) 100 random tokens said twice, BOS first."""
    bos = runner.config.bos_token_id
    ids: Ints = repeated_tokens(runner.config.vocab_size, 1, 100, seed=0, bos=bos)[0]
    return ids


def ids_of(runner: Runner, text: str) -> list[int]:
    """Token ids, BOS first."""
    ids: list[int] = prompt_ids(runner, text, prepend_bos=True).tolist()
    return ids


def singles(runner: Runner, *tokens: str) -> list[int]:
    """Ids of texts that are one token each."""
    return [token_id(runner, token) for token in tokens]


def last_logits(runner: Runner, ids: Sequence[int], edits: Sequence[Edit] = ()) -> Floats:
    """(vocab,) logits after the last token, in float64."""
    run = finite_run(runner, ids, edits=edits, last_only=True)
    return np.asarray(run.logits[0, -1], np.float64)
