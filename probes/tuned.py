"""Tuned lens: the logit lens with an affine map before it, learnt for each layer.

Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens", arXiv
2303.08112. The stream h is read as h + A h + b; A and b of each layer are trained until the
reading says, as nearly as it can, what the model's last layer says: least KL(final || reading).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike

from gpt2kit.errors import CheckpointError, InputError
from gpt2kit.readout import Floats, Ints, Readout
from gpt2kit.runner import Runner
from probes.lens import LogitLens, logit_lens
from probes.prompts import Prompt, Where, counted, row_of_ids

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2kit.model import GPT2
    from gpt2kit.torch_runner import TorchRunner

_FORMAT = "gpt2kit tuned lens"
_DIGESTS: WeakKeyDictionary[GPT2, str] = WeakKeyDictionary()  # half a gigabyte is slow to hash


@dataclass(frozen=True, eq=False)
class TunedLens:
    """A translator h + A h + b for the embedding and the stream after each layer but the last."""

    source: str  # the model it was trained on
    sha256: str | None  # of that model's weights; None: a published lens, which does not say
    weight: Floats  # (layer, d_model, d_model) A; row i makes entry i
    bias: Floats  # (layer, d_model) b

    @classmethod
    def identity(cls, runner: Runner) -> TunedLens:
        """A and b of zeros: the logit lens itself."""
        layers, width = runner.config.n_layer, runner.config.n_embd
        zeros = np.zeros((layers, width, width), np.float32), np.zeros((layers, width), np.float32)
        return cls(str(runner.source), weights_digest(runner), *zeros)

    def translate(self, resid: Floats) -> Floats:
        """Streams (layer + 1, pos, d_model), the embedding first, as the lens reads them; the last
        stays what it is."""
        if resid.ndim != 3 or (len(resid) - 1, resid.shape[-1]) != self.bias.shape:
            raise InputError(f"streams of shape {resid.shape} do not fit {self!r}")
        moved = resid[:-1] + resid[:-1] @ self.weight.transpose(0, 2, 1) + self.bias[:, None]
        return np.concatenate([moved.astype(resid.dtype), resid[-1:]])

    def check(self, runner: Runner) -> None:
        """Raise InputError unless this is a lens of the runner's model, in the same dtype."""
        c = runner.config
        if self.bias.shape != (c.n_layer, c.n_embd):
            raise InputError(
                f"{self!r} does not fit {runner.source}, which has {c.n_layer} layers of width "
                f"{c.n_embd}"
            )
        if self.sha256 is not None and weights_digest(runner) != self.sha256:
            raise InputError(
                f"{self!r} was trained on other weights than those of {runner.source} in "
                f"{runner.dtype}; train one with train_tuned_lens"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, with the digest of the model's weights."""
        from safetensors.numpy import save_file

        tensors = {"weight": self.weight, "bias": self.bias}
        metadata = {"format": _FORMAT, "source": self.source, "weights_sha256": self.sha256 or ""}
        save_file({k: np.ascontiguousarray(x) for k, x in tensors.items()}, path, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TunedLens:
        """Read what `save` wrote, or a folder with the config.json and params.pt in which the
        authors of the paper publish theirs. Raises CheckpointError."""
        path = Path(path)
        if path.is_dir():
            return _read_published(path)
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                weight, bias = (file.get_tensor(name) for name in ("weight", "bias"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a tuned lens that can be read ({error})") from error
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(f"{path}: not a tuned lens that gpt2kit saved")
        return cls(metadata["source"], metadata["weights_sha256"] or None, weight, bias)

    def __repr__(self) -> str:
        layers, width = self.bias.shape
        return f"TunedLens({self.source}, {layers} layers, d_model {width})"


def tuned_lens(
    runner: Runner,
    prompt: Prompt,
    lens: TunedLens,
    *,
    top_k: int = 5,
    targets: str | Sequence[str] = (),
    positions: Where = None,
    prepend_bos: bool = False,
) -> LogitLens:
    """What `logit_lens` gives, read through the lens' translators; runs on every engine.

    Options: see `logit_lens`. Raises InputError if the lens was trained on another model. (Weights
    changed in place after the first reading are not noticed.)
    """
    lens.check(runner)
    read = logit_lens(
        _Translated(runner, lens), prompt,
        top_k=top_k, targets=targets, positions=positions, prepend_bos=prepend_bos,
    )  # fmt: skip
    return replace(read, kind="tuned lens")


class _Translated:
    """A runner whose readout is given the streams of `logit_lens` and translates them first."""

    def __init__(self, runner: Runner, lens: TunedLens) -> None:
        self.runner, self.lens = runner, lens
        self.config, self.tokenizer = runner.config, runner.tokenizer
        self.source = runner.source
        self.run, self.unembed, self.new_cache = runner.run, runner.unembed, runner.new_cache

    @property
    def dtype(self) -> str:
        return self.runner.dtype

    def readout(
        self,
        resid: Floats,
        *,
        top_k: int = 5,
        targets: ArrayLike | None = None,
        reference: Floats | None = None,
    ) -> Readout:
        moved = self.lens.translate(resid)
        return self.runner.readout(moved, top_k=top_k, targets=targets, reference=reference)


def train_tuned_lens(
    runner: TorchRunner,
    text_or_ids: Prompt,
    *,
    steps: int = 250,
    batch: int = 4,
    length: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    on_progress: Callable[[int, Floats], None] | None = None,
) -> TunedLens:
    """Train a lens on text, of any length: Adam, its rate falling to 0, from the identity.

    Each step reads `batch` pieces of `length` tokens from random places in the text.
    on_progress: called with the number of steps done and (layer,) the KL to the final layer in
                 nats, a mean over the step's tokens, as it was before the step.
    Raises InputError for a text shorter than one piece.
    """
    import torch
    from torch import nn

    ids = _pieces(runner, text_or_ids, steps=steps, batch=batch, length=length, lr=lr)
    model, config = runner.model, runner.config
    width, layers = config.n_embd, range(config.n_layer)
    weights = [nn.Parameter(torch.zeros(width, width, device=runner.device)) for _ in layers]
    biases = [nn.Parameter(torch.zeros(width, device=runner.device)) for _ in layers]
    optimizer = torch.optim.Adam([*weights, *biases], lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    rng = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        starts = rng.integers(0, len(ids) - length + 1, batch)
        streams, final = _streams(model, ids[starts[:, None] + np.arange(length)])
        losses = np.zeros(config.n_layer)
        for i, (h, weight, bias) in enumerate(zip(streams, weights, biases, strict=True)):
            with torch.enable_grad():
                loss = _kl(model, h + h @ weight.T + bias, final)
                loss.backward()  # type: ignore[no-untyped-call]  # frees this layer's logits
            losses[i] = loss.item()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if on_progress is not None:
            on_progress(step, losses)
    trained = [torch.stack([x.detach().cpu() for x in xs]).numpy() for xs in (weights, biases)]
    return TunedLens(str(runner.source), weights_digest(runner), *trained)


def _pieces(runner: TorchRunner, text_or_ids: Prompt, *, length: int, **counts: float) -> Ints:
    """The ids of a text, long enough for one piece."""
    for name, value in counts.items():
        if not value > 0:
            raise InputError(f"{name} = {value} must be above 0")
    if not 1 <= length <= runner.config.n_positions:
        raise InputError(f"length = {length} must be from 1 to {runner.config.n_positions}")
    if isinstance(text_or_ids, str):
        if runner.tokenizer is None:
            raise InputError(f"{runner.source} has no tokenizer; give token ids")
        text_or_ids = runner.tokenizer.encode(text_or_ids)
    ids = row_of_ids(text_or_ids)
    if len(ids) < length:
        raise InputError(
            f"the text has {counted(len(ids), 'token')}, one piece is {length}; give more"
        )
    return ids


def _streams(model: GPT2, ids: Ints) -> tuple[list[Tensor], Tensor]:
    """Ids (batch, pos) -> the streams that translators read, (batch, pos, d_model) each, and the
    final log-probabilities (batch, pos, vocab)."""
    import torch

    last = model.config.n_layer - 1
    taps = ["blocks.0.resid_pre", *(f"blocks.{i}.resid_post" for i in range(last))]
    with torch.no_grad():
        out = model(torch.from_numpy(ids).to(model.wte.weight.device), taps=taps)
        return [out.taps[tap].float() for tap in taps], out.logits.float().log_softmax(-1)


def _kl(model: GPT2, resid: Tensor, final: Tensor) -> Tensor:
    """Mean KL(final || what resid is read as) in nats."""
    logits = model.unembed(model.ln_f(resid.to(model.wte.weight.dtype))).float()
    return (final.exp() * (final - logits.log_softmax(-1))).sum(-1).mean()


def weights_digest(runner: Runner) -> str:
    """The sha256 of the runner's weights, from the module or from the ONNX file that says it."""
    metadata: dict[str, str] | None = getattr(runner, "metadata", None)
    if metadata is not None:
        return metadata["gpt2kit.weights_sha256"]
    from gpt2kit.checkpoint import weights_sha256

    model: GPT2 = runner.model  # type: ignore[attr-defined]
    if model not in _DIGESTS:
        _DIGESTS[model] = weights_sha256(model)
    return _DIGESTS[model]


def _read_published(folder: Path) -> TunedLens:
    """config.json, and params.pt with `{layer}.weight` and, unless without a bias, `{layer}.bias`;
    torch's Linear, so that a weight is (out, in) as ours is."""
    import torch

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        layers, width = int(config["num_hidden_layers"]), int(config["d_model"])
        name = str(config.get("base_model_name_or_path", folder.name))
        state = torch.load(folder / "params.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(f"{folder}: not a tuned lens that can be read ({error!r})") from error
    shapes: dict[str, tuple[int, ...]]
    shapes = {f"{i}.weight": (width, width) for i in range(layers)}
    if config.get("bias", True):
        shapes |= {f"{i}.bias": (width,) for i in range(layers)}
    found = {key: tuple(getattr(x, "shape", ())) for key, x in state.items()}
    if found != shapes:
        wrong = min(k for k in found.keys() | shapes if found.get(k) != shapes.get(k))
        raise CheckpointError(
            f"{folder}: params.pt has {wrong} {found.get(wrong, 'missing')}, its config.json asks "
            f"for {shapes.get(wrong, 'no such tensor')}"
        )

    def stacked(part: str, shape: Iterable[int]) -> Floats:
        zeros = torch.zeros(*shape)
        parts = [state.get(f"{i}.{part}", zeros).float() for i in range(layers)]
        stack: Floats = torch.stack(parts).numpy()
        return stack

    return TunedLens(name, None, stacked("weight", (width, width)), stacked("bias", (width,)))
