"""Trace the model to ONNX, with a KV cache and the taps asked for, and let it prove itself.

What the graphs take and give is told in `exporters.tracing.graphs`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir
import torch

from exporters.engine.devices import cuda_problems
from exporters.file.metadata import FileMetadata
from exporters.file.names import data_file, parity_file
from exporters.parity.report import Report
from exporters.parity.verify import check
from exporters.sidecars.hugging_face import new_sidecars
from exporters.tracing.quantize import BITS, pack
from exporters.tracing.trace import (
    DEFAULT_OPSET,
    EXPORT_DTYPES,
    OPSETS,
    PROFILES,
    Plan,
    describe,
    trace,
)
from gpt2kit.errors import ExportError
from gpt2kit.taps import resolve
from gpt2kit.torch_engine.dtypes import DTYPES, on_cpu, rounded
from gpt2kit.torch_engine.runner import TorchRunner

EXTERNAL_DATA_ABOVE = 2_000_000_000  # a protobuf file holds at most 2 GiB


def export_onnx(
    runner: TorchRunner,
    path: str | os.PathLike[str],
    *,
    taps: str | Iterable[str] = (),
    edits: str | Iterable[str] = (),
    profile: str = "portable",
    dtype: str = "float32",
    quantize: str | None = None,
    opset: int = DEFAULT_OPSET,
    external_data: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[str], None] = lambda stage: None,
) -> Report:
    """Write `path` and, beside it, config.json, generation_config.json, tokenizer.json and the
    parity report, `{path}.parity.json`.

    taps: names or globs of the taps that become outputs.
    edits: names or globs of the taps that can be edited, each by two optional inputs.
    profile: "portable" (standard operators, any padding) or "fused" (onnxruntime's own attention
        with the cache updated in place, padding on the right; see `exporters.tracing.graphs`).
    dtype: "float32", "float16" or "bfloat16", of weights, cache and taps; logits are always
        float32. bfloat16 runs on CUDA alone, and is exported where there is CUDA to check it.
    quantize: "int8" or "int4" weights with an unembedding of 8 bits, or "int4-all" (see
        `exporters.tracing.quantize`). What it costs is measured, held to a bound and kept with the
        report.
    external_data: weights in `{path}.data`; always so above 2 GB.
    overwrite: replace a config or tokenizer of another model that lies in the same folder.
    on_progress: told the name of each stage.
    Returns the parity report. Raises ParityError if torch and ONNX disagree, ExportError if the
    file cannot be written; then nothing is left behind, and an older file stays as it was.
    """
    target = Path(path)
    check_target(target)
    names, editable = (resolve(given, runner.config.n_layer) for given in (taps, edits))
    plan = Plan(names, editable, profile, dtype, quantize, opset)
    _check_plan(plan)
    sidecars = new_sidecars(runner, target.parent, overwrite)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            draft = Path(folder) / target.name
            on_progress("tracing")
            model = on_cpu(runner.model, DTYPES[dtype])
            if quantize:
                pack(model, quantize)
            program = trace(model, plan)
            on_progress("writing")
            described = describe(program, runner, plan, model, rounded(runner, DTYPES[dtype]).model)
            _save(program, draft, external_data)
            for name, text in sidecars.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            del program
            on_progress("checking against torch")
            report = check(runner, draft, "cuda" if dtype == "bfloat16" else "cpu")
            report.raise_if_failed()
            proof = report.to_json() + "\n"
            parity_file(draft).write_text(proof, encoding="utf-8")
            digest = hashlib.sha256(proof.encode()).hexdigest()
            proven = replace(described, parity=report.summary(), parity_sha256=digest)
            _append_metadata(draft, described, proven)
            # The model comes last: whoever sees it sees the files that belong to it.
            made = sorted(Path(folder).iterdir(), key=lambda file: file.name == target.name)
            replaced = target.exists()
            for file in made:
                file.replace(target.parent / file.name)
            data = data_file(target)
            if replaced and data.name not in [file.name for file in made]:
                data.unlink(missing_ok=True)  # the replaced file's weights
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise ExportError(f"{target}: not written: {reason}") from error
    return report


def check_target(target: Path) -> None:
    """Raise ExportError if a file of this name cannot be written."""
    if target.suffix != ".onnx":
        raise ExportError(f"{target}: give a file name that ends in .onnx")
    if target.is_dir():
        raise ExportError(f"{target}: is a folder; give a file name")
    if not target.parent.is_dir():
        raise ExportError(f"{target}: the folder {target.parent} does not exist")
    if not os.access(target.parent, os.W_OK):
        raise ExportError(f"{target}: the folder {target.parent} cannot be written to")


def _check_plan(plan: Plan) -> None:
    if plan.profile not in PROFILES:
        raise ExportError(f"profile {plan.profile!r} is not one of {', '.join(PROFILES)}")
    if plan.dtype not in EXPORT_DTYPES:
        raise ExportError(f"dtype {plan.dtype!r} is not one of {', '.join(EXPORT_DTYPES)}")
    if plan.quantize is not None and plan.quantize not in BITS:
        raise ExportError(f"quantize {plan.quantize!r} is not one of {', '.join(BITS)}")
    if plan.quantize and plan.dtype != "float32":
        raise ExportError(f"quantize {plan.quantize} goes with float32, not {plan.dtype}")
    whole = [tap for tap in (*plan.taps, *plan.edits) if tap.endswith(".head_out")]
    if plan.quantize and whole:
        raise ExportError(
            f"a quantised file has no {whole[0]}: that needs the heads' weights one by one; leave "
            "the tap or --quantize out"
        )
    if plan.dtype == "bfloat16" and (problems := cuda_problems()):
        raise ExportError(
            "bfloat16 runs on CUDA alone and cannot be checked here, where "
            f"{problems[0]}; export float16, or export where there is a GPU"
        )
    if plan.opset not in OPSETS:
        raise ExportError(f"opset {plan.opset} is not from {OPSETS[0]} to {OPSETS[-1]}")


def _save(program: torch.onnx.ONNXProgram, path: Path, external_data: bool) -> None:
    values = [value.const_value for value in program.model.graph.initializers.values()]
    size = sum(value.nbytes for value in values if value is not None)
    external = external_data or size > EXTERNAL_DATA_ABOVE
    onnx_ir.save(program.model, path, external_data=data_file(path).name if external else None)


def _append_metadata(path: Path, written: FileMetadata, whole: FileMetadata) -> None:
    """Add to a finished file the entries of `whole` that `written` lacks.

    Readers of protobuf merge concatenated messages, so the weights need not be written again.
    """
    extra, known = onnx.ModelProto(), written.to_metadata()
    added = {key: text for key, text in whole.to_metadata().items() if key not in known}
    onnx.helper.set_model_props(extra, added)
    with path.open("ab") as file:
        file.write(extra.SerializeToString())
