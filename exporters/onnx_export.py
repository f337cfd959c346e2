"""Trace the model to ONNX, with a KV cache and the taps asked for, and let it prove itself.

What the graphs take and give is told in `exporters.graphs`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch

import gpt2kit
from exporters.devices import cuda_problems
from exporters.fusions import drop_reshapes, join_gelus, join_norms, join_projections
from exporters.graphs import Fused, Portable
from exporters.interface import LOGITS_POSITIONS, data_file, past_names, present_names
from exporters.parity import Report, check, on_cpu, rounded
from exporters.quantize import BITS, pack
from gpt2kit.checkpoint import weights_sha256
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ExportError, GPT2KitError
from gpt2kit.model import GPT2
from gpt2kit.taps import axes_of, resolve
from gpt2kit.tokenizer import Tokenizer
from gpt2kit.torch_runner import DTYPES, TorchRunner

OPSETS = range(18, 25)
DEFAULT_OPSET = 23  # the first with Attention as one operator (benchmarks/figures.py compares)
EXPORT_DTYPES = ("float32", "float16", "bfloat16")
PROFILES = {"portable": Portable, "fused": Fused}
EXTERNAL_DATA_ABOVE = 2_000_000_000  # a protobuf file holds at most 2 GiB


def export_onnx(
    runner: TorchRunner,
    path: str | os.PathLike[str],
    *,
    taps: str | Iterable[str] = (),
    profile: str = "portable",
    dtype: str = "float32",
    quantize: str | None = None,
    opset: int = DEFAULT_OPSET,
    external_data: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[str], None] = lambda stage: None,
) -> Report:
    """Write `path` and, beside it, config.json, generation_config.json and tokenizer.json.

    taps: names or globs of the taps that become outputs.
    profile: "portable" (standard operators, any padding) or "fused" (onnxruntime's own attention
        with the cache updated in place, padding on the right; see `exporters.graphs`).
    dtype: "float32", "float16" or "bfloat16", of weights, cache and taps; logits are always
        float32. bfloat16 runs on CUDA alone, and is exported where there is CUDA to check it.
    quantize: "int8" or "int4" weights with an unembedding of 8 bits, or "int4-all" (see
        `exporters.quantize`). What it costs is measured, held to a bound and kept with the report.
    external_data: weights in `{path}.data`; always so above 2 GB.
    overwrite: replace a config or tokenizer of another model that lies in the same folder.
    on_progress: told the name of each stage.
    Returns the parity report. Raises ParityError if torch and ONNX disagree, ExportError if the
    file cannot be written; then nothing is left behind, and an older file stays as it was.
    """
    target = Path(path)
    check_target(target)
    names = resolve(taps, runner.config.n_layer)
    _check_arguments(names, profile, dtype, quantize, opset)
    sidecars = _new_sidecars(runner, target.parent, overwrite)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            draft = Path(folder) / target.name
            on_progress("tracing")
            model = on_cpu(runner.model, DTYPES[dtype])
            if quantize:
                pack(model, quantize)
            program = _trace(model, names, profile, DTYPES[dtype], opset)
            on_progress("writing")
            _describe(program, runner, names, profile, dtype, quantize, opset)
            _save(program, draft, external_data)
            for name, text in sidecars.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            del program
            on_progress("checking against torch")
            report = check(runner, draft, "cuda" if dtype == "bfloat16" else "cpu")
            report.raise_if_failed()
            _append_metadata(draft, {"gpt2kit.parity": json.dumps(report.to_json())})
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


def _check_arguments(
    taps: tuple[str, ...], profile: str, dtype: str, quantize: str | None, opset: int
) -> None:
    if profile not in PROFILES:
        raise ExportError(f"profile {profile!r} is not one of {', '.join(PROFILES)}")
    if dtype not in EXPORT_DTYPES:
        raise ExportError(f"dtype {dtype!r} is not one of {', '.join(EXPORT_DTYPES)}")
    if quantize is not None and quantize not in BITS:
        raise ExportError(f"quantize {quantize!r} is not one of {', '.join(BITS)}")
    if quantize and dtype != "float32":
        raise ExportError(f"quantize {quantize} goes with float32, not {dtype}")
    whole = [tap for tap in taps if tap.endswith(".head_out")]
    if quantize and whole:
        raise ExportError(
            f"a quantised file has no {whole[0]}: that needs the heads' weights one by one; leave "
            "the tap or --quantize out"
        )
    if dtype == "bfloat16" and (problems := cuda_problems()):
        raise ExportError(
            "bfloat16 runs on CUDA alone and cannot be checked here, where "
            f"{problems[0]}; export float16, or export where there is a GPU"
        )
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} is not from {OPSETS[0]} to {OPSETS[-1]}")
    hidden = [tap for tap in taps if axes_of(tap)[-1] == "key"]
    if profile == "fused" and hidden:
        raise ExportError(
            f"the fused profile has no {hidden[0]}: its attention is one operator; export that tap "
            "in the portable profile"
        )


def _sidecars(runner: TorchRunner) -> dict[str, str]:
    """File name -> content of what lies beside the model."""
    config = runner.config
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    generation = {"_from_model_config": True, **ids}
    out = {
        "config.json": json.dumps(config.to_hf(), indent=2) + "\n",
        "generation_config.json": json.dumps(generation, indent=2) + "\n",
    }
    if runner.tokenizer is not None:
        out["tokenizer.json"] = runner.tokenizer.to_json()
    return out


def _new_sidecars(runner: TorchRunner, folder: Path, overwrite: bool) -> dict[str, str]:
    """The sidecars that are to be written: all, or those that this model's folder lacks.

    Raises ExportError if the folder holds another model's.
    """
    wanted = _sidecars(runner)
    there = [name for name in wanted if (folder / name).exists()]
    if overwrite or not there:
        return wanted
    ours = runner.tokenizer and runner.tokenizer.to_json()
    try:
        lies = Tokenizer.from_folder(folder)
        same = GPT2Config.from_file(folder / "config.json") == runner.config and (
            lies is None or lies.to_json() == ours
        )
    except GPT2KitError:
        same = False
    if not same:
        raise ExportError(
            f"{folder / there[0]} belongs to another model; export into a folder of its own, or "
            "allow overwriting"
        )
    return {name: text for name, text in wanted.items() if name not in there}


def _trace(
    model: GPT2, taps: tuple[str, ...], profile: str, dtype: torch.dtype, opset: int
) -> torch.onnx.ONNXProgram:
    config = model.config
    batch, sequence, past = 2, 3, 5  # any sizes, all different and above 1, so none is baked in
    example: tuple[Any, ...] = (
        *(torch.ones(batch, n, dtype=torch.long) for n in (sequence, past + sequence, sequence)),
        [
            tuple(
                torch.zeros(batch, config.n_head, past, config.d_head, dtype=dtype)
                for _ in ("key", "value")
            )
            for _ in range(config.n_layer)
        ],
    )
    tokens = {0: "batch_size", 1: "sequence_length"}
    everything = {0: "batch_size", 1: "total_sequence_length"}
    cached = {0: "batch_size", 2: "past_sequence_length"}
    inputs = ["input_ids", "attention_mask", "position_ids", *past_names(config.n_layer)]
    shapes: tuple[Any, ...] = (tokens, everything, tokens, [(cached, cached)] * config.n_layer)
    if profile == "fused":
        example += (torch.zeros(batch, sequence + 1, dtype=torch.long),)
        inputs.append(LOGITS_POSITIONS)
        shapes += ({0: "logits_batch", 1: "logits_length"},)
    try:
        with _quiet():
            program = torch.onnx.export(
                PROFILES[profile](model, taps).eval(),
                example,
                dynamo=True,
                opset_version=opset,
                input_names=inputs,
                output_names=["logits", *present_names(config.n_layer), *taps],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as error:  # torch.onnx wraps whatever went wrong
        reason = (str(error).strip().splitlines() or [repr(error)])[-1]
        raise ExportError(f"the model could not be traced at opset {opset}: {reason}") from error
    assert program is not None
    drop_reshapes(program.model.graph)
    if profile == "fused":
        join_projections(program.model.graph)
        join_gelus(program.model.graph)
        if dtype is not torch.float32:  # for CUDA; the CPU's kernel is slower than its two parts
            join_norms(program.model.graph)
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about optional packages and axis names off the terminal."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _describe(
    program: torch.onnx.ONNXProgram,
    runner: TorchRunner,
    taps: tuple[str, ...],
    profile: str,
    dtype: str,
    quantize: str | None,
    opset: int,
) -> None:
    """Replace the tracer's notes, local paths among them, by what the file is."""
    model = program.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    for name in list(model.graph.initializers):  # named as in the checkpoint
        model.graph.initializers[name].name = name.removeprefix("model.")
    if profile == "fused":
        for value in model.graph.outputs:  # longer than the past unless they share a buffer
            if value.shape is not None and (value.name or "").startswith("present."):
                value.shape = onnx_ir.Shape([*value.shape[:2], "present_length", value.shape[3]])
    model.graph.name, model.graph.doc_string, model.doc_string = "gpt2", None, None
    model.graph.metadata_props.clear()
    model.producer_name, model.producer_version = "gpt2kit", gpt2kit.__version__
    model.metadata_props.clear()
    model.metadata_props.update(
        {
            "gpt2kit.version": gpt2kit.__version__,
            "gpt2kit.model": runner.source.model,
            "gpt2kit.revision": runner.source.revision or "",
            "gpt2kit.weights_sha256": weights_sha256(rounded(runner, DTYPES[dtype]).model),
            "gpt2kit.config": json.dumps(runner.config.to_hf()),
            "gpt2kit.dtype": dtype,
            "gpt2kit.quantize": quantize or "",
            "gpt2kit.profile": profile,
            "gpt2kit.opset": str(opset),
            "gpt2kit.taps": json.dumps(taps),
            "gpt2kit.edits": "[]",
        }
    )


def _save(program: torch.onnx.ONNXProgram, path: Path, external_data: bool) -> None:
    values = [value.const_value for value in program.model.graph.initializers.values()]
    size = sum(value.nbytes for value in values if value is not None)
    external = external_data or size > EXTERNAL_DATA_ABOVE
    onnx_ir.save(program.model, path, external_data=data_file(path).name if external else None)


def _append_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Add metadata to a finished file: concatenated protobuf messages are merged when read."""
    extra = onnx.ModelProto()
    onnx.helper.set_model_props(extra, metadata)
    with path.open("ab") as file:
        file.write(extra.SerializeToString())
