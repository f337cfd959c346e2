"""Attribution: which parts of the model, and which tokens of the prompt, a logit comes from.

The last layer norm and the unembedding are linear once the norm's scale is fixed, so that a logit
is a sum over everything that was added to the residual stream: Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits"; Wang et al. 2022, arXiv 2211.00593, for differences of two
logits. Attribution to tokens needs gradients and torch: Sundararajan et al. 2017, "Axiomatic
Attribution for Deep Networks", arXiv 1703.01365.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.color import Color
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from gpt2kit.errors import GPT2KitError, InputError
from gpt2kit.readout import Floats, Ints
from gpt2kit.tokenizer import printable
from probes.prompts import Prompt, index, prompt_ids, tokenizer_of
from probes.result import Result

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2kit.taps import TapDict
    from gpt2kit.torch_runner import TorchRunner

LEVELS = ("component", "head", "neuron")
METHODS = ("gradient_x_input", "integrated_gradients")
STRONGEST, MOST_TOKENS = 10, 40  # lines of a printed table
_TOGETHER = 1024  # tokens in one backward pass; its memory grows with them
# How far the parts may be from the model's logit, relative to its size: the same sum in another
# order, and in half precision the rounding of every sum on the way.
_TOLERANCE = {"float16": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True, kw_only=True, repr=False)
class _Asked(Result):
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
        return f"{type(self).__name__}({self.source}, {self._what()}; print it for the table)"

    def _what(self) -> str:
        foil = "" if self.foil is None else f" minus logit of {printable(self.foil)!r}"
        return f"logit of {printable(self.target)!r}{foil} = {self.total:+.3f}"

    def _header(self, title: str) -> list[RenderableType]:
        bos = "<|endoftext|> added in front" if self.has_bos else "no BOS added"
        about = f"  {self.source}  {self.dtype}  {len(self.prompt_ids)} tokens, {bos}"
        token = printable(self.prompt_tokens[self.position])
        where = f" after {token!r} (position {self.position})"
        return [Text.assemble((title, "bold"), about), Text(self._what() + where)]


@dataclass(frozen=True, kw_only=True, repr=False)
class DirectLogitAttribution(_Asked):
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
        parts = self.parts
        ranked = sorted(zip(parts.tolist(), self.names, strict=True))
        table = Table(box=None, pad_edge=False)
        for column in ("for", "", "against", ""):
            table.add_column(column, justify="left" if column else "right", no_wrap=True)
        for most, least in zip(ranked[: -STRONGEST - 1 : -1], ranked[:STRONGEST], strict=True):
            if most[0] > 0 or least[0] < 0:
                table.add_row(*_cells(most, most[0] > 0), *_cells(least, least[0] < 0))
        count = f"the strongest of {len(parts)} parts, which sum to {parts.sum():+.3f}"
        return Group(
            *self._header("direct logit attribution"), "", table, Text(count, "dim"), "",
            _Grid(self._by_layer()),
        )  # fmt: skip

    def _by_layer(self) -> dict[str, Floats]:
        """Column -> (L,): heads or attention, their bias, and the MLP."""
        v = self.values
        mlp = v["neuron"].sum(1) + v["mlp_bias"] if self.by == "neuron" else v["mlp"]
        if self.by == "component":
            return {"attn": v["attn"], "mlp": mlp}
        heads = {f"h{i}": head for i, head in enumerate(v["head"].T)}
        return {**heads, "bias": v["attn_bias"], "mlp": mlp}


@dataclass(frozen=True, kw_only=True, repr=False)
class InputAttribution(_Asked):
    """What each token of the prompt adds to a logit, or to a difference of two.

    `completeness` is how far integrated gradients are from summing to the change from the
    baseline, `total - baseline_total`: small, if `steps` are enough. For gradient x input it is
    how far from linear the model is, and need not be small.
    """

    method: str
    steps: int  # points on the way from the baseline; 1 for gradient_x_input
    baseline: str  # what an absent token is
    baseline_total: float  # the model's number there
    completeness: float  # sum of values - (total - baseline_total)
    values: Floats  # (N,); 0 after `position`, which nothing later can change

    def render(self) -> RenderableType:
        """The tokens in order; of a long prompt, the strongest of them."""
        seen = self.values[: self.position + 1]
        shown = np.sort(np.argsort(-np.abs(seen), kind="stable")[:MOST_TOKENS])
        most = max(float(np.abs(seen).max()), 1e-30)
        table = Table(box=None, pad_edge=False)
        table.add_column("pos", justify="right")
        table.add_column("token", overflow="ellipsis", no_wrap=True)
        table.add_column("value", justify="right")
        table.add_column("", no_wrap=True)
        for i in shown:
            bar = Text("█" * round(24 * abs(seen[i]) / most), Style(color=_colour(seen[i], most)))
            token = Text(repr(printable(self.prompt_tokens[i])))
            table.add_row(str(i), token, f"{seen[i]:+.3f}", bar)
        hidden = len(seen) - len(shown)
        note = f"; the {hidden} weakest tokens are not shown" if hidden else ""
        change = f"{self.total - self.baseline_total:+.3f} from the baseline, {self.baseline}"
        title = self.method.replace("_", " ")
        total = Text(f"sum {seen.sum():+.3f}; change {change}{note}")
        return Group(*self._header(title), total, "", table)


def direct_logit_attribution(
    runner: TorchRunner,
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
    that is the target, and GPT2KitError should the parts not sum to the model's logit.
    """
    if by not in LEVELS:
        raise InputError(f"by = {by!r} is not one of {', '.join(LEVELS)}")
    ids = prompt_ids(runner, prompt, prepend_bos=prepend_bos)
    at = index(position, len(ids))
    tokens = _tokens(runner, target, foil)
    heads, neurons = by != "component", by == "neuron"
    taps = ["embed", "pos_embed", "ln_f_scale"]
    taps += ["blocks.*.z" if heads else "blocks.*.attn_out"]
    taps += ["blocks.*.mlp_post" if neurons else "blocks.*.mlp_out"]
    run = runner.run(ids[: at + 1], taps=taps, last_only=True)  # nothing later has a part in it
    own = run.logits[0, -1, tokens].astype(np.float64)  # (target,) or (target, foil)
    values = _decompose(runner, run.taps, tokens, by)
    total = float(own[0] - own[1:].sum())
    allowed = _TOLERANCE.get(runner.dtype, 1e-4) * max(1.0, float(np.abs(own).max()))
    apart = abs(sum(float(value.sum()) for value in values.values()) - total)
    if not apart <= allowed:
        raise GPT2KitError(
            f"the parts sum to {apart:.2e} from the model's logit; this is a bug in gpt2kit, "
            "please report it"
        )
    return DirectLogitAttribution(
        **_asked(runner, ids, at, prepend_bos, target, foil), total=total, by=by, values=values
    )


def _decompose(
    runner: TorchRunner, taps: TapDict[Floats], tokens: list[int], by: str
) -> dict[str, Floats]:
    """The `values` of a DirectLogitAttribution, at the last position of a run."""
    weights, layers = runner.model.state_dict(), range(runner.config.n_layer)
    unembedding = _double(runner.model.unembedding[tokens])  # (1 or 2, d_model)
    towards = unembedding[0] - unembedding[1:].sum(0)
    ln_f_bias = _double(weights["ln_f.bias"]) @ towards
    towards = towards * _double(weights["ln_f.weight"])
    # (x - mean x) . w = x . (w - mean w)
    towards = (towards - towards.mean()) / float(taps["ln_f_scale"][0, -1, 0])

    def written(*names: str) -> Floats:
        return np.asarray(np.stack([taps[name][0, -1] for name in names]) @ towards)

    def through(module: str, kind: str) -> Floats:
        """(L, …) how far a weight or bias of a module goes towards the token."""
        return np.stack([_double(weights[f"h.{i}.{module}.{kind}"]) @ towards for i in layers])

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
    return values | {"ln_f_bias": np.asarray(ln_f_bias)}


def input_attribution(
    runner: TorchRunner,
    prompt: Prompt,
    *,
    target: str,
    foil: str | None = None,
    method: str = "integrated_gradients",
    steps: int = 32,
    position: int = -1,
    prepend_bos: bool = False,
) -> InputAttribution:
    """How much of a logit each token of the prompt accounts for, by gradients (torch only).

    method: "gradient_x_input", the gradient at the token embeddings times these, summed over
        d_model; or "integrated_gradients", the same with the mean of the gradient on the straight
        way from the baseline, which is that all token embeddings are zero. Position embeddings
        stay. `completeness` says how exact the mean is.
    steps: points at which that mean takes gradients (Gauss-Legendre); of no use to the other.
    target, foil, position, prepend_bos, and errors: see `direct_logit_attribution`.
    """
    import torch

    if method not in METHODS:
        raise InputError(f"method = {method!r} is not one of {', '.join(METHODS)}")
    if steps < 1:
        raise InputError(f"steps = {steps} must be at least 1")
    ids = prompt_ids(runner, prompt, prepend_bos=prepend_bos)
    at = index(position, len(ids))
    tokens = _tokens(runner, target, foil)
    points, shares = np.ones(1), np.ones(1)
    if method == "integrated_gradients":
        points, shares = (x / 2 for x in np.polynomial.legendre.leggauss(steps))
        points = points + 0.5  # from (-1, 1) to (0, 1)
    seen = torch.from_numpy(ids[: at + 1]).to(runner.device)
    ends, _ = _gradients(runner, seen, tokens, np.array([0.0, 1.0]))
    values = np.zeros(len(ids))
    most = max(1, _TOGETHER // len(seen))
    for start in range(0, len(points), most):
        some = slice(start, start + most)
        _, slopes = _gradients(runner, seen, tokens, points[some])
        values[: at + 1] += shares[some] @ slopes
    return InputAttribution(
        **_asked(runner, ids, at, prepend_bos, target, foil),
        total=float(ends[1]),
        method=method,
        steps=len(points),
        baseline="zero token embeddings",
        baseline_total=float(ends[0]),
        completeness=float(values.sum() - (ends[1] - ends[0])),
        values=values,
    )


def _gradients(
    runner: TorchRunner, ids: Tensor, tokens: list[int], points: Floats
) -> tuple[Floats, Floats]:
    """With token embeddings (pos, d_model) times each point: the number explained (points,), and
    its gradient there times the embeddings, (points, pos)."""
    import torch

    from gpt2kit.model import at_least_float32

    # Also where the caller has gradients off; those of the weights are never asked for.
    with torch.inference_mode(False), torch.enable_grad():
        weight = runner.model.wte.weight
        embed = at_least_float32(weight.detach()[ids])
        scales = torch.from_numpy(points).to(embed.device, embed.dtype)
        x = (scales[:, None, None] * embed).requires_grad_()
        out = runner.model(
            ids.expand(len(points), -1),
            edits={"embed": lambda _: x.to(weight.dtype)},
            last_only=True,
        )
        logits = at_least_float32(out.logits[:, -1, tokens])
        number = logits[:, 0] - logits[:, 1:].sum(-1)
        (slope,) = torch.autograd.grad(number.sum(), x)
    return _double(number), _double((slope * embed).sum(-1))


def _tokens(runner: TorchRunner, target: str, foil: str | None) -> list[int]:
    """Ids of the target, and of the foil if there is one."""
    tokenizer = tokenizer_of(runner)
    if foil == target:
        raise InputError(
            f"target and foil are both {target!r}, whose difference is always 0; name two tokens"
        )
    return [tokenizer.single(text) for text in (target, foil) if text is not None]


def _asked(
    runner: TorchRunner, ids: Ints, at: int, has_bos: bool, target: str, foil: str | None
) -> dict[str, Any]:
    """The fields of _Asked, but for `total`."""
    return {
        "source": str(runner.source),
        "dtype": runner.dtype,
        "has_bos": has_bos,
        "prompt_ids": ids,
        "prompt_tokens": tuple(tokenizer_of(runner).tokens(ids.tolist())),
        "position": at,
        "target": target,
        "foil": foil,
    }


def _double(x: Tensor) -> Floats:
    array: Floats = x.detach().cpu().double().numpy()
    return array


def _cells(part: tuple[float, str], shown: bool) -> tuple[str, str]:
    return (part[1], f"{part[0]:+.3f}") if shown else ("", "")


@dataclass(frozen=True)
class _Grid:
    """A number for every layer (L,) of every column, in blocks that fit the terminal."""

    columns: dict[str, Floats]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        label, width = 6, 7
        most = max(float(np.abs(list(self.columns.values())).max()), 1e-30)
        names = list(self.columns)
        fit = max(1, (options.max_width - label) // width)
        for start in range(0, len(names), fit):
            block = names[start : start + fit]
            heads = "".join(f"{name:>{width}}" for name in block)
            yield Text(f"{'layer':<{label}}{heads}", "dim", no_wrap=True)
            for layer in reversed(range(len(self.columns[names[0]]))):
                line = Text(f"{layer:<{label}}", no_wrap=True)
                for value in (float(self.columns[name][layer]) for name in block):
                    number = f"{value:+.2f}" if abs(value) < 1000 else f"{value:+.0f}"
                    line.append(f"{number:>{width}}", Style(color=_colour(value, most)))
                yield line


def _colour(value: float, most: float) -> Color:
    """Grey at 0, orange for, blue against."""
    share = min(abs(value) / most, 1.0) ** 0.5
    end = (240, 110, 60) if value > 0 else (90, 140, 250)
    return Color.from_rgb(*(120 + (to - 120) * share for to in end))
