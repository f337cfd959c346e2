"""Direct logit attribution: which parts of the model a logit comes from.

The last layer norm and the unembedding are linear once the norm's scale is fixed, so that a logit
is a sum over everything that was added to the residual stream: Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits"; Wang et al. 2022, arXiv 2211.00593, for differences of two
logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import RenderableType

from gpt2kit.errors import GPT2KitError, InputError
from gpt2kit.prompts import Prompt, index, prompt_ids, tokenizer_of
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import Result
from gpt2kit.runner import Run, Runner
from gpt2kit.tokenizer import printable
from probes.attribution.attribution_view import parts

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = ("component", "head", "neuron")
# How far the parts may be from the logit that the final stream has in float64; beyond 100, a
# millionth of it, which is about what float32 knows of such a sum.
_EXACT, _BEYOND = 1e-4, 1e-6
# How far the model's own logit may be from that, relative to its size; in half precision, and where
# what is multiplied is rounded to 8 bits (a quantised file), the parts as well.
_TOLERANCE = {"float32": 1e-4, "float64": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
_TOLERANCE |= dict.fromkeys(("int8", "int4", "int4-all"), 1e-1)


@dataclass(frozen=True, kw_only=True, repr=False)
class Asked(Result):
    """What an attribution was asked about.

    The number explained is the logit of `target` as the token after `position`, or with a foil
    that logit minus the foil's.
    """

    source: str  # model, and revision if one was named
    dtype: str
    has_bos: bool  # whether <|endoftext|> was put before the prompt
    prompt_ids: Ints  # (N,)
    prompt_tokens: tuple[str, ...]  # (N,)
    position: int
    target: str
    foil: str | None
    total: float  # the model's own number

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source}, {self.explained}; print it for the table)"

    @property
    def explained(self) -> str:
        """The number explained, in words."""
        foil = "" if self.foil is None else f" minus logit of {printable(self.foil)!r}"
        return f"logit of {printable(self.target)!r}{foil} = {self.total:+.3f}"


@dataclass(frozen=True, kw_only=True, repr=False)
class DirectLogitAttribution(Asked):
    """A logit, or a difference of two, as a sum of parts.

    values: kind of part -> its values, with L layers, H heads, M neurons a layer:
        embed, pos_embed, ln_f_bias ()          always
        attn (L,), mlp (L,)                     by "component"; biases included
        head (L, H), attn_bias (L,), mlp (L,)   by "head"
        head, attn_bias, neuron (L, M), mlp_bias (L,)   by "neuron"
    """

    by: str
    values: dict[str, Floats]

    @property
    def parts(self) -> Floats:
        """(parts,) every value, kind after kind; their sum is `total`."""
        return np.concatenate([value.ravel() for value in self.values.values()])

    @property
    def names(self) -> tuple[str, ...]:
        """(parts,) "embed", "attn 3", "head 9.6", "mlp 11", "neuron 11.2047", …."""
        return tuple(
            " ".join([kind, ".".join(map(str, index))]).strip()
            for kind, value in self.values.items()
            for index in np.ndindex(value.shape)
        )

    def render(self) -> RenderableType:
        """The strongest parts for and against, then every layer's heads and MLP."""
        return parts(self)

    def by_layer(self) -> dict[str, Floats]:
        """Column -> (L,): heads or attention, their bias, and the MLP."""
        v = self.values
        mlp = v["neuron"].sum(1) + v["mlp_bias"] if self.by == "neuron" else v["mlp"]
        if self.by == "component":
            return {"attn": v["attn"], "mlp": mlp}
        heads = {f"h{i}": head for i, head in enumerate(v["head"].T)}
        return {**heads, "bias": v["attn_bias"], "mlp": mlp}


def direct_logit_attribution(
    runner: Runner,
    prompt: Prompt,
    *,
    target: str,
    foil: str | None = None,
    position: int = -1,
    by: str = "component",
    prepend_bos: bool = False,
) -> DirectLogitAttribution:
    """A logit as the sum of what each part of the model writes in the direction of its token.

    The scale of the last layer norm is that of this very run, held fixed; its mean subtraction,
    gain and bias are accounted for. A softmax does not see what all logits have in common, but
    the parts of a single logit hold it: give a foil, or a runner from `processed`.

    prompt: text, or token ids.
    target, foil: text of one token each, its leading space included.
    position: the target is the token after this one; negative ones count from the end.
    by: "component" (each attention and MLP), "head" (each head, and the attention's bias), or
        "neuron" (each MLP's neurons and bias as well).
    prepend_bos: put `<|endoftext|>` first; positions count it.
    Raises InputError for a target that is not one token, a position outside the prompt, or a foil
    that is the target, TapError for an exported file without the taps that this reads, and
    GPT2KitError should the parts not sum, within 1e-4 for float32, to the logit that the run's own
    final stream has in float64, or that not be the model's logit to the precision it has.
    """
    if by not in LEVELS:
        raise InputError(f"by = {by!r} is not one of {', '.join(LEVELS)}")
    ids = prompt_ids(runner, prompt, prepend_bos=prepend_bos)
    at = index(position, len(ids))
    tokens = target_ids(runner, target, foil)
    heads, neurons = by != "component", by == "neuron"
    taps = ["embed", "pos_embed", "ln_f_scale", "blocks.-1.resid_post"]
    taps += ["blocks.*.z" if heads else "blocks.*.attn_out"]
    taps += ["blocks.*.mlp_post" if neurons else "blocks.*.mlp_out"]
    run = runner.run(ids[: at + 1], taps=taps, last_only=True)  # nothing later has a part in it
    towards, bias = _towards(runner, tokens, float(run.taps["ln_f_scale"][0, -1, 0]))
    values = _decompose(runner, run, towards, by) | {"ln_f_bias": np.asarray(bias)}
    own = run.logits[0, -1, tokens].astype(np.float64)  # (target,) or (target, foil)
    total = float(own[0] - own[1:].sum())
    logit = float(run.taps["blocks.-1.resid_post"][0, -1] @ towards + bias)
    _check_sum(runner, sum(float(value.sum()) for value in values.values()), logit, total, own)
    return DirectLogitAttribution(
        **asked(runner, ids, at, prepend_bos, target, foil), total=total, by=by, values=values
    )


def _towards(runner: Runner, tokens: list[int], scale: float) -> tuple[Floats, float]:
    """(d_model,) what a residual vector is multiplied by for the logit, in float64, and ln_f's
    bias' own part in it."""
    unembedding = runner.weight("lm_head.weight")[tokens].astype(np.float64)  # (1 or 2, d_model)
    towards = unembedding[0] - unembedding[1:].sum(0)
    bias = float(runner.weight("ln_f.bias") @ towards)
    towards = towards * runner.weight("ln_f.weight")
    # (x - mean x) . w = x . (w - mean w)
    return (towards - towards.mean()) / scale, bias


def _check_sum(runner: Runner, parts: float, logit: float, total: float, own: Floats) -> None:
    """parts: their sum. logit: in float64. total: the model's own; own: the logits it is made of.

    Raises GPT2KitError unless all three are one number.
    """
    largest = float(np.abs(own).max())
    kind = runner.precision
    coarse = kind not in ("float32", "float64")
    allowed = _TOLERANCE[kind] * max(1.0, largest)
    for what, apart, limit in (
        ("the parts sum to", parts - logit, allowed if coarse else max(_EXACT, _BEYOND * largest)),
        ("the final stream's logit is", logit - total, allowed),
    ):
        if not abs(apart) <= limit:
            raise GPT2KitError(
                f"{what} {abs(apart):.2e} from the model's logit, more than {limit:.0e}; this is a "
                "bug in gpt2kit, please report it"
            )


def _decompose(runner: Runner, run: Run, towards: Floats, by: str) -> dict[str, Floats]:
    """The `values` of a DirectLogitAttribution, but for ln_f's, at the last position of a run."""
    taps, layers = run.taps, range(runner.config.n_layer)

    def written(*names: str) -> Floats:
        return np.asarray(np.stack([taps[name][0, -1] for name in names]) @ towards)

    def through(module: str, kind: str) -> Floats:
        """(L, …) how far a weight or bias of a module goes towards the token."""
        return np.stack([runner.weight(f"h.{i}.{module}.{kind}") @ towards for i in layers])

    def split(tap: str, module: str) -> Floats:
        """(L, …) hidden units, each times how far its own row of the module goes."""
        hidden = np.stack([taps[f"blocks.{i}.{tap}"][0, -1] for i in layers])
        return np.asarray(hidden * through(module, "weight").reshape(hidden.shape))

    embed, pos_embed = written("embed", "pos_embed")
    values = {"embed": np.asarray(embed), "pos_embed": np.asarray(pos_embed)}
    if by == "component":
        values["attn"] = written(*(f"blocks.{i}.attn_out" for i in layers))
    else:
        values["head"] = split("z", "attn.c_proj").sum(-1)
        values["attn_bias"] = through("attn.c_proj", "bias")
    if by == "neuron":
        values["neuron"] = split("mlp_post", "mlp.c_proj")
        values["mlp_bias"] = through("mlp.c_proj", "bias")
    else:
        values["mlp"] = written(*(f"blocks.{i}.mlp_out" for i in layers))
    return values


def target_ids(runner: Runner, target: str, foil: str | None) -> list[int]:
    """Ids of the target, and of the foil if there is one."""
    tokenizer = tokenizer_of(runner)
    if foil == target:
        raise InputError(
            f"target and foil are both {target!r}, whose difference is always 0; name two tokens"
        )
    return [tokenizer.single(text) for text in (target, foil) if text is not None]


def asked(
    runner: Runner, ids: Ints, at: int, has_bos: bool, target: str, foil: str | None
) -> dict[str, Any]:
    """The fields of Asked, but for `total`."""
    return {
        "source": str(runner.source),
        "dtype": runner.precision,
        "has_bos": has_bos,
        "prompt_ids": ids,
        "prompt_tokens": tuple(tokenizer_of(runner).tokens(ids.tolist())),
        "position": at,
        "target": target,
        "foil": foil,
    }


def double(x: Tensor) -> Floats:
    """Numbers in float64, off the device."""
    array: Floats = x.detach().cpu().double().numpy()
    return array
