"""Input attribution: which tokens of the prompt a logit comes from, by gradients.

Gradient x input, and integrated gradients: Sundararajan et al. 2017, "Axiomatic Attribution for
Deep Networks", arXiv 1703.01365.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.console import RenderableType

from gpt2kit.errors import InputError
from gpt2kit.prompts import Prompt, index, prompt_ids
from gpt2kit.readout import Floats
from gpt2kit.torch_engine.require import require_torch
from probes.attribution.attribution_view import tokens
from probes.attribution.direct import Asked, asked, double, target_ids

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2kit.torch_engine.runner import TorchRunner

METHODS = ("gradient_x_input", "integrated_gradients")
_TOGETHER = 1024  # tokens in one backward pass; its memory grows with them


@dataclass(frozen=True, kw_only=True, repr=False)
class InputAttribution(Asked):
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
        return tokens(self)


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

    require_torch(runner, "input attribution")
    if method not in METHODS:
        raise InputError(f"method = {method!r} is not one of {', '.join(METHODS)}")
    if steps < 1:
        raise InputError(f"steps = {steps} must be at least 1")
    ids = prompt_ids(runner, prompt, prepend_bos=prepend_bos)
    at = index(position, len(ids))
    chosen = target_ids(runner, target, foil)
    points, shares = np.ones(1), np.ones(1)
    if method == "integrated_gradients":
        points, shares = (x / 2 for x in np.polynomial.legendre.leggauss(steps))
        points = points + 0.5  # from (-1, 1) to (0, 1)
    seen = torch.from_numpy(ids[: at + 1]).to(runner.device)
    ends, _ = _gradients(runner, seen, chosen, np.array([0.0, 1.0]))
    values = np.zeros(len(ids))
    most = max(1, _TOGETHER // len(seen))
    for start in range(0, len(points), most):
        some = slice(start, start + most)
        _, slopes = _gradients(runner, seen, chosen, points[some])
        values[: at + 1] += shares[some] @ slopes
    return InputAttribution(
        **asked(runner, ids, at, prepend_bos, target, foil),
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
    return double(number), double((slope * embed).sum(-1))
