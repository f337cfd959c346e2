"""Attribution patching: what patching would do, to first order, for every place at once.

One backward pass gives the metric's gradient at every place of the corrupt run; its product with
the difference of the two runs estimates what `activation_patching` measures (Nanda 2023,
"Attribution Patching: Activation Patching At Industrial Scale"), and what `path_patching` measures
on each edge (Syed et al. 2023, arXiv 2310.10348). Good for many small effects; poor where the
change is large, as in whole residual streams, or where something is saturated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np

from gpt2kit.errors import InputError
from gpt2kit.prompts import Prompt, Selection
from gpt2kit.readout import Floats
from gpt2kit.taps import axes_of
from gpt2kit.torch_engine.require import require_torch
from probes.causal.patching import Patching, Places, patching
from probes.causal.paths import (
    Paths,
    Patterns,
    Receiver,
    all_receivers,
    all_senders,
    named,
    paths,
)
from probes.core.metrics import AnyMetric
from probes.core.sweeps import Pair, swept_taps

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
    """The first-order estimate of `activation_patching`, with its places and result.

    values = corrupt + (clean - corrupt activation) . gradient of the metric at the corrupt run.
    A function as metric is called with torch tensors. Raises InputError as there, and for a metric
    without a gradient.
    """
    require_torch(runner, "attribution patching")
    taps = swept_taps(over, runner.config.n_layer)
    pair = Pair.of(runner, (clean, corrupt), metric, taps, corrupt_taps=taps)
    sizes = {"head": runner.config.n_head, "position": len(pair.clean.ids)}
    places = Places.of(taps[0], sizes, heads, positions, keys, each=True)
    gradients = _gradients(runner, pair, taps)
    axes = axes_of(taps[0])[1:]
    values = np.zeros((len(taps), len(places.cells)))
    for row, tap in zip(values, taps, strict=True):
        change = pair.clean.taps[tap][0].astype(np.float64) - pair.corrupt.taps[tap][0]
        product = change * gradients[tap]
        for i, cell in enumerate(places.cells):
            row[i] = product[tuple(cell.get(axis, slice(None)) for axis in axes)].sum()
    values += pair.corrupt_value
    return patching(runner, pair, places, over, values, None, "attribution patching")


def edge_attribution_patching(
    runner: TorchRunner,
    clean: Prompt,
    corrupt: Prompt,
    *,
    metric: AnyMetric,
    senders: Patterns = "*",
    receivers: Patterns = "*",
) -> Paths:
    """The first-order estimate of `path_patching`, by default for every edge of the model.

    score = (clean - corrupt write of the sender) . gradient of the metric with respect to what the
    receiver alone reads, layer norm included. Names are those of `probes.causal.paths`; NaN where
    a sender does not come before a receiver. Raises InputError as `path_patching` does.
    """
    require_torch(runner, "edge attribution patching")
    n_layer, n_head = runner.config.n_layer, runner.config.n_head
    known = {s.name: s for s in all_senders(n_layer, n_head)}
    reading = {r.name: r for r in all_receivers(n_layer, n_head)}
    sending = [known[name] for name in named(senders, known, "sender")]
    receiving = [reading[name] for name in named(receivers, reading, "receiver")]
    if sending[0].order >= receiving[-1].order:
        raise InputError("no sender comes before a receiver, so there is no path between them")
    writes = list(dict.fromkeys(s.tap for s in sending))
    entries = [r.entry for r in receiving]
    pair = Pair.of(runner, (clean, corrupt), metric, writes, corrupt_taps=[*writes, *entries])
    changes = np.stack([s.write(pair.clean.taps) - s.write(pair.corrupt.taps) for s in sending])
    gradients = _gradients(runner, pair, [_known(r) for r in receiving])
    scores = np.full((len(sending), len(receiving)), np.nan)
    for entry in dict.fromkeys(entries):
        columns = [i for i, r in enumerate(receiving) if r.entry == entry]
        here = [receiving[i] for i in columns]
        rows = [i for i, s in enumerate(sending) if s.order < here[0].order]
        read = _read(runner.model, here, gradients, pair.corrupt.taps[entry])
        scores[np.ix_(rows, columns)] = np.einsum("spd,rpd->sr", changes[rows], read)
    labels = tuple(r.name for r in receiving)
    return paths(runner, pair, "edge attribution patching", sending, labels, scores, None)


def _gradients(runner: TorchRunner, pair: Pair, taps: Iterable[str]) -> dict[str, Floats]:
    """Tap -> gradient of the metric at the corrupt run, without the batch axis."""
    import torch

    from gpt2kit.model import at_least_float32

    leaves: dict[str, Tensor] = {}

    def watch(tap: str, x: Tensor) -> Tensor:
        leaves[tap] = torch.zeros_like(x, requires_grad=True)
        return x + leaves[tap]  # the gradient of what is added is that of the sum

    measure = pair.measure
    with torch.inference_mode(False), torch.enable_grad():
        ids = torch.as_tensor(pair.corrupt.ids, device=runner.device)[None]
        edits = {tap: partial(watch, tap) for tap in dict.fromkeys(taps)}
        logits = at_least_float32(runner.model(ids, edits=edits, last_only=True).logits[:, -1])
        value = measure.metric(logits, measure.ids, logits.new_tensor(measure.reference))
        if not getattr(value, "requires_grad", False):
            raise InputError(f"the {measure.metric.name} has no gradient; take a metric that has")
        found = torch.autograd.grad(value.sum(), list(leaves.values()))
    return {tap: g[0].double().cpu().numpy() for tap, g in zip(leaves, found, strict=True)}


def _known(receiver: Receiver) -> str:
    """The tap right behind the layer norm, and the first weights, that a receiver reads with."""
    if receiver.name == "logits":
        return "ln_f"
    return receiver.tap if receiver.head is not None else f"blocks.{receiver.layer}.mlp_pre"


def _read(
    model: GPT2, receivers: Sequence[Receiver], gradients: Mapping[str, Floats], stream: Floats
) -> Floats:
    """(receivers, pos, d_model) gradients with respect to what each alone reads of a stream
    (1, pos, d_model), from those at `_known`. The receivers are at one place of the stream."""
    import torch

    known = [torch.from_numpy(gradients[_known(r)]).to(model.wte.weight) for r in receivers]
    with torch.inference_mode(False), torch.no_grad():
        normed = torch.stack([
            _before_weights(model, r, g) for r, g in zip(receivers, known, strict=True)
        ])  # fmt: skip
    norm = _norm(model, receivers[0])
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.from_numpy(stream).to(normed).expand_as(normed).clone().requires_grad_()
        (out,) = torch.autograd.grad(norm(x), x, normed)
    read: Floats = out.double().cpu().numpy()
    return read


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
    if receiver.name == "logits":
        return model.ln_f
    block = cast("Block", model.h[receiver.layer])
    return block.ln_2 if receiver.head is None else block.ln_1
