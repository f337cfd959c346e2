"""The measurements behind the published facts: each function takes a runner and returns numbers.

`<|endoftext|>` stands before every prompt. Nothing here knows the published numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from gpt2kit.edits import Edit
from gpt2kit.finite import finite_run
from gpt2kit.logits import log_softmax
from gpt2kit.prompts import encode, prompt_ids, token_id, tokenizer_of
from gpt2kit.readout import Floats
from gpt2kit.runner import Runner
from probes.attribution.direct import direct_logit_attribution
from probes.causal.patching import activation_patching
from probes.core.metrics import Metric
from probes.heads.copying import copying_score
from probes.heads.scores import head_scores
from probes.tasks.greater_than import greater_than
from probes.tasks.repeated_tokens import repeated_tokens

LayerHead = tuple[int, int]  # layer, head
_TEMPLATES = (
    ("When John and Mary went to the shops,{} gave the bag to", " Mary", " John"),
    ("When Tom and James went to the park,{} gave the ball to", " Tom", " James"),
    ("When Dan and Sid went to the shops,{} gave an apple to", " Dan", " Sid"),
    ("After Martin and Amy went to the park,{} gave a drink to", " Martin", " Amy"),
)
# The prompts of TransformerLens' exploratory analysis demo: (prompt, right name, wrong name).
IOI = tuple(
    (template.format(wrong), right, wrong)
    for template, a, b in _TEMPLATES
    for right, wrong in ((a, b), (b, a))
)


def loss(runner: Runner, *, text: str) -> Sequence[float]:
    """Mean negative log-probability of the tokens of a text, in nats."""
    ids = _ids(runner, text)
    logprobs = log_softmax(finite_run(runner, ids).logits[0, :-1].astype(np.float64))
    return [-float(logprobs[np.arange(len(ids) - 1), ids[1:]].mean())]


def probabilities(runner: Runner, *, prompt: str, tokens: Sequence[str]) -> Sequence[float]:
    """(tokens,) the probability of each token as the next one."""
    logprobs = log_softmax(_last_logits(runner, _ids(runner, prompt)))
    return [float(np.exp(logprobs[i])) for i in _singles(runner, *tokens)]


def ids_of_tokens(runner: Runner, *, tokens: Sequence[str]) -> Sequence[float]:
    """(tokens,) the ids of some tokens."""
    return _singles(runner, *tokens)


def matching_ids(runner: Runner, *, text: str, ids: Sequence[int]) -> Sequence[float]:
    """(2,) the number of tokens of a text, and how many of them equal `ids` at the same place."""
    found = encode(runner, text)
    return [len(found), sum(a == b for a, b in zip(found, ids, strict=False))]


def ioi_differences(runner: Runner, *, without: LayerHead | None = None) -> Sequence[float]:
    """(8,) logit of the right name minus logit of the wrong one.

    without: a head whose z is set to 0 at the last position.
    """
    out = []
    for prompt, right, wrong in IOI:
        ids, edits = _ids(runner, prompt), []
        if without is not None:
            layer, head = without
            edits = [Edit.zero(f"blocks.{layer}.z", head=head, pos=len(ids) - 1)]
        a, b = _last_logits(runner, ids, edits)[_singles(runner, right, wrong)]
        out.append(float(a - b))
    return out


def ioi_mean(runner: Runner, *, without: LayerHead | None = None) -> Sequence[float]:
    """(1,) mean of `ioi_differences`."""
    return [float(np.mean(ioi_differences(runner, without=without)))]


def ioi_share(runner: Runner, *, head: LayerHead) -> Sequence[float]:
    """(1,) the fall of the mean difference when a head is set to 0 at the last position."""
    return [ioi_mean(runner)[0] - ioi_mean(runner, without=head)[0]]


def ioi_attribution(runner: Runner, *, heads: Sequence[LayerHead], sign: int) -> Sequence[float]:
    """Ranks by direct logit attribution, mean over the prompts.

    sign: 1 for the most positive first, -1 for the most negative first.
    """
    attribute = partial(direct_logit_attribution, runner, prepend_bos=True, by="head")
    scores = [attribute(p, target=right, foil=wrong).values["head"] for p, right, wrong in IOI]
    return ranks(sign * np.mean(scores, axis=0), heads)


def ioi_patching(runner: Runner, *, heads: Sequence[LayerHead]) -> Sequence[float]:
    """Ranks by how far a head's z, patched at all positions, restores the right name.

    It is patched from each prompt into the prompt with the names exchanged; mean over the prompts.
    """
    effects = []
    for (clean, right, wrong), (corrupt, *_) in _both_ways():
        rows = _ids(runner, clean), _ids(runner, corrupt)
        metric = Metric.logit_diff(right, wrong)
        effects.append(activation_patching(runner, *rows, metric=metric, over="z").normalised)
    return ranks(np.mean(effects, axis=0), heads)


def attention_ranks(runner: Runner, *, kind: str, heads: Sequence[LayerHead]) -> Sequence[float]:
    """Ranks by the `head_scores` of a kind, on 100 random tokens said twice."""
    bos = runner.config.bos_token_id
    ids = repeated_tokens(runner.config.vocab_size, 1, 100, seed=0, bos=bos)[0]
    return ranks(getattr(head_scores(runner, prompt=ids.tolist()), kind), heads)


def years(runner: Runner) -> Sequence[float]:
    """(1,) probability of later years minus probability of earlier ones, mean over the prompts."""
    found = [metric(_last_logits(runner, ids)[None]) for ids, _, metric in _years(runner)]
    return [float(np.mean(found))]


def years_patching(runner: Runner, *, over: str, places: Sequence[LayerHead]) -> Sequence[float]:
    """Ranks by how far `years` falls when a head's z, or a layer's MLP output, is patched.

    The value at the last position comes from the same prompt with the year 01. over: "z", or
    "mlp_out", whose places are (layer, 0).
    """
    falls = []
    for ids, ids_01, metric in _years(runner):
        found = activation_patching(runner, ids_01, ids, metric=metric, over=over, positions=[-1])
        falls.append((found.corrupt - found.values).reshape(runner.config.n_layer, -1))
    return ranks(np.mean(falls, axis=0), places)


def copying(runner: Runner, *, head: LayerHead) -> Sequence[float]:
    """(1,) a head's copying score, from -1 to 1."""
    return [float(copying_score(runner).scores[head])]


def ranks(scores: Floats, places: Sequence[LayerHead]) -> Sequence[float]:
    """Rank of each place by scores (layer, head), 1 for the largest.

    A NaN counts as larger when other places are ranked, and ranks last itself.
    """
    return [1 + int((~(scores <= scores[place])).sum()) for place in places]


def _ids(runner: Runner, text: str) -> list[int]:
    """Token ids, BOS first."""
    ids: list[int] = prompt_ids(runner, text, prepend_bos=True).tolist()
    return ids


def _singles(runner: Runner, *tokens: str) -> list[int]:
    """Ids of texts that are one token each."""
    return [token_id(runner, token) for token in tokens]


def _last_logits(runner: Runner, ids: Sequence[int], edits: Sequence[Edit] = ()) -> Floats:
    """(vocab,) logits after the last token, in float64."""
    run = finite_run(runner, ids, edits=edits, last_only=True)
    return np.asarray(run.logits[0, -1], np.float64)


def _both_ways() -> Iterator[tuple[tuple[str, str, str], tuple[str, str, str]]]:
    """Each IOI prompt, and the prompt of the same template with the names exchanged."""
    for i in range(0, len(IOI), 2):
        yield IOI[i], IOI[i + 1]
        yield IOI[i + 1], IOI[i]


def _years(runner: Runner) -> Iterator[tuple[list[int], list[int], Callable[[Floats], Floats]]]:
    """Ids of a prompt, ids of the same with the year 01, and logits (batch, vocab) -> (batch,)."""
    data = greater_than(tokenizer_of(runner), 8)
    for i, texts in enumerate(zip(data.prompts, data.corrupt, strict=True)):
        ids, ids_01 = (_ids(runner, text) for text in texts)
        right, wrong = list(data.right_ids[i]), list(data.wrong_ids[i])
        yield ids, ids_01, partial(_later, right=right, wrong=wrong)


def _later(logits: Floats, right: list[int], wrong: list[int]) -> Floats:
    """(batch,) probability of the right tokens minus probability of the wrong ones."""
    p: Floats = np.exp(log_softmax(logits))
    out: Floats = p[:, right].sum(-1) - p[:, wrong].sum(-1)
    return out
