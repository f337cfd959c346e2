"""GPT-2, read top-down. Module names equal the keys of Hugging Face checkpoints.

Axes are named as in `gpt2kit.taps`. The value at every tap passes through `Hooks`, which edits it
and keeps it if the run names the tap. Without taps and edits, it is the plain computation.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; pre-norm blocks,
learned positions, one matrix for embedding and unembedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2kit.config import GPT2Config
from gpt2kit.linear import linear
from gpt2kit.taps import resolve, resolve_one

ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


class Output(NamedTuple):
    """What a forward pass returns.

    logits: (batch, pos, vocab), or (batch, 1, vocab) with last_only.
    taps:   canonical name -> value after any edit, axes as in `gpt2kit.taps`.
    """

    logits: Tensor
    taps: dict[str, Tensor]


# Attention step by step, so that its scores and pattern can be tapped and edited:
# q, k, v (batch, head, pos or key, d_head), mask -> z (batch, head, pos, d_head).
Look = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Cache:
    """Keys and values to attend to: in this class, only the keys and values of this run.

    Engines override `update` to add the keys and values of earlier runs.
    """

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add k and v (batch, head, pos, d_head); return all keys and values to attend to."""
        return k, v

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        look: Look | None,
    ) -> Tensor:
        """Attention: q, k, v (batch, pos, head, d_head) -> z, the same shape.

        look: computes attention step by step; None, if no scores or pattern are needed, for the
        fused kernel.
        """
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (batch, head, pos, d_head)
        k, v = self.update(layer, k, v)
        if look is not None:
            return look(q, k, v, mask).transpose(1, 2)
        causal = mask is None and q.shape[2] > 1
        z = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)
        return z.transpose(1, 2)


class Hooks:
    """The taps and edits of one forward pass."""

    def __init__(
        self, n_layer: int, taps: Iterable[str], edits: Mapping[str, Callable[[Tensor], Tensor]]
    ) -> None:
        self.wanted = frozenset(resolve(taps, n_layer))
        self.edits: dict[str, list[Callable[[Tensor], Tensor]]] = {}
        for name, edit in edits.items():  # two spellings of one tap are two edits of this tap
            self.edits.setdefault(resolve_one(name, n_layer), []).append(edit)
        self.values: dict[str, Tensor] = {}

    def needs(self, *names: str) -> bool:
        """Whether any of these taps is read or edited."""
        return any(name in self.wanted or name in self.edits for name in names)

    def __call__(self, name: str, x: Tensor, never: Tensor | None = None) -> Tensor:
        """Pass the value at a tap through: edit it, keep it, return it.

        never: True where the value must stay 0 whatever the edit, as in a causal pattern.
        """
        for edit in self.edits.get(name, ()):
            x = edit(x)
        if never is not None and name in self.edits:
            x = x.masked_fill(never, 0)
        if name in self.wanted:
            self.values[name] = x
        return x


class Conv1D(nn.Module):
    """A linear layer whose weight is (in, out), the layout of GPT-2's checkpoints."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))
        _initialise(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        return linear(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """A table (entries, d_model)."""

    def reset_parameters(self) -> None:
        """Draw new random weights."""
        _initialise(self.weight)


class LayerNorm(nn.LayerNorm):
    """Layer norm whose denominator, sqrt(variance + eps), is a tap."""

    def normalise(self, x: Tensor, hooks: Hooks, scale_tap: str) -> Tensor:
        """(batch, pos, d_model) -> the same shape."""
        if hooks.needs(scale_tap):
            centred = at_least_float32(x - x.mean(-1, keepdim=True))
            scale = (centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt().to(x.dtype)
            scale = hooks(scale_tap, scale)  # (batch, pos, 1)
            if scale_tap in hooks.edits:
                return (centred / scale).to(x.dtype) * self.weight + self.bias
        return super().forward(x)


class Attention(nn.Module):
    """Causal self-attention; the values of every head are taps."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.layer, self.name = layer, f"blocks.{layer}"
        self.n_head, self.d_head = config.n_head, config.d_head
        self.scale = config.attn_scale(layer)
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, hooks: Hooks, mask: Tensor | None, cache: Cache) -> Tensor:
        """x (batch, pos, d_model) -> attn_out, the same shape. mask: see `GPT2.forward`."""
        name, d_model = self.name, x.shape[-1]
        heads = (*x.shape[:-1], self.n_head, self.d_head)
        q, k, v = (
            hooks(f"{name}.{tap}", part.view(heads))  # (batch, pos, head, d_head)
            for tap, part in zip("qkv", self.c_attn(x).split(d_model, dim=-1), strict=True)
        )
        inside = hooks.needs(f"{name}.attn_scores", f"{name}.pattern")
        look = partial(self.explicit, hooks) if inside else None
        z = cache.attend(self.layer, q, k, v, mask, self.scale, look)
        z = hooks(f"{name}.z", z)  # (batch, pos, head, d_head)
        out = None
        if hooks.needs(f"{name}.head_out"):
            w = self.c_proj.weight.view(self.n_head, self.d_head, d_model)
            out = hooks(f"{name}.head_out", torch.einsum("bphe,hed->bphd", z, w))
        if out is None or f"{name}.head_out" not in hooks.edits:
            return hooks(f"{name}.attn_out", self.c_proj(z.reshape(x.shape)))
        return hooks(f"{name}.attn_out", out.sum(2) + self.c_proj.bias)

    def explicit(
        self, hooks: Hooks, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> Tensor:
        """A `Look`: attention step by step. Scores are tapped before the mask is applied.

        An edit of the pattern cannot make a query attend to later positions or to padding. In half
        precision, scores and softmax are float32, as in the fused kernels; so every checkpoint is
        computed as `reorder_and_upcast_attn` asks.
        """
        scores = at_least_float32(q) @ at_least_float32(k).transpose(-2, -1) * self.scale
        scores = hooks(f"{self.name}.attn_scores", scores)  # (batch, head, query, key)
        if mask is None and q.shape[2] > 1:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        never = None if mask is None else ~mask
        if never is not None:
            scores = scores.masked_fill(never, torch.finfo(scores.dtype).min)
        pattern = hooks(f"{self.name}.pattern", scores.softmax(-1).to(v.dtype), never)
        return pattern @ v


class MLP(nn.Module):
    """Two linear layers around an activation; its hidden units are the neurons."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.name = f"blocks.{layer}"
        self.c_fc = Conv1D(config.n_embd, config.d_mlp)
        self.c_proj = Conv1D(config.d_mlp, config.n_embd)
        self.act = ACTIVATION[config.activation_function]

    def forward(self, x: Tensor, hooks: Hooks) -> Tensor:
        """(batch, pos, d_model) -> mlp_out, the same shape."""
        pre = hooks(f"{self.name}.mlp_pre", self.c_fc(x))  # (batch, pos, d_mlp)
        post = hooks(f"{self.name}.mlp_post", self.act(pre))
        return hooks(f"{self.name}.mlp_out", self.c_proj(post))


class Block(nn.Module):
    """Attention and MLP, each reading a normalised residual stream and adding to it."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.name = f"blocks.{layer}"
        self.ln_1 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config, layer)

    def forward(self, x: Tensor, hooks: Hooks, mask: Tensor | None, cache: Cache) -> Tensor:
        """resid_pre (batch, pos, d_model) -> resid_post, the same shape."""
        normed = self.ln_1.normalise(x, hooks, f"{self.name}.ln_1_scale")
        x = hooks(f"{self.name}.resid_mid", x + self.attn(normed, hooks, mask, cache))
        normed = self.ln_2.normalise(x, hooks, f"{self.name}.ln_2_scale")
        return hooks(f"{self.name}.resid_post", x + self.mlp(normed, hooks))


class GPT2(nn.Module):
    """The whole model. Weights are raw: nothing is folded, centred or split."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        if not config.tie_word_embeddings:
            self.lm_head = Embedding(config.vocab_size, config.n_embd)

    @classmethod
    def from_weights(cls, config: GPT2Config, weights: Mapping[str, Tensor]) -> GPT2:
        """A model for inference that holds these tensors themselves, by checkpoint name.

        Raises RuntimeError if a weight is missing, unknown, or of another shape.
        """
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(weights, assign=True)
        return model.eval().requires_grad_(False)

    def forward(
        self,
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        taps: Iterable[str] = (),
        edits: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        last_only: bool = False,
    ) -> Output:
        """Token ids (batch, pos) -> logits and the values of `taps`.

        positions: (batch or 1, pos), counted from 0; by default 0, 1, 2, ….
        mask: bool, broadcastable to (batch, head, query, key), True where a query may attend. None
              is causal attention without a past, or a single query that attends to every key.
        edits: tap name -> function of the value at that tap.
        last_only: compute the logits of the last position alone.
        """
        hooks = Hooks(self.config.n_layer, taps, edits or {})
        x = self.hidden(ids, hooks, positions=positions, mask=mask, cache=cache)
        return Output(self.unembed(x[:, -1:] if last_only else x), hooks.values)

    def hidden(
        self,
        ids: Tensor,
        hooks: Hooks,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Token ids (batch, pos) -> ln_f (batch, pos, d_model), the unembedding's input."""
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        embed = hooks("embed", self.wte(ids))
        pos_embed = self.wpe(positions)
        if hooks.needs("pos_embed"):
            pos_embed = hooks("pos_embed", pos_embed.expand_as(embed))
        x = hooks("blocks.0.resid_pre", embed + pos_embed)
        return self.hidden_from(x, hooks, mask=mask, cache=cache)

    def hidden_from(
        self,
        x: Tensor,
        hooks: Hooks,
        *,
        layer: int = 0,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """The residual stream that enters `layer`, (batch, pos, d_model) -> ln_f, same shape."""
        for block in islice(self.h, layer, None):
            x = block(x, hooks, mask, cache or Cache())
        return hooks("ln_f", self.ln_f.normalise(x, hooks, "ln_f_scale"))

    def unembed(self, x: Tensor) -> Tensor:
        """ln_f (…, d_model) -> logits (…, vocab)."""
        return linear(x, self.unembedding.T)

    @property
    def unembedding(self) -> Tensor:
        """(vocab, d_model); the embedding itself if the two are tied."""
        return self.wte.weight if self.config.tie_word_embeddings else self.lm_head.weight


def _initialise(weight: Tensor) -> None:
    """Draw weights from GPT-2's normal(0, 0.02).

    Not on the meta device, which holds no numbers: torch would import its whole distributed package
    to draw there.
    """
    if not weight.is_meta:
        nn.init.normal_(weight, std=0.02)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
