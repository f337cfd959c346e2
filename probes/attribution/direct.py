"""Direct logit attribution: which parts of the model a logit comes from.

The last layer norm and the unembedding are linear once the norm's scale is fixed, so a logit is a
sum over everything that was added to the residual stream: Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits"; for differences of two logits, Wang et al. 2022, arXiv
2211.00593.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.checks import check_choice
from gpt2kit.errors import InternalError
from gpt2kit.finite import finite_run
from gpt2kit.prompts import Prompt, Token, index, prompt_ids
from gpt2kit.readout import Floats
from gpt2kit.result import Row
from gpt2kit.runner import Run, Runner
from probes.attribution.header import AttributionHeader, explained_logit, explained_tokens
from probes.core.tolerances import SUM_ABSOLUTE, SUM_RELATIVE, is_coarse, logit_tolerance

if TYPE_CHECKING:
    from rich.console import RenderableType

LEVELS = ("component", "head", "neuron")


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class DirectLogitAttribution(AttributionHeader):
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
            " ".join([kind, ".".join(map(str, place))]).strip()
            for kind, value in self.values.items()
            for place in np.ndindex(value.shape)
        )

    def table(self) -> list[Row]:
        """One row for each part; layer and index (head or neuron) are None where it has none."""
        return [
            {
                "part": kind,
                "layer": place[0] if place else None,
                "index": place[1] if len(place) > 1 else None,
                "value": float(value[place]),
            }
            for kind, value in self.values.items()
            for place in np.ndindex(value.shape)
        ]

    def render(self) -> RenderableType:
        """The strongest parts for and against, then a grid of every layer's heads and MLP."""
        from probes.draw.attribution_tables import parts_table

        about = self.about("direct logit attribution")
        return parts_table(about, self.explained_where, self.names, self.parts, self.by_layer())

    def by_layer(self) -> dict[str, Floats]:
        """Column -> (L,): attention or its heads and bias, and the MLP."""
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
    target: Token,
    foil: Token | None = None,
    position: int = -1,
    by: str = "component",
    prepend_bos: bool = False,
) -> DirectLogitAttribution:
    """A logit as the sum of the contributions of all parts of the model.

    The scale of the last layer norm is held fixed at its value in this run; the norm's mean
    subtraction, gain and bias are accounted for. The parts of a single logit include what all
    logits have in common, which a softmax ignores: to leave that out, give a foil, or a runner
    from `processed`.

    prompt: text, or token ids.
    target, foil: a text that is one token, its leading space included, or a token id.
    position: the target is the token after this one; negative ones count from the end.
    by: "component" (each attention and MLP), "head" (each head, and the attention's bias), or
        "neuron" (each MLP's neurons and bias as well).
    prepend_bos: put `<|endoftext|>` first; positions count it.
    Raises InputError for a target that is not one token, a position outside the prompt, or a foil
    equal to the target; TapError for an exported file that lacks a tap that this reads; and
    InternalError if the parts do not sum to the model's logit (within 1e-4 for float32).
    """
    check_choice("by", by, LEVELS)
    ids = prompt_ids(runner, prompt, prepend_bos=prepend_bos)
    at = index(position, len(ids))
    tokens = explained_tokens(runner, target, foil)
    taps = ["embed", "pos_embed", "ln_f_scale", "blocks.-1.resid_post"]
    taps += ["blocks.*.attn_out" if by == "component" else "blocks.*.z"]
    taps += ["blocks.*.mlp_post" if by == "neuron" else "blocks.*.mlp_out"]
    # later tokens change nothing here
    run = finite_run(runner, ids[: at + 1], taps=taps, last_only=True)
    direction, bias = _logit_direction(runner, tokens, float(run.taps["ln_f_scale"][0, -1, 0]))
    values = _decompose(runner, run, direction, by) | {"ln_f_bias": np.asarray(bias)}
    own = run.logits[0, -1, tokens].astype(np.float64)  # (target,) or (target, foil)
    total = float(own[0] - own[1:].sum())
    logit = float(run.taps["blocks.-1.resid_post"][0, -1] @ direction + bias)
    _check_sum(runner, sum(float(value.sum()) for value in values.values()), logit, total, own)
    header = explained_logit(runner, ids, at, target, foil, has_bos=prepend_bos)
    return DirectLogitAttribution(**header, total=total, by=by, values=values)


def _logit_direction(runner: Runner, tokens: list[int], scale: float) -> tuple[Floats, float]:
    """(d_model,) direction whose dot product with a residual vector is the logit, without the part
    of ln_f's bias; and that part. float64."""
    unembedding = runner.weight("lm_head.weight")[tokens].astype(np.float64)  # (1 or 2, d_model)
    direction = unembedding[0] - unembedding[1:].sum(0)
    bias = float(runner.weight("ln_f.bias") @ direction)
    direction = direction * runner.weight("ln_f.weight")
    # (x - mean x) . w = x . (w - mean w)
    return (direction - direction.mean()) / scale, bias


def _check_sum(runner: Runner, parts: float, logit: float, total: float, own: Floats) -> None:
    """Raise InternalError unless three computations of the explained logit agree.

    parts: the sum of the parts. logit: from the final stream, in float64. total: the model's own.
    own: the model's logits that `total` is the difference of.
    """
    largest = float(np.abs(own).max())
    allowed = logit_tolerance(runner.precision) * max(1.0, largest)
    exact = max(SUM_ABSOLUTE, SUM_RELATIVE * largest)
    for what, gap, limit in (
        ("the parts sum to", parts - logit, allowed if is_coarse(runner.precision) else exact),
        ("the final stream's logit is", logit - total, allowed),
    ):
        if not abs(gap) <= limit:
            raise InternalError(
                f"{what} {abs(gap):.2e} from the model's logit, more than {limit:.0e}"
            )


def _decompose(runner: Runner, run: Run, direction: Floats, by: str) -> dict[str, Floats]:
    """The `values` of a DirectLogitAttribution but ln_f's bias, at the last position of a run."""
    taps, layers = run.taps, range(runner.config.n_layer)

    def written(*names: str) -> Floats:
        """(names,) what the value of each tap adds to the logit."""
        return np.asarray(np.stack([taps[name][0, -1] for name in names]) @ direction)

    def weight_parts(module: str, kind: str) -> Floats:
        """(L, …) what each row of a module's weight, or its bias, adds to the logit."""
        return np.stack([runner.weight(f"h.{i}.{module}.{kind}") @ direction for i in layers])

    def split(tap: str, module: str) -> Floats:
        """(L, …) what each hidden unit adds to the logit through its own row of the weight."""
        hidden = np.stack([taps[f"blocks.{i}.{tap}"][0, -1] for i in layers])
        return np.asarray(hidden * weight_parts(module, "weight").reshape(hidden.shape))

    embed, pos_embed = written("embed", "pos_embed")
    values = {"embed": np.asarray(embed), "pos_embed": np.asarray(pos_embed)}
    if by == "component":
        values["attn"] = written(*(f"blocks.{i}.attn_out" for i in layers))
    else:
        values["head"] = split("z", "attn.c_proj").sum(-1)
        values["attn_bias"] = weight_parts("attn.c_proj", "bias")
    if by == "neuron":
        values["neuron"] = split("mlp_post", "mlp.c_proj")
        values["mlp_bias"] = weight_parts("mlp.c_proj", "bias")
    else:
        values["mlp"] = written(*(f"blocks.{i}.mlp_out" for i in layers))
    return values
