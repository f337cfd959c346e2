"""The OV circuit and the QK circuit of a head, from its weights alone.

OV says what a head writes, given the token that it attends to; QK says which tokens it attends to.
Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". With E the embedding, U
the unembedding (both (vocab, d_model)), and rows as vectors, tokens pass through a head by

    OV = n(E) diag(g_1) W_V W_O C diag(g_f) U^T      (vocab, vocab): token attended to -> logits
    QK = (ln_1(E) W_Q + b_Q) (n(E) diag(g_1) W_K)^T  (vocab, vocab): query token -> key token

n is a layer norm without gain and bias; g_1 and g_f are the gains of the head's ln_1 and of ln_f;
C subtracts the mean over d_model, as ln_f does. Two things are left out: whatever is the same for
all tokens (the biases of keys, values, outputs and ln_f), and whatever weights cannot know (ln_f's
denominator, positions, and the writes of other layers: the embedding is read directly, whatever
the head's layer). The products are computed from the inside out, so that nothing of size vocab x
vocab is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.checks import check_top_k
from gpt2kit.defaults import Default
from gpt2kit.logits import largest
from gpt2kit.printable import printable
from gpt2kit.prompts import Token, token_id, token_texts
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import ModelResult, Row, model_header
from gpt2kit.runner import Runner
from probes.core.parts import check_head, tap_at
from probes.heads.head_weights import centred, head_columns, normalised, qkv_weight

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class CircuitTokens(ModelResult):
    """The tokens that a head's OV or QK circuit joins most strongly to one token, best first."""

    circuit: str  # "OV" or "QK"
    layer: int
    head: int
    token: str  # OV: the token attended to; QK: the query
    ids: Ints  # (top_k,)
    tokens: tuple[str, ...]  # (top_k,)
    values: Floats  # (top_k,) OV: logits, not divided by ln_f's denominator; QK: attention scores

    def table(self) -> list[Row]:
        """One row for each token, best first."""
        return [
            {"rank": rank, "id": int(id_), "token": token, "value": float(value)}
            for rank, (id_, token, value) in enumerate(
                zip(self.ids, self.tokens, self.values, strict=True)
            )
        ]

    def render(self) -> RenderableType:
        """The tokens and their values."""
        from rich.console import Group
        from rich.text import Text

        from probes.draw.tables import table
        from probes.draw.words import title

        ov = self.circuit == "OV"
        name, unit = ("promoted", "logit") if ov else ("key", "score")
        rows = table(name, unit, numbers=[unit])
        for token, value in zip(self.tokens, self.values, strict=True):
            rows.add_row(Text(repr(printable(token))), f"{value:.2f}")
        first = title(f"{self.circuit} of head {self.layer}.{self.head}", self.source, self.dtype)
        what = f"{printable(self.token)!r} " + ("is looked at" if ov else "looks")
        return Group(first, Text(what), "", rows)

    def __repr__(self) -> str:
        return (
            f"CircuitTokens({self.source}, {self.circuit} of head {self.layer}.{self.head}, "
            f"{printable(self.token)!r}, top {len(self.ids)})"
        )


def ov_top_tokens(
    runner: Runner, layer: int, head: int, token: Token, *, top_k: int = Default(10)
) -> CircuitTokens:
    """The tokens that a head promotes when it attends to `token` alone: a row of OV, see above.

    A negative layer counts from the end. Raises InputError for an unknown layer, head or token.
    """
    row, layer, own = _row_layer_columns(runner, layer, head, token, top_k)
    gain, out = (runner.weight(f"h.{layer}.{name}.weight") for name in ("ln_1", "attn.c_proj"))
    value = qkv_weight(runner, layer, "v")[0][:, own]
    read = (normalised(runner.weight("wte.weight")[row], runner.config) * gain) @ value
    written = centred(read @ out[own])
    logits = runner.weight("lm_head.weight") @ (written * runner.weight("ln_f.weight"))
    return _top(runner, "OV", layer, head, row, logits, top_k)


def qk_top_tokens(
    runner: Runner, layer: int, head: int, token: Token, *, top_k: int = Default(10)
) -> CircuitTokens:
    """The keys that a head attends to when `token` is the query: a row of QK, see above.

    Values are attention scores, scaled as the model does. They leave out positions, and a constant
    that is the same for all keys. A negative layer counts from the end. Raises InputError for an
    unknown layer, head or token.
    """
    row, layer, own = _row_layer_columns(runner, layer, head, token, top_k)
    config, embedding = runner.config, runner.weight("wte.weight")
    gain, shift = (runner.weight(f"h.{layer}.ln_1.{kind}") for kind in ("weight", "bias"))
    (query, bias), (key, _) = qkv_weight(runner, layer, "q"), qkv_weight(runner, layer, "k")
    read = normalised(embedding[row], config) * gain + shift
    wanted = gain * (key[:, own] @ (read @ query[:, own] + bias[own]))  # (d_model,)
    scores = normalised(embedding, config) @ wanted * config.attn_scale(layer)
    return _top(runner, "QK", layer, head, row, scores, top_k)


def _row_layer_columns(
    runner: Runner, layer: int, head: int, token: Token, top_k: int
) -> tuple[int, int, slice]:
    """Check the arguments. Returns the token's id, the layer from 0, and the head's columns."""
    config = runner.config
    row, layer = token_id(runner, token), tap_at(config, layer, "z")[1]
    check_top_k(top_k, config.vocab_size)
    return row, layer, head_columns(config, check_head(config, head))


def _top(
    runner: Runner, circuit: str, layer: int, head: int, row: int, values: Floats, top_k: int
) -> CircuitTokens:
    """The top_k of values (vocab,), joined to the token `row`."""
    best, ids = largest(values, min(top_k, len(values)))
    token, *tokens = token_texts(runner, np.array([row, *ids]))
    return CircuitTokens(
        **model_header(runner), circuit=circuit, layer=layer, head=head, token=token, ids=ids,
        tokens=tuple(tokens), values=best,
    )  # fmt: skip
