"""How far each head copies the token that it attends to, by its weights alone.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". For the OV circuit and the
letters of the formulas, see `probes.heads.circuits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.readout import Floats
from gpt2kit.result import ModelResult, Row, array_rows, model_header
from gpt2kit.runner import Runner
from probes.heads.head_weights import centred, head_columns, qkv_weight
from probes.heads.leading import leading

if TYPE_CHECKING:
    from rich.console import RenderableType

_ROUNDING = 1e-6  # of the size of its factors: a smaller product is rounding


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class CopyingScores(ModelResult):
    """How far each head's OV circuit raises the token it attends to.

    1: every eigenvalue of OV is positive (it copies); -1: every one is negative (it suppresses);
    NaN: the head writes nothing that the unembedding reads.
    """

    scores: Floats  # (layer, head), from -1 to 1

    def table(self) -> list[Row]:
        """One row for each head."""
        return array_rows({"score": self.scores}, ("layer", "head"))

    def render(self) -> RenderableType:
        """The heads at either end."""
        from probes.draw.leading_heads import leading_heads
        from probes.draw.words import title

        what = "layer.head, and how far its OV circuit raises what it looks at, from -1 to 1"
        first = title("copying scores", self.source, self.dtype)
        columns = {
            "most copying": leading(self.scores),
            "least": leading(self.scores, largest=False),
        }
        return leading_heads(first, what, columns)

    def __repr__(self) -> str:
        layers, heads = self.scores.shape
        return f"CopyingScores({self.source}, {layers} layers x {heads} heads)"


def copying_score(runner: Runner) -> CopyingScores:
    """For each head, sum(λ) / sum(|λ|) over the eigenvalues λ of its OV circuit.

    Elhage et al. 2021. Gains are folded in and means subtracted; the denominators of both layer
    norms are taken to be the same for all tokens. OV is (vocab, vocab); its eigenvalues other than
    0 are the eigenvalues of W_O C diag(g_f) U^T E C diag(g_1) W_V, which is (d_head, d_head).
    """
    config = runner.config
    through = _through_vocabulary(runner)
    scores = np.full((config.n_layer, config.n_head), np.nan)
    for layer in range(config.n_layer):
        outs = runner.weight(f"h.{layer}.attn.c_proj.weight")
        values = qkv_weight(runner, layer, "v")[0].astype(np.float64)
        values = runner.weight(f"h.{layer}.ln_1.weight")[:, None] * values
        for head in range(config.n_head):
            own = head_columns(config, head)
            scores[layer, head] = _score(outs[own], through, values[:, own])
    return CopyingScores(**model_header(runner), scores=scores)


def _through_vocabulary(runner: Runner) -> Floats:
    """(d_model, d_model) C diag(g_f) U^T E C, from a head's output to its input, in float64."""
    through = runner.weight("lm_head.weight").T @ runner.weight("wte.weight")
    through = runner.weight("ln_f.weight")[:, None] * centred(through.astype(np.float64))
    out: Floats = through - through.mean(0)  # the C that follows W_O
    return out


def _score(out: Floats, through: Floats, value: Floats) -> float:
    """The score of one head. out: (d_head, d_model) W_O. value: (d_model, d_head) g_1 W_V."""
    eigenvalues = np.linalg.eigvals(out @ through @ value)
    size = np.abs(eigenvalues).sum()
    if size > _ROUNDING * np.prod([np.linalg.norm(x) for x in (out, through, value)]):
        return float(eigenvalues.sum().real / size)
    return float("nan")
