"""Attribution patching: a first-order estimate of patching, for every place at once.

One backward pass gives the metric's gradient at every place of the corrupt run. Its product with
the difference of the two runs estimates what `activation_patching` measures (Nanda 2023,
"Attribution Patching: Activation Patching At Industrial Scale"), and what `path_patching` measures
on each edge (Syed et al. 2023, arXiv 2310.10348). The estimate is good for many small effects, and
poor where the change is large, as in whole residual streams, or where a function saturates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np

from gpt2kit.errors import InputError
from gpt2kit.finite import require_finite
from gpt2kit.prompts import Prompt, Selection
from gpt2kit.readout import Floats
from gpt2kit.torch_engine.require import require_torch
from probes.causal.patching import Patching, make_patching
from probes.causal.path_ends import Patterns, Receiver, all_receivers, all_senders, select_names
from probes.causal.paths import Paths, make_paths
from probes.core.metrics import AnyMetric
from probes.core.places import Places, slices_of, swept_taps
from probes.core.prompt_pair import PromptPair
from probes.core.tensors import as_float64

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2kit.model import GPT2, Block, LayerNorm
    from gpt2kit.torch_engine.runner import TorchRunner


def attribution_patching(
    runner: TorchRunner,
    clean: Prompt,
    corrupt: Prompt,
    *,
    metric: AnyMetric,
    over: str = "z",
    heads: Selection = None,
    positions: Selection = None,
    keys: Selection = None,
) -> Patching:
    """The first-order estimate of `activation_patching`: the same places, the same result (torch
    only).

    values = corrupt + (clean - corrupt activation) . gradient of the metric at the corrupt run.
    A function given as metric is called with torch tensors. Raises InputError as
    `activation_patching` does, and for a metric without a gradient.
    """
    require_torch(runner, "attribution patching")
    taps = swept_taps(over, runner.config.n_layer)
    pair = PromptPair.of(runner, (clean, corrupt), metric, taps, corrupt_taps=taps)
    sizes = {"head": runner.config.n_head, "position": len(pair.clean.ids)}
    places = Places.of(taps[0], sizes, heads, positions, keys, each_position=True)
    gradients = _gradients(runner, pair, taps)
    values = np.zeros((len(taps), len(places.each)))
    for row, tap in zip(values, taps, strict=True):
        change = pair.clean.taps[tap][0].astype(np.float64) - pair.corrupt.taps[tap][0]
        product = change * gradients[tap]
        for i, place in enumerate(places.each):
            row[i] = product[slices_of(place, tap)].sum()
    values += pair.corrupt_value
    return make_patching(runner, pair, places, over, values, None, "attribution patching")


def edge_attribution_patching(
    runner: TorchRunner,
    clean: Prompt,
    corrupt: Prompt,
    *,
    metric: AnyMetric,
    senders: Patterns = "*",
    receivers: Patterns = "*",
) -> Paths:
    """The first-order estimate of `path_patching`, by default for every edge (torch only).

    score = (clean - corrupt write of the sender) . gradient of the metric with respect to the
    input of this receiver alone, layer norm included. Names: `probes.causal.path_ends`. NaN where
    the sender does not come before the receiver. Raises InputError as `path_patching` does.
    """
    require_torch(runner, "edge attribution patching")
    known = all_senders(runner.config.n_layer, runner.config.n_head)
    reading = all_receivers(runner.config.n_layer, runner.config.n_head)
    sending = [known[name] for name in select_names(senders, known, "sender")]
    receiving = [reading[name] for name in select_names(receivers, reading, "receiver")]
    if sending[0].order >= receiving[-1].order:
        raise InputError("no sender comes before a receiver, so there is no path between them")
    writes = list(dict.fromkeys(s.tap for s in sending))
    entries = [r.entry for r in receiving]
    pair = PromptPair.of(runner, (clean, corrupt), metric, writes, corrupt_taps=[*writes, *entries])
    changes = np.stack([s.write(pair.clean.taps) - s.write(pair.corrupt.taps) for s in sending])
    gradients = _gradients(runner, pair, [_gradient_tap(r) for r in receiving])
    scores = np.full((len(sending), len(receiving)), np.nan)
    for entry in dict.fromkeys(entries):
        columns = [i for i, r in enumerate(receiving) if r.entry == entry]
        here = [receiving[i] for i in columns]
        rows = [i for i, s in enumerate(sending) if s.order < here[0].order]
        at_input = _input_gradients(runner.model, here, gradients, pair.corrupt.taps[entry])
        require_finite(runner, at_input, f"a gradient at {entry}")
        scores[np.ix_(rows, columns)] = np.einsum("spd,rpd->sr", changes[rows], at_input)
    names = tuple(r.name for r in receiving)
    return make_paths(runner, pair, "edge attribution patching", sending, names, scores, None)


def _gradients(runner: TorchRunner, pair: PromptPair, taps: Iterable[str]) -> dict[str, Floats]:
    """Tap -> gradient of the metric at the corrupt run, without the batch axis."""
    import torch

    from gpt2kit.model import at_least_float32

    added: dict[str, Tensor] = {}

    def add_zero(tap: str, x: Tensor) -> Tensor:
        added[tap] = torch.zeros_like(x, requires_grad=True)
        return x + added[tap]  # the gradient of a summand is the gradient of the sum

    measure = pair.measure
    with torch.inference_mode(False), torch.enable_grad():
        ids = torch.as_tensor(pair.corrupt.ids, device=runner.device)[None]
        edits = {tap: partial(add_zero, tap) for tap in dict.fromkeys(taps)}
        logits = at_least_float32(runner.model(ids, edits=edits, last_only=True).logits[:, -1])
        value = measure.metric(logits, measure.ids, logits.new_tensor(measure.reference))
        if not getattr(value, "requires_grad", False):
            raise InputError(f"the {measure.metric.name} has no gradient; take a metric that has")
        found = torch.autograd.grad(value.sum(), list(added.values()))
    gradients = {tap: as_float64(g[0]) for tap, g in zip(added, found, strict=True)}
    for tap, gradient in gradients.items():  # the pair's own runs are finite
        require_finite(runner, gradient, f"a gradient at {tap}")
    return gradients


def _gradient_tap(receiver: Receiver) -> str:
    """The tap right after the layer norm and the weights that the receiver reads with."""
    if receiver.name == "logits":
        return "ln_f"
    return receiver.tap if receiver.head is not None else f"blocks.{receiver.layer}.mlp_pre"


def _input_gradients(
    model: GPT2, receivers: Sequence[Receiver], gradients: Mapping[str, Floats], stream: Floats
) -> Floats:
    """(receivers, pos, d_model) gradients with respect to each receiver's own input.

    gradients: at the `_gradient_tap` of each. stream: (1, pos, d_model) the input, which they all
    share.
    """
    import torch

    known = [torch.from_numpy(gradients[_gradient_tap(r)]).to(model.wte.weight) for r in receivers]
    with torch.inference_mode(False), torch.no_grad():
        normed = torch.stack(
            [_before_weights(model, r, g) for r, g in zip(receivers, known, strict=True)]
        )
    norm = _norm(model, receivers[0])
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.from_numpy(stream).to(normed).expand_as(normed).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(norm(x), x, normed)
    return as_float64(gradient)


def _before_weights(model: GPT2, receiver: Receiver, gradient: Tensor) -> Tensor:
    """(pos, d_model) gradient at the layer norm's output."""
    if receiver.name == "logits":
        return gradient
    block = cast("Block", model.h[receiver.layer])
    if receiver.head is None:
        return gradient @ block.mlp.c_fc.weight.T
    weight = block.attn.c_attn.weight.view(-1, 3, block.attn.n_head, block.attn.d_head)
    of_head: Tensor = weight[:, "qkv".index(receiver.tap[-1]), receiver.head]
    return gradient[:, receiver.head] @ of_head.T


def _norm(model: GPT2, receiver: Receiver) -> LayerNorm:
    """The layer norm that the receiver reads through."""
    if receiver.name == "logits":
        return model.ln_f
    block = cast("Block", model.h[receiver.layer])
    return block.ln_2 if receiver.head is None else block.ln_1
