"""`gpt2kit verify`: compare a file with the checkpoint it was made from."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import numpy as np

from exporters.engine.runner import OnnxRunner, open_onnx
from exporters.file.external import check_data
from exporters.parity.compare import compare
from exporters.parity.report import Report
from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointError, EngineError
from gpt2kit.torch_engine.dtypes import DTYPES, rounded
from gpt2kit.torch_engine.load import load
from gpt2kit.torch_engine.runner import TorchRunner
from gpt2kit.weight_names import weight_shapes


def verify(
    path: str | os.PathLike[str], *, model: str | None = None, device: str = "auto"
) -> Report:
    """Compare an exported file with the checkpoint that `model`, or else its metadata, names.

    Raises CheckpointError if the file was made from other weights, EngineError if its metadata or
    data is not what it was made with. The report says whether the engines agree; its
    `raise_if_failed` turns that into an error.
    """
    onnx = open_onnx(path, device=device)
    if onnx.sessions.model is not None:
        check_data(onnx.path, onnx.sessions.model, whole=True)
    runner = _checkpoint_of(onnx, path, model)
    reference = rounded(runner, DTYPES[onnx.dtype])
    if reference.weights_sha256 != onnx.weights_sha256:
        raise CheckpointError(f"{path}: was made from other weights than {model or onnx.source}")
    _check_config(onnx, reference)
    report = compare(runner, onnx)
    if report.passed:  # what the tolerance forgives
        _check_weights(onnx, reference)
    return report


def check(runner: TorchRunner, path: Path, device: str = "cpu") -> Report:
    """Compare a file just written with the model it was traced from."""
    return compare(runner, open_onnx(path, device=device))


def _check_config(onnx: OnnxRunner, reference: TorchRunner) -> None:
    """Raise EngineError if the file's configuration would compute something else."""
    for entry in fields(GPT2Config):
        name = "d_mlp" if entry.name == "n_inner" else entry.name  # n_inner may be left out
        said, found = getattr(onnx.config, name), getattr(reference.config, name)
        if said != found and "token" not in name:
            raise EngineError(
                f"{onnx.path}: its metadata says {name} = {said!r}, but {reference.source} has "
                f"{found!r}; export it again"
            )


def _check_weights(onnx: OnnxRunner, reference: TorchRunner) -> None:
    """Raise EngineError if a weight that is not quantised differs in any bit."""
    for name, shape in weight_shapes(onnx.config).items():
        quantised = onnx.quantize and len(shape) == 2 and name != "wpe.weight"
        if not quantised and not np.array_equal(onnx.weight(name), reference.weight(name)):
            raise EngineError(
                f"{onnx.path}: {name} has other values than in {reference.source}; export it again"
            )


def _checkpoint_of(
    onnx: OnnxRunner, path: str | os.PathLike[str], model: str | None
) -> TorchRunner:
    """The model to compare with. Raises CheckpointError if it cannot be found."""
    if model is not None:
        return load(model, device="cpu")
    source = onnx.source
    if source.revision is None and source.model != "bundled":
        raise CheckpointError(
            f"{path}: was made from the folder {source}; say with --model where that is"
        )
    try:
        return load(source.model, revision=source.revision, device="cpu")
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: made from {source}, which is not at hand ({error}); name its folder "
            "with --model"
        ) from error
