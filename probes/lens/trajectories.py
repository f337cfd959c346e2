"""How a prediction comes about, layer by layer, in a few numbers each.

Trajectories after Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the
Tuned Lens", arXiv 2303.08112.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from gpt2kit.logits import log_softmax
from gpt2kit.prompts import Prompt, Selection, counted
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import Result
from gpt2kit.runner import Runner
from probes.draw.tables import table
from probes.draw.words import title
from probes.lens.logit_lens import logit_lens
from probes.lens.tuned_lens import TunedLens, tuned_lens

_TILE = 1 << 22  # numbers: rows x positions x vocabulary held at a time


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
