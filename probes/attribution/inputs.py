"""Input attribution: which tokens of the prompt a logit comes from, by gradients.

Gradient x input, and integrated gradients: Sundararajan et al. 2017, "Axiomatic Attribution for
Deep Networks", arXiv 1703.01365.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.checks import check_choice, check_integer
from gpt2kit.finite import finite_run, is_finite, require_finite
from gpt2kit.prompts import Prompt, Token, index, prompt_ids
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import Row
from gpt2kit.torch_engine.require import require_torch
from probes.attribution.header import AttributionHeader, explained_logit, explained_tokens
from probes.core.tensors import as_float64

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import Tensor

    from gpt2kit.torch_engine.runner import TorchRunner

METHODS = ("gradient_x_input", "integrated_gradients")
_BACKWARD_TOKENS = 1024  # tokens in one backward pass, whose memory grows with them


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class InputAttribution(AttributionHeader):
    """How much each token of the prompt adds to a logit, or to a difference of two logits.

    `completeness` is the sum of the values minus the change from the baseline,
    `total - baseline_total`. Integrated gradients bring it to 0 with enough `steps`. For gradient x
    input it measures how far from linear the model is, and need not be small.
    """

    method: str
    steps: int  # points on the way from the baseline; 1 for gradient_x_input
    baseline: str  # what stands for an absent token
    baseline_total: float  # the explained logit at the baseline
    completeness: float  # sum of values - (total - baseline_total)
    values: Floats  # (N,); 0 after `position`, since later tokens cannot change the logit

    def table(self) -> list[Row]:
        """One row for each token."""
        columns = zip(self.prompt_ids.tolist(), self.prompt_tokens, self.values, strict=True)
        return [
            {"position": i, "token_id": token_id, "token": token, "value": float(value)}
            for i, (token_id, token, value) in enumerate(columns)
        ]

    def render(self) -> RenderableType:
        """The tokens in order; of a long prompt, the strongest of them."""
        from probes.draw.attribution_tables import tokens_table

        change = f"{self.total - self.baseline_total:+.3f} from the baseline, {self.baseline}"
        about, seen = self.about(self.method.replace("_", " ")), self.values[: self.position + 1]
        return tokens_table(about, self.explained_where, self.prompt_tokens, seen, change)


def input_attribution(
    runner: TorchRunner,
    prompt: Prompt,
    *,
    target: Token,
    foil: Token | None = None,
    method: str = "integrated_gradients",
    steps: int = 32,
    position: int = -1,
    prepend_bos: bool = False,
) -> InputAttribution:
    """How much each token of the prompt adds to a logit, by gradients (torch only).

    method: "gradient_x_input", the gradient at the token embeddings times the embeddings, summed
        over d_model; or "integrated_gradients", the same with the mean of the gradient on the
        straight line from the baseline, where all token embeddings are 0. Position embeddings
        stay. `completeness` tells how exact the mean is.
    steps: number of points on that line (Gauss-Legendre quadrature); gradient_x_input ignores it.
    target, foil, position, prepend_bos, and errors: see `direct_logit_attribution`.
    """
    require_torch(runner, "input attribution")
    check_choice("method", method, METHODS)
    check_integer("steps", steps)
    ids = prompt_ids(runner, prompt, prepend_bos=prepend_bos)
    at = index(position, len(ids))
    tokens = explained_tokens(runner, target, foil)
    points, shares = np.ones(1), np.ones(1)
    if method == "integrated_gradients":
        points, shares = (x / 2 for x in np.polynomial.legendre.leggauss(steps))
        points = points + 0.5  # from (-1, 1) to (0, 1)
    seen = ids[: at + 1]
    ends, _ = _embedding_gradients(runner, seen, tokens, np.array([0.0, 1.0]))
    values = np.zeros(len(ids))
    most = max(1, _BACKWARD_TOKENS // len(seen))
    for start in range(0, len(points), most):
        part = slice(start, start + most)
        _, gradients = _embedding_gradients(runner, seen, tokens, points[part])
        values[: at + 1] += shares[part] @ gradients
    return InputAttribution(
        **explained_logit(runner, ids, at, target, foil, has_bos=prepend_bos),
        total=float(ends[1]),
        method=method,
        steps=len(points),
        baseline="zero token embeddings",
        baseline_total=float(ends[0]),
        completeness=float(values.sum() - (ends[1] - ends[0])),
        values=values,
    )


def _embedding_gradients(
    runner: TorchRunner, prompt: Ints, tokens: list[int], points: Floats
) -> tuple[Floats, Floats]:
    """Run with the token embeddings (pos, d_model) times each point.

    Returns the explained logit, (points,), and its gradient at the embeddings times the unscaled
    embeddings, summed over d_model: (points, pos).
    """
    import torch

    from gpt2kit.model import at_least_float32

    # Works where the caller has turned gradients off; the weights get none.
    with torch.inference_mode(False), torch.enable_grad():
        ids = torch.from_numpy(prompt).to(runner.device)
        weight = runner.model.wte.weight
        embed = at_least_float32(weight.detach()[ids])
        scales = torch.from_numpy(points).to(embed.device, embed.dtype)
        x = (scales[:, None, None] * embed).requires_grad_()

        def replace_embed(_: Tensor) -> Tensor:
            return x.to(weight.dtype)

        out = runner.model(
            ids.expand(len(points), -1), edits={"embed": replace_embed}, last_only=True
        )
        logits = at_least_float32(out.logits[:, -1, tokens])
        explained = logits[:, 0] - logits[:, 1:].sum(-1)
        (gradient,) = torch.autograd.grad(explained.sum(), x)
    found = as_float64(explained), as_float64((gradient * embed).sum(-1))
    if not all(map(is_finite, found)):
        finite_run(runner, prompt, last_only=True)  # says where the model overflows, if it does
        for values, what in zip(found, ("the logit", "the gradient"), strict=True):
            require_finite(runner, values, f"{what} between the baseline and the prompt")
    return found
