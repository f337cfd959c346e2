"""How a prediction comes about, layer by layer: statistics of next-token distributions.

The functions take log-probabilities (…, vocab), natural logarithms, and work in float64. A token of
probability 0 (log-probability -inf) adds nothing to a sum, as the limit has it.
Trajectories after Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the
Tuned Lens", arXiv 2303.08112; Jensen-Shannon divergence after Lin 1991.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.console import Group, RenderableType
from rich.text import Text

from gpt2kit.prompts import Prompt, Selection, counted
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import Result
from gpt2kit.runner import Runner
from probes.core.metrics import log_softmax
from probes.draw.tables import table
from probes.draw.words import title
from probes.lens.logit_lens import logit_lens
from probes.lens.tuned_lens import TunedLens, tuned_lens

_TILE = 1 << 22  # numbers: rows x positions x vocabulary held at a time

Doubles = NDArray[np.float64]


def entropy(log_p: ArrayLike) -> Doubles:
    """(…, vocab) -> (…) nats, -sum p log p; from 0 to log(vocab)."""
    log = _double(log_p)
    return -_expected(log, log)


def kl_divergence(log_p: ArrayLike, log_q: ArrayLike) -> Doubles:
    """KL(p || q) in nats, sum p (log p - log q); 0 or more, infinite where q rules out what p
    allows."""
    p, q = _double(log_p), _double(log_q)
    with np.errstate(invalid="ignore"):  # -inf - -inf, of tokens that p rules out
        return _expected(p, p - q)


def js_divergence(log_p: ArrayLike, log_q: ArrayLike) -> Doubles:
    """Jensen-Shannon divergence in nats: the mean of KL(p || m) and KL(q || m) with the mixture
    m = (p + q) / 2; from 0 to log 2, the same either way round."""
    p, q = _double(log_p), _double(log_q)
    m = np.logaddexp(p, q) - np.log(2)
    return (kl_divergence(p, m) + kl_divergence(q, m)) / 2


def total_variation(log_p: ArrayLike, log_q: ArrayLike) -> Doubles:
    """Half the sum of |p - q|: by how much the probability of any set of tokens may differ; from 0
    to 1."""
    half: Doubles = np.abs(np.exp(_double(log_p)) - np.exp(_double(log_q))).sum(-1) / 2
    return half


def rank(log_p: ArrayLike, ids: ArrayLike) -> Ints:
    """(…, vocab), token ids (…) -> (…) how many tokens are likelier; 0 is the likeliest."""
    log, at = _double(log_p), np.asarray(ids, np.int64)[..., None]
    above: Ints = (log > np.take_along_axis(log, at, -1)).sum(-1)
    return above


def max_prob(log_p: ArrayLike) -> Doubles:
    """(…, vocab) -> (…) probability of the likeliest token."""
    top: Doubles = np.exp(_double(log_p).max(-1))
    return top


def _double(log_p: ArrayLike) -> Doubles:
    return np.asarray(log_p, np.float64)


def _expected(log_p: Doubles, values: Doubles) -> Doubles:
    """(…) sum over the vocabulary of p times a value that may be anything where p is 0."""
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        total: Doubles = np.where(p > 0, p * values, 0.0).sum(-1)
    return total


@dataclass(frozen=True, eq=False)
class Trajectory(Result):
    """Next-token predictions by layer and position, in a few numbers each.

    Rows (R) are the taps in `rows`: the embedding, then the stream after each layer; the last is
    the model's own prediction. Columns (P) are `positions`.
    """

    kind: str  # "logit lens" or "tuned lens"
    source: str
    dtype: str
    prompt_tokens: tuple[str, ...]  # (N,)
    rows: tuple[str, ...]  # (R,) tap names
    positions: Ints  # (P,)
    entropy: Floats  # (R, P) nats
    kl: Floats  # (R, P) nats, KL(final row || this row)
    js: Floats  # (R, P) nats, JS divergence to the final row, at most log 2
    next_ranks: Ints  # (R, P) of the token that follows, 0 = likeliest; -1 where there is none
    max_prob: Floats  # (R, P)

    def render(self) -> RenderableType:
        """Each row's means over the positions; of the next token's ranks, the median."""
        names = ("entropy", "KL", "JS", "rank", "max prob")
        rows = table("row", *names, numbers=names)
        for r in reversed(range(len(self.rows))):
            ranks = self.next_ranks[r][self.next_ranks[r] >= 0]
            rows.add_row(
                self.rows[r],
                f"{self.entropy[r].mean():.3f}",
                f"{self.kl[r].mean():.3f}",
                f"{self.js[r].mean():.3f}",
                f"{np.median(ranks):g}" if ranks.size else "-",
                f"{self.max_prob[r].mean():.3f}",
            )
        read = counted(len(self.prompt_tokens), "token")
        over = f"means over {counted(len(self.positions), 'position')} (ranks: median)"
        units = Text(f"{over}, in nats; KL and JS to the last row")
        first = title(f"trajectory by the {self.kind}", self.source, self.dtype, read)
        return Group(first, units, "", rows)

    def __repr__(self) -> str:
        return (
            f"Trajectory({self.kind}, {self.source}, {len(self.rows)} rows x "
            f"{len(self.positions)} positions; print it for the means)"
        )


def trajectory(
    runner: Runner,
    prompt: Prompt,
    *,
    lens: TunedLens | None = None,
    positions: Selection = None,
    prepend_bos: bool = False,
) -> Trajectory:
    """The prediction after each layer, read by the logit lens or by a tuned one.

    positions, prepend_bos: as in `logit_lens`. JS divergence needs two distributions at once, which
    no engine's readout gives: it is worked out from logits, of a few positions at a time. Nothing
    of size rows x positions x vocabulary is held.
    """
    if lens is None:
        read = logit_lens(runner, prompt, top_k=1, positions=positions, prepend_bos=prepend_bos)
    else:
        read = tuned_lens(
            runner, prompt, lens, top_k=1, positions=positions, prepend_bos=prepend_bos
        )
    taps = runner.run(read.prompt_ids, taps=read.rows, last_only=True, top_k=0).taps
    resid = np.stack([taps[row][0, read.positions] for row in read.rows])
    return Trajectory(
        kind=read.kind,
        source=read.source,
        dtype=read.dtype,
        prompt_tokens=read.prompt_tokens,
        rows=read.rows,
        positions=read.positions,
        entropy=read.entropy,
        kl=read.kl,
        js=_js_to_last(runner, resid if lens is None else lens.translate(resid)),
        next_ranks=read.next_ranks,
        max_prob=np.exp(read.top_logprobs[..., 0]),
    )


def _js_to_last(runner: Runner, resid: Floats) -> Floats:
    """Residual vectors (row, pos, d_model) -> (row, pos) JS divergence to the last row's reading.

    `js_divergence`, but what it has of the last row is worked out once a position.
    """
    rows, count, _ = resid.shape
    step = max(1, _TILE // (rows * runner.config.vocab_size))
    out = np.empty((rows, count))
    for start in range(0, count, step):
        logits = runner.unembed(resid[:, start : start + step])
        for at in range(logits.shape[1]):
            log_p = log_softmax(logits[:, at].astype(np.float64))  # (row, vocab)
            p = np.exp(log_p)
            log_m = np.log(np.maximum((p + p[-1]) / 2, 1e-300))
            to_m, from_last = p * (log_p - log_m), p[-1] * (log_p[-1] - log_m)
            out[:, start + at] = (to_m.sum(-1) + from_last.sum(-1)) / 2
    return out.clip(min=0)  # rounding
