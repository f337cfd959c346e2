"""What a head's weights say by themselves: its OV circuit (what it writes, given what it looks at)
and its QK circuit (what it looks at).

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". With E the embedding, U
the unembedding (both (vocab, d_model)), and rows as vectors, tokens pass through a head by

    OV = n(E) diag(g_1) W_V W_O C diag(g_f) U^T      (vocab, vocab): token looked at -> logits
    QK = (ln_1(E) W_Q + b_Q) (n(E) diag(g_1) W_K)^T  (vocab, vocab): query token -> key token

n is a layer norm without gain and bias; g_1 and g_f are the gains of the head's ln_1 and of ln_f;
C takes the mean over d_model away, as ln_f does. Left out is what is the same for all tokens (the
biases of keys, values, outputs and ln_f) and what weights cannot know (ln_f's denominator,
positions, and what other layers add: the embedding is read as it is, whatever the head's layer).
The products are taken from the inside, so nothing of size vocab x vocab is built.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from gpt2kit.config import GPT2Config
from gpt2kit.errors import InputError
from gpt2kit.logits import largest
from gpt2kit.prompts import Token, token_id, token_texts
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import Result
from gpt2kit.runner import Runner
from gpt2kit.tokenizer import printable
from probes.draw.tables import table
from probes.draw.words import title
from probes.heads.attention_view import leaders

_NOTHING = 1e-6  # of the size of the factors: below, a product is rounding


@dataclass(frozen=True, eq=False)
class CopyingScores(Result):
    """How far each head's OV circuit raises the token it looks at.

    1: every eigenvalue of OV is positive (it copies); -1: every one negative (it suppresses);
    NaN: the head writes nothing that the unembedding reads.
    """

    source: str
    dtype: str
    scores: Floats  # (layer, head), from -1 to 1

    def __repr__(self) -> str:
        layers, heads = self.scores.shape
        return f"CopyingScores({self.source}, {layers} layers x {heads} heads)"

    def render(self) -> RenderableType:
        """The heads at either end."""
        columns = {"most copying": (self.scores, True), "least": (self.scores, False)}
        what = "layer.head, and how far its OV circuit raises what it looks at, from -1 to 1"
        return leaders(title("copying scores", self.source, self.dtype), what, columns)


@dataclass(frozen=True, eq=False)
class CircuitTokens(Result):
    """The tokens that a head's OV or QK circuit joins most strongly to one token, best first."""

    source: str
    dtype: str
    circuit: str  # "OV" or "QK"
    layer: int
    head: int
    token: str  # the token looked at (OV), or that looks (QK)
    ids: Ints  # (top_k,)
    tokens: tuple[str, ...]  # (top_k,)
    values: Floats  # (top_k,) OV: logits, not divided by ln_f's denominator; QK: attention scores

    def __repr__(self) -> str:
        return (
            f"CircuitTokens({self.source}, {self.circuit} of head {self.layer}.{self.head}, "
            f"{printable(self.token)!r}, top {len(self.ids)})"
        )

    def render(self) -> RenderableType:
        """The tokens and their values."""
        ov = self.circuit == "OV"
        name, unit = ("promoted", "logit") if ov else ("key", "score")
        rows = table(name, unit, numbers=[unit])
        for token, value in zip(self.tokens, self.values, strict=True):
            rows.add_row(Text(repr(printable(token))), f"{value:.2f}")
        first = title(f"{self.circuit} of head {self.layer}.{self.head}", self.source, self.dtype)
        what = f"{printable(self.token)!r} " + ("is looked at" if ov else "looks")
        return Group(first, Text(what), "", rows)


def copying_score(runner: Runner) -> CopyingScores:
    """For each head, sum(λ) / sum(|λ|) over the eigenvalues λ of its OV circuit.

    Elhage et al. 2021. Gains are folded and means taken away, as in the head of this file; the
    denominators of both layer norms are taken to be the same for all tokens. The eigenvalues that
    are not 0 are those of W_O C diag(g_f) U^T E C diag(g_1) W_V, (d_head, d_head).
    """
    config = runner.config
    through = runner.weight("lm_head.weight").T @ runner.weight("wte.weight")  # (d_model, d_model)
    through = runner.weight("ln_f.weight")[:, None] * _centred(through.astype(np.float64))
    through -= through.mean(0)  # the C that follows W_O
    scores = np.full((config.n_layer, config.n_head), np.nan)
    for layer in range(config.n_layer):
        values, outs = _part(runner, layer, "v")[0], runner.weight(f"h.{layer}.attn.c_proj.weight")
        values = runner.weight(f"h.{layer}.ln_1.weight")[:, None] * values.astype(np.float64)
        for head in range(config.n_head):
            own = _own(config, head)
            value, out = values[:, own], outs[own]
            eigenvalues = np.linalg.eigvals(out @ through @ value)
            size = np.abs(eigenvalues).sum()
            if size > _NOTHING * np.prod([np.linalg.norm(x) for x in (out, through, value)]):
                scores[layer, head] = eigenvalues.sum().real / size
    return CopyingScores(str(runner.source), runner.precision, scores)


def ov_top_tokens(
    runner: Runner, layer: int, head: int, token: Token, *, top_k: int = 10
) -> CircuitTokens:
    """The tokens that a head promotes when it looks at `token` alone: a row of OV, see above.

    A negative layer counts from the end. Raises InputError for a head or token that is not there.
    """
    row, config = token_id(runner, token), runner.config
    layer = _layer_of(config, layer, head)
    own, gain = _own(config, head), runner.weight(f"h.{layer}.ln_1.weight")
    value = _part(runner, layer, "v")[0][:, own]
    read = (_normed(runner.weight("wte.weight")[row], config) * gain) @ value
    written = _centred(read @ runner.weight(f"h.{layer}.attn.c_proj.weight")[own])
    logits = runner.weight("lm_head.weight") @ (written * runner.weight("ln_f.weight"))
    return _top(runner, "OV", layer, head, row, logits, top_k)


def qk_top_tokens(
    runner: Runner, layer: int, head: int, token: Token, *, top_k: int = 10
) -> CircuitTokens:
    """The keys that a head looks for when `token` is the query: a row of QK, see above.

    Values are attention scores, scaled as the model does, without what positions add and up to
    one number for all keys. A negative layer counts from the end. Raises InputError for a head or
    token that is not there.
    """
    row, config = token_id(runner, token), runner.config
    layer = _layer_of(config, layer, head)
    own, embedding = _own(config, head), runner.weight("wte.weight")
    gain, shift = (runner.weight(f"h.{layer}.ln_1.{kind}") for kind in ("weight", "bias"))
    (query, bias), (key, _) = _part(runner, layer, "q"), _part(runner, layer, "k")
    read = _normed(embedding[row], config) * gain + shift
    wanted = gain * (key[:, own] @ (read @ query[:, own] + bias[own]))  # (d_model,)
    scores = _normed(embedding, config) @ wanted * config.attn_scale(layer)
    return _top(runner, "QK", layer, head, row, scores, top_k)


def _part(runner: Runner, layer: int, part: str) -> tuple[Floats, Floats]:
    """(d_model, d_model) weight and (d_model,) bias of "q", "k" or "v", all heads side by side."""
    start, name = "qkv".index(part) * runner.config.n_embd, f"h.{layer}.attn.c_attn"
    columns = slice(start, start + runner.config.n_embd)
    return runner.weight(f"{name}.weight")[:, columns], runner.weight(f"{name}.bias")[columns]


def _own(config: GPT2Config, head: int) -> slice:
    """Where a head's units are among those of all heads."""
    return slice(head * config.d_head, (head + 1) * config.d_head)


def _centred(x: Floats) -> Floats:
    centred: Floats = x - x.mean(-1, keepdims=True)
    return centred


def _normed(x: Floats, config: GPT2Config) -> Floats:
    """A layer norm without gain and bias."""
    normed: Floats = _centred(x) / np.sqrt(x.var(-1, keepdims=True) + config.layer_norm_epsilon)
    return normed


def _layer_of(config: GPT2Config, layer: int, head: int) -> int:
    """The layer counted from 0, of a head that is there."""
    if not (-config.n_layer <= layer < config.n_layer and 0 <= head < config.n_head):
        raise InputError(
            f"head {layer}.{head}: the model has layers 0 to {config.n_layer - 1} and heads 0 to "
            f"{config.n_head - 1}"
        )
    return layer % config.n_layer


def _top(
    runner: Runner, circuit: str, layer: int, head: int, row: int, values: Floats, top_k: int
) -> CircuitTokens:
    if not 1 <= top_k <= len(values):
        raise InputError(f"top_k = {top_k} must be from 1 to {len(values)}, the vocabulary")
    best, ids = largest(values, top_k)
    token, *tokens = token_texts(runner, np.array([row, *ids]))
    return CircuitTokens(
        str(runner.source), runner.precision, circuit, layer, head, token, ids, tuple(tokens), best
    )
