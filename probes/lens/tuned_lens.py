"""Tuned lens: the logit lens with an affine map before it, learnt for each layer.

Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens", arXiv
2303.08112. The stream h is read as h + A h + b; A and b of each layer are trained until the
reading says, as nearly as it can, what the model's last layer says: least KL(final || reading).
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike

from gpt2kit.errors import CheckpointError, InputError
from gpt2kit.prompts import Prompt, Selection
from gpt2kit.readout import Floats, Readout
from gpt2kit.result import Result
from gpt2kit.runner import Runner
from probes.lens.logit_lens import LogitLens, logit_lens

if TYPE_CHECKING:
    from gpt2kit.model import GPT2

_FORMAT = "gpt2kit tuned lens"
_HALF = ("float16", "bfloat16")
_DIGESTS: WeakKeyDictionary[GPT2, str] = WeakKeyDictionary()  # half a gigabyte is slow to hash


@dataclass(frozen=True, eq=False)
class TunedLens(Result):
    """A translator h + A h + b for the embedding and the stream after each layer but the last.

    sha256: digests of the weights it belongs to: those it was trained on, and the same rounded to
    less precision, as in a file of half the size. (): a published lens, which does not say.
    """

    source: str  # the model it was trained on
    sha256: tuple[str, ...]
    weight: Floats  # (layer, d_model, d_model) A; row i makes entry i
    bias: Floats  # (layer, d_model) b

    @classmethod
    def identity(cls, runner: Runner) -> TunedLens:
        """A and b of zeros: the logit lens itself."""
        layers, width = runner.config.n_layer, runner.config.n_embd
        zeros = np.zeros((layers, width, width), np.float32), np.zeros((layers, width), np.float32)
        return cls(str(runner.source), digests(runner), *zeros)

    def translate(self, resid: Floats) -> Floats:
        """Streams (layer + 1, pos, d_model), the embedding first, as the lens reads them; the last
        stays what it is."""
        if resid.ndim != 3 or (len(resid) - 1, resid.shape[-1]) != self.bias.shape:
            raise InputError(f"streams of shape {resid.shape} do not fit {self!r}")
        moved = resid[:-1] + resid[:-1] @ self.weight.transpose(0, 2, 1) + self.bias[:, None]
        return np.concatenate([moved.astype(resid.dtype), resid[-1:]])

    def check(self, runner: Runner) -> None:
        """Raise InputError unless this is a lens of the runner's model, in the dtype that it was
        trained on, or rounded to less."""
        c = runner.config
        if self.bias.shape != (c.n_layer, c.n_embd):
            raise InputError(
                f"{self!r} does not fit {runner.source}, which has {c.n_layer} layers of width "
                f"{c.n_embd}"
            )
        if self.sha256 and weights_digest(runner) not in self.sha256:
            raise InputError(
                f"{self!r} was trained on other weights than those of {runner.source} in "
                f"{runner.dtype}; train one with train_tuned_lens"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, with the digest of the model's weights."""
        from safetensors.numpy import save_file

        tensors = {"weight": self.weight, "bias": self.bias}
        digests = " ".join(self.sha256)
        metadata = {"format": _FORMAT, "source": self.source, "weights_sha256": digests}
        save_file({k: np.ascontiguousarray(x) for k, x in tensors.items()}, path, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TunedLens:
        """Read what `save` wrote, or a folder with the config.json and params.pt in which the
        authors of the paper publish theirs. Raises CheckpointError.

        Of a published lens only the sizes can be checked, and a warning says so.
        """
        path = Path(path)
        if path.is_dir():
            lens = _read_published(path)
            warnings.warn(
                f"{path}: a published lens does not say which weights it belongs to; only its "
                f"sizes are checked, so read {lens.source} with it and nothing else",
                stacklevel=2,
            )
            return lens
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                weight, bias = (file.get_tensor(name) for name in ("weight", "bias"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a tuned lens that can be read ({error})") from error
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(f"{path}: not a tuned lens that gpt2kit saved")
        return cls(metadata["source"], tuple(metadata["weights_sha256"].split()), weight, bias)

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
    positions: Selection = None,
    prepend_bos: bool = False,
) -> LogitLens:
    """What `logit_lens` gives, read through the lens' translators; runs on every engine.

    Options: see `logit_lens`. Raises InputError if the lens was trained on another model. (Weights
    changed in place after the first reading are not noticed.)
    """
    lens.check(runner)
    read = logit_lens(
        cast("Runner", _Translated(runner, lens)), prompt,
        top_k=top_k, targets=targets, positions=positions, prepend_bos=prepend_bos,
    )  # fmt: skip
    return replace(read, kind="tuned lens")


class _Translated:
    """A runner whose readout is given the streams of `logit_lens` and translates them first."""

    def __init__(self, runner: Runner, lens: TunedLens) -> None:
        self.runner, self.lens = runner, lens

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

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


def weights_digest(runner: Runner) -> str:
    """The sha256 of the runner's weights, from the module or from the ONNX file that says it; a
    module in half precision has that of a file with the same weights."""
    metadata: dict[str, str] | None = getattr(runner, "metadata", None)
    if metadata is not None:
        return metadata["gpt2kit.weights_sha256"]
    import torch

    from gpt2kit.torch_engine.digest import weights_sha256

    model: GPT2 = runner.model  # type: ignore[attr-defined]
    if model not in _DIGESTS:
        rounded = getattr(torch, runner.dtype) if runner.dtype in _HALF else None
        _DIGESTS[model] = weights_sha256(model, rounded)
    return _DIGESTS[model]


def digests(runner: Runner) -> tuple[str, ...]:
    """`weights_digest`, and what it is of the same weights in half precision."""
    own = weights_digest(runner)
    if runner.dtype in _HALF or not hasattr(runner, "model"):
        return (own,)
    import torch

    from gpt2kit.torch_engine.digest import weights_sha256

    return own, *(weights_sha256(runner.model, getattr(torch, dtype)) for dtype in _HALF)


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

    return TunedLens(name, (), stacked("weight", (width, width)), stacked("bias", (width,)))
