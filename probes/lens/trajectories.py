"""How a prediction comes about, layer by layer, in a few numbers each.

After Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens",
arXiv 2303.08112.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.finite import finite_run, finite_unembed
from gpt2kit.logits import log_softmax
from gpt2kit.prompts import Prompt, Selection, counted
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import PromptResult, Row, array_rows
from gpt2kit.runner import Runner
from probes.lens.lens_result import LogitLens
from probes.lens.logit_lens import logit_lens
from probes.lens.tuned_lens import TunedLens, tuned_lens

if TYPE_CHECKING:
    from rich.console import RenderableType

_TILE = 1 << 22  # rows x positions x vocabulary: logits held at a time


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Trajectory(PromptResult):
    """Next-token predictions by layer and position, in a few numbers each.

    Rows (R) are the taps in `rows`: the embedding, then the stream after each layer; the last is
    the model's own prediction. Columns (P) are `positions`.
    """

    lens: str  # "logit lens" or "tuned lens"
    rows: tuple[str, ...]  # (R,) tap names
    positions: Ints  # (P,)
    entropy: Floats  # (R, P) nats
    kl: Floats  # (R, P) nats, KL(final row || this row)
    js: Floats  # (R, P) nats, JS divergence to the final row, at most log 2
    next_ranks: Ints  # (R, P) of the token that follows, 0 = likeliest; -1 if no token follows
    max_prob: Floats  # (R, P)

    def table(self) -> list[Row]:
        """One row for each row and position of the trajectory."""
        names = ("entropy", "kl", "js", "next_ranks", "max_prob")
        cells = array_rows({name: getattr(self, name) for name in names}, ("row", "position"))
        return [
            cell
            | {"row": self.rows[cell["row"]], "position": int(self.positions[cell["position"]])}
            for cell in cells
        ]

    def render(self) -> RenderableType:
        """Each row's means over the positions; for the next token's ranks, the median."""
        from rich.console import Group
        from rich.text import Text

        from probes.draw.tables import table
        from probes.draw.words import title

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
        first = title(f"trajectory by the {self.lens}", self.source, self.dtype, read)
        return Group(first, units, "", rows)

    def __repr__(self) -> str:
        return (
            f"Trajectory({self.lens}, {self.source}, {len(self.rows)} rows x "
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

    positions, prepend_bos: as in `logit_lens`.
    JS divergence needs two distributions at once, which no engine's readout gives, so it is
    computed from logits, for a few positions at a time.
    """
    if lens is None:
        read = logit_lens(runner, prompt, top_k=1, positions=positions, prepend_bos=prepend_bos)
    else:
        read = tuned_lens(
            runner, prompt, lens, top_k=1, positions=positions, prepend_bos=prepend_bos
        )
    return Trajectory(
        source=read.source,
        dtype=read.dtype,
        has_bos=read.has_bos,
        prompt_ids=read.prompt_ids,
        prompt_tokens=read.prompt_tokens,
        lens=read.kind,
        rows=read.rows,
        positions=read.positions,
        entropy=read.entropy,
        kl=read.kl,
        js=_js(runner, read, lens),
        next_ranks=read.next_ranks,
        max_prob=np.exp(read.top_logprobs[..., 0]),
    )


def _js(runner: Runner, read: LogitLens, lens: TunedLens | None) -> Floats:
    """(R, P) JS divergence of each row's reading to the last row's."""
    taps = finite_run(runner, read.prompt_ids, taps=read.rows, last_only=True, top_k=0).taps
    resid = np.stack([taps[row][0, read.positions] for row in read.rows])
    if lens is not None:
        resid = lens.translate(resid)
    rows, count, _ = resid.shape
    step = max(1, _TILE // (rows * runner.config.vocab_size))
    out = np.empty((rows, count))
    for start in range(0, count, step):
        logits = finite_unembed(runner, resid[:, start : start + step])
        for p in range(logits.shape[1]):
            out[:, start + p] = _js_to_last(log_softmax(logits[:, p].astype(np.float64)))
    return out.clip(min=0)  # rounding


def _js_to_last(log_p: Floats) -> Floats:
    """(R, vocab) -> (R,) `js_divergence` of each row to the last, whose part is computed once."""
    p = np.exp(log_p)
    log_m = np.log(np.maximum((p + p[-1]) / 2, 1e-300))
    to_m, from_last = p * (log_p - log_m), p[-1] * (log_p[-1] - log_m)
    js: Floats = (to_m.sum(-1) + from_last.sum(-1)) / 2
    return js
