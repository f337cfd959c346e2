"""`export_onnx`: trace a model to an ONNX file, and keep the file only if it agrees with torch.

`exporters.tracing.traced_module` says what inputs and outputs the file has.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir
import torch

from exporters.engine.devices import cuda_problems
from exporters.file.drafts import draft_folder, sweep
from exporters.file.external import entries, files_of, read_graph, seal
from exporters.file.metadata import FileMetadata
from exporters.file.names import as_path, data_file, parity_file, sidecar_folder
from exporters.file.placing import check_free, check_target, place
from exporters.parity.report import Report
from exporters.parity.verify import check
from exporters.sidecars.hugging_face import new_sidecars
from exporters.tracing.description import describe
from exporters.tracing.plan import DEFAULT_OPSET, Plan
from exporters.tracing.quantize import pack
from exporters.tracing.trace import trace
from gpt2kit.checks import check_flag, check_function
from gpt2kit.errors import ExportError, GPT2KitError, InputError
from gpt2kit.taps import resolve
from gpt2kit.torch_engine.digest import weights_sha256
from gpt2kit.torch_engine.dtypes import DTYPES, on_cpu, rounded
from gpt2kit.torch_engine.runner import TorchRunner

EXTERNAL_DATA_ABOVE = 2_000_000_000  # bytes; a protobuf file holds at most 2 GiB
OnStage = Callable[[str], None]  # called with the name of a stage when it begins


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
    edits_required: bool = False,
    external_data: bool = False,
    overwrite: bool = False,
    on_progress: OnStage | None = None,
) -> Report:
    """Write `path` and, beside it, the parity report, `{path}.parity.json`; also the JSON files
    that other clients read (`exporters.sidecars`), one folder up if its own is called `onnx`.

    taps: names or globs of the taps that become outputs.
    edits: names or globs of the taps that can be edited, each through two inputs, optional unless
        `edits_required`, for clients that do not see optional inputs.
    profile: "portable" (standard operators, padding anywhere) or "fused" (onnxruntime's own
        attention, a cache updated in place, padding on the right; see `exporters.tracing.fused`).
    dtype: "float32", "float16" or "bfloat16", for weights, cache and taps; logits are always
        float32. bfloat16 runs on CUDA only, and is exported where CUDA can check it.
    quantize: "int8" or "int4" weights with an unembedding of 8 bits, or "int4-all" (see
        `exporters.tracing.quantize`). The loss of accuracy is measured, must be within a bound, and
        is in the report.
    opset: version of the ONNX operators, 18 to 24.
    external_data: put the weights into `{path}_data`; they always go there above 2 GB.
    overwrite: replace an export of other weights, and the config and tokenizer of another model.
        An export of the same weights is replaced without.
    on_progress: called with the name of each stage when it begins.

    Returns the parity report. Raises ParityError if torch and ONNX disagree, ExportError if the
    file cannot be made; then nothing is left behind, and an older file stays as it was.
    """
    target = as_path(path)
    check_target(target)
    _check_types(runner, external_data, overwrite, on_progress)
    n_layer = runner.config.n_layer
    names, editable = resolve(taps, n_layer), resolve(edits, n_layer, argument="edits")
    plan = Plan(names, editable, profile, dtype, quantize, opset, edits_required)
    plan.check(runner.config)
    _check_device(plan)
    sidecars = _sidecars_for(runner, target, profile, overwrite)
    begin = on_progress or (lambda stage: None)
    with draft_folder(target) as folder:
        draft = folder / "beside" / target.name
        metadata = _write_draft(runner, plan, draft, external_data, begin)
        for name, text in sidecars.items():
            (folder / "sidecars" / name).write_text(text, encoding="utf-8")
        begin("checking against torch")
        report = check(runner, draft, "cuda" if dtype == "bfloat16" else "cpu")
        report.raise_if_failed()
        _add_proof(draft, metadata, report)
        _sidecars_for(runner, target, profile, overwrite)  # another export may have come first
        place(folder, target, _obsolete(target, draft))
    return report


def _check_types(
    runner: TorchRunner, external_data: bool, overwrite: bool, on_progress: OnStage | None
) -> None:
    if not isinstance(runner, TorchRunner):
        raise InputError(
            f"runner must be a torch model from gpt2kit.load, got {type(runner).__name__}"
        )
    check_flag("external_data", external_data)
    check_flag("overwrite", overwrite)
    check_function("on_progress", on_progress)


def _sidecars_for(
    runner: TorchRunner, target: Path, profile: str, overwrite: bool
) -> dict[str, str]:
    """The files for other clients to write: name -> content.

    Raises ExportError if the export would replace something that it may not.
    """
    sweep(target.parent)  # first: it may bring back an older file
    if not overwrite:
        _check_older(runner, target)
    home = sidecar_folder(target)
    sidecars = new_sidecars(runner, target, profile, overwrite)
    check_free([data_file(target), parity_file(target), *(home / name for name in sidecars)])
    return sidecars


def _check_older(runner: TorchRunner, target: Path) -> None:
    """Raise ExportError if the export would replace anything but a file of the same weights."""
    older = [file for file in (target, data_file(target)) if file.exists()]
    if older and not (older[0] == target and _has_weights_of(runner, target)):
        raise ExportError(
            f"{older[0]}: an export of other weights, or a file that gpt2kit did not make; choose "
            "another name, or allow overwriting (--overwrite)"
        )


def _has_weights_of(runner: TorchRunner, path: Path) -> bool:
    """Whether an exported file was made from the runner's weights, in whatever form."""
    try:
        graph = read_graph(path)
        found = FileMetadata.from_metadata(entries(graph) if graph else {}, path)
        dtype = DTYPES[found.dtype]
    except (GPT2KitError, KeyError, OSError):
        return False
    return found.weights_sha256 == weights_sha256(runner.model, rounded=dtype)


def _check_device(plan: Plan) -> None:
    """Raise ExportError if the file could not be checked here."""
    if plan.dtype == "bfloat16" and (problems := cuda_problems()):
        raise ExportError(
            "bfloat16 runs on CUDA alone and cannot be checked here, where "
            f"{problems[0]}; export float16, or export where there is a GPU"
        )


def _write_draft(
    runner: TorchRunner, plan: Plan, draft: Path, external_data: bool, begin: OnStage
) -> FileMetadata:
    """Trace the model and write the file, still without a parity result; return its metadata."""
    begin("tracing")
    dtype = DTYPES[plan.dtype]
    model = on_cpu(runner.model, dtype)
    if plan.quantize:
        pack(model, plan.quantize)
    program = trace(model, plan)
    begin("writing")
    metadata = describe(program, runner, plan, model, rounded(runner, dtype).model)
    _save(program, draft, external_data)
    if (data := data_file(draft)).exists():
        sealed = replace(metadata, data=seal(data))
        _append_metadata(draft, metadata, sealed)
        return sealed
    return metadata


def _save(program: torch.onnx.ONNXProgram, path: Path, external_data: bool) -> None:
    values = [value.const_value for value in program.model.graph.initializers.values()]
    size = sum(value.nbytes for value in values if value is not None)
    external = external_data or size > EXTERNAL_DATA_ABOVE
    onnx_ir.save(program.model, path, external_data=data_file(path).name if external else None)


def _add_proof(draft: Path, metadata: FileMetadata, report: Report) -> None:
    """Write the parity report beside the file, and its summary and digest into the file."""
    proof = report.to_json() + "\n"
    parity_file(draft).write_text(proof, encoding="utf-8")
    digest = hashlib.sha256(proof.encode()).hexdigest()
    _append_metadata(
        draft, metadata, replace(metadata, parity=report.summary(), parity_sha256=digest)
    )


def _append_metadata(path: Path, written: FileMetadata, complete: FileMetadata) -> None:
    """Add to a finished file the entries of `complete` that `written` lacks.

    Readers of protobuf merge concatenated messages, so the weights need not be written again.
    """
    extra, known = onnx.ModelProto(), written.to_metadata()
    added = {key: text for key, text in complete.to_metadata().items() if key not in known}
    onnx.helper.set_model_props(extra, added)
    with path.open("ab") as file:
        file.write(extra.SerializeToString())


def _obsolete(target: Path, draft: Path) -> list[str]:
    """Names of the older file's data, where the new file has none of that name."""
    ours = {data_file(target).name, f"{target.name}.data"}  # the second: of the first versions
    older = (
        {file.name for file in files_of(target, read_graph(target))} if target.exists() else set()
    )
    return sorted((ours & older) - {file.name for file in draft.parent.iterdir()})
