"""Tuned lens: the logit lens with an affine map before it, learnt for each layer.

Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens", arXiv
2303.08112. The stream h is read as h + A h + b. A and b of each layer are trained to bring the
reading as near as possible to the model's prediction: least KL(final || reading).
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2kit import shipped
from gpt2kit.checks import check_finite
from gpt2kit.defaults import Default
from gpt2kit.errors import CheckpointError, InputError
from gpt2kit.prompts import Prompt, Selection
from gpt2kit.readout import Floats
from gpt2kit.result import Result, Row
from gpt2kit.runner import Runner
from gpt2kit.taps import residual_stream
from gpt2kit.torch_engine.require import as_torch
from probes.lens import tuned_files
from probes.lens.lens_result import LogitLens
from probes.lens.reading import Targets, read_lens


@dataclass(frozen=True, eq=False, repr=False)
class TunedLens(Result):
    """A translator h + A h + b for the embedding and for the stream after each layer but the last.

    sha256: digests of the weights it was trained on, and of the same weights in other dtypes. Empty
    for a published lens, which names no weights.
    """

    source: str  # the model it was trained on
    sha256: tuple[str, ...]
    weight: Floats  # (layer, d_model, d_model) A; row i makes entry i
    bias: Floats  # (layer, d_model) b

    def __post_init__(self) -> None:
        """Raise InputError if A or b of a layer is NaN or infinite, or if their shapes disagree."""
        if self.bias.ndim != 2 or self.weight.shape != (*self.bias.shape, self.bias.shape[-1]):
            raise InputError(
                f"weight {self.weight.shape} must be (layer, d_model, d_model) and bias "
                f"{self.bias.shape} (layer, d_model)"
            )
        check_finite("weight", self.weight, "float64")
        check_finite("bias", self.bias, "float64")

    @classmethod
    def identity(cls, runner: Runner) -> TunedLens:
        """A and b of zeros: the logit lens itself."""
        layers, width = runner.config.n_layer, runner.config.n_embd
        weight = np.zeros((layers, width, width), np.float32)
        bias = np.zeros((layers, width), np.float32)
        return cls(str(runner.source), weight_digests(runner), weight, bias)

    def translate(self, resid: Floats) -> Floats:
        """Residual streams (layer + 1, pos, d_model), the embedding first, as the lens reads them.

        The last one stays as it is. Raises InputError for another shape, or if a stream becomes
        infinite.
        """
        if resid.ndim != 3 or (len(resid) - 1, resid.shape[-1]) != self.bias.shape:
            raise InputError(f"streams of shape {resid.shape} do not fit {self!r}")
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            moved = resid[:-1] + resid[:-1] @ self.weight.transpose(0, 2, 1) + self.bias[:, None]
        check_finite("a translated stream", moved, resid.dtype.name)
        return np.concatenate([moved.astype(resid.dtype), resid[-1:]])

    def check(self, runner: Runner) -> None:
        """Raise InputError unless the lens belongs to the runner's weights.

        A lens also serves the same weights in another dtype, or quantised in an exported file. One
        that was trained in half precision does not serve the weights before they were rounded.
        """
        config = runner.config
        if self.bias.shape != (config.n_layer, config.n_embd):
            raise InputError(
                f"{self!r} does not fit {runner.source}, which has {config.n_layer} layers of "
                f"width {config.n_embd}"
            )
        if self.sha256 and runner.weights_sha256 not in self.sha256:
            raise InputError(
                f"{self!r} was trained on other weights than those of {runner.source} in "
                f"{runner.dtype}; train one with train_tuned_lens"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, with the digests of the model's weights.

        Arrays in float16 take half the space; `load` makes them float32.
        """
        tuned_files.write_saved(path, self.source, self.sha256, self.weight, self.bias)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TunedLens:
        """Read a file that `save` wrote, or a folder as the paper's authors publish theirs.

        "bundled" is the lens of the bundled model, which ships beside it. A published folder holds
        config.json and params.pt. It names no weights, so only its sizes can be checked; a warning
        says so. Raises CheckpointError for anything else.
        """
        shipping = os.fspath(path) == "bundled"
        path = shipped.BUNDLED / shipped.LENS_FILE if shipping else Path(path)
        read = tuned_files.read_published if path.is_dir() else tuned_files.read_saved
        parts = read(path)
        try:
            lens = cls(*parts)
        except InputError as error:
            raise CheckpointError(f"{path}: {error}") from error
        if not path.is_dir():
            return lens
        warnings.warn(
            f"{path}: a published lens does not say which weights it belongs to; only its "
            f"sizes are checked, so read {lens.source} with it and nothing else",
            stacklevel=2,
        )
        return lens

    def table(self) -> list[Row]:
        """One row for each translator: the tap it reads, and the norms of A and b."""
        taps = residual_stream(len(self.bias))[:-1]
        return [
            {
                "tap": tap,
                "weight_norm": float(np.linalg.norm(weight)),
                "bias_norm": float(np.linalg.norm(bias)),
            }
            for tap, weight, bias in zip(taps, self.weight, self.bias, strict=True)
        ]

    def __repr__(self) -> str:
        layers, width = self.bias.shape
        return f"TunedLens({self.source}, {layers} layers, d_model {width})"


def tuned_lens(
    runner: Runner,
    prompt: Prompt,
    lens: TunedLens | None = None,
    *,
    top_k: int = Default(5),
    targets: Targets = (),
    positions: Selection = None,
    prepend_bos: bool = False,
) -> LogitLens:
    """Read the residual stream as `logit_lens` does, through the lens' translators.

    lens: by default the one that ships for the runner's weights: those of the bundled model, also
          in an exported file.
    It runs on every engine. Other options: see `logit_lens`. Raises InputError if the lens was
    trained on another model, or if no lens is given and none ships for these weights. (Weights
    changed in place after the first reading are not noticed.)
    """
    if lens is None:
        lens = shipped_lens(runner)
    if not isinstance(lens, TunedLens):
        raise InputError(f"lens must be a TunedLens, got {type(lens).__name__}")
    lens.check(runner)
    return read_lens(
        runner, prompt, residual_stream(runner.config.n_layer), kind="tuned lens",
        top_k=top_k, targets=targets, positions=positions, prepend_bos=prepend_bos,
        translate=lens.translate,
    )  # fmt: skip


def shipped_lens(runner: Runner) -> TunedLens:
    """The lens that ships for the runner's weights. Raises InputError if none does."""
    lens, own = TunedLens.load("bundled"), runner.weights_sha256
    if own not in lens.sha256:
        raise InputError(
            f"no tuned lens ships for the weights of {runner.source} (sha256 {own[:12]}…); train "
            "one with train_tuned_lens, or read one with TunedLens.load, and give it as lens="
        )
    return lens


def weight_digests(runner: Runner) -> tuple[str, ...]:
    """The sha256 of the runner's weights, then of the same weights in every other dtype.

    Only the weights of a torch model can be converted; for other engines there is one digest.
    """
    own, on_torch = runner.weights_sha256, as_torch(runner)
    if on_torch is None:
        return (own,)
    from gpt2kit.torch_engine.digest import weights_sha256
    from gpt2kit.torch_engine.dtypes import DTYPES

    others = (weights_sha256(on_torch.model, dtype) for dtype in DTYPES.values())
    return tuple(dict.fromkeys([own, *others]))
