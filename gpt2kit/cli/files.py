"""The commands about exported files: `export`, `verify`, `inspect` and `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gpt2kit.cli.choices import DEVICES, EXPORT_DTYPES, INTEGER, PROFILES, QUANTISATIONS
from gpt2kit.cli.group import debug_option, example_command
from gpt2kit.cli.options import EngineChoice, model_options, options, runner_options
from gpt2kit.cli.output import DataFormat, output_options
from gpt2kit.cli.progress import show_status
from gpt2kit.cli.terminal import print_rich, write

_plan_options = options(
    click.option(
        "--profile", type=click.Choice(PROFILES), default="portable", show_default=True,
        help="Standard operators, or onnxruntime's fused attention.",
    ),
    click.option(
        "--dtype", type=click.Choice(EXPORT_DTYPES), default="float32", show_default=True,
        help="Type of the weights and of the computation.",
    ),
    click.option(
        "--quantize", type=click.Choice(QUANTISATIONS),
        help="Round the weights; the report says what it costs.",
    ),
    click.option("--taps", multiple=True, metavar="GLOB", help="Taps to read; repeatable."),
    click.option("--edits", multiple=True, metavar="GLOB", help="Taps to edit; repeatable."),
    click.option(
        "--edits-required", is_flag=True,
        help="Make edits required inputs, for JavaScript, OpenVINO and optimisers.",
    ),
    click.option(
        "--opset", type=INTEGER, default=23, show_default=True, help="ONNX opset, 18 to 24."
    ),
    click.option(
        "--external-data", is_flag=True, help="Weights in FILE_data (always above 2 GB)."
    ),
    click.option("--overwrite", is_flag=True, help="Replace files of another model."),
)  # fmt: skip


@example_command(
    "gpt2kit export --onnx gpt2.onnx",
    'gpt2kit export --onnx gpt2.onnx --taps "blocks.*.resid_*"',
    "gpt2kit export --onnx gpt2.onnx --profile fused --quantize int8",
)
@click.option("--onnx", "path", required=True, metavar="FILE", help="The file to write.")
@model_options
@_plan_options
@debug_option
def export(path: str, model: str, revision: str | None, **plan: Any) -> None:
    """Write an ONNX file, and prove that it equals torch.

    The model is traced and compared with torch; FILE appears only if they agree. The exit code is
    1 if they do not.
    """
    from exporters.export import export_onnx
    from exporters.file.placing import check_target
    from gpt2kit import load

    check_target(Path(path))  # before the model is loaded
    with show_status(log_stages=True) as status:
        runner = load(model, revision=revision, device="cpu")
        report = export_onnx(runner, path, on_progress=status.update, **plan)
    print_rich(report.render())
    write(f"wrote {path}")


@example_command("gpt2kit verify gpt2.onnx")
@click.argument("path", metavar="FILE")
@click.option("--model", help="Where the weights are, if they are not where FILE says.")
@click.option(
    "--device", type=click.Choice(DEVICES), default="auto", show_default=True,
    help="Where FILE runs.",
)  # fmt: skip
@output_options
def verify(path: str, model: str | None, device: str, output: DataFormat) -> None:
    """Compare an exported FILE with torch.

    The exit code is 1 if they disagree.
    """
    from exporters.parity.verify import verify as run

    with show_status() as status:
        status.update("comparing torch and ONNX")
        report = run(path, model=model, device=device)
    output.show(report)
    report.raise_if_failed()


@example_command("gpt2kit inspect gpt2.onnx", "gpt2kit inspect gpt2.onnx --json")
@click.argument("path", metavar="FILE")
@output_options
def inspect(path: str, output: DataFormat) -> None:
    """Describe an exported FILE: model, taps, edits, parity."""
    from exporters.file.inspection import inspect_onnx

    output.show(inspect_onnx(path))


@example_command("gpt2kit bench --model bundled", "gpt2kit bench --onnx gpt2.onnx --threads 2")
@click.option("--threads", type=INTEGER, help="CPU threads; by default one a physical core.")
@runner_options
@output_options
def bench(threads: int | None, engine: EngineChoice, output: DataFormat) -> None:
    """Measure the speed of a model on this machine.

    Load time, prefill, decode and memory; and how far a decode step is from the time that reading
    the weights takes.
    """
    from exporters.engine.bench import bench as run
    from exporters.engine.memory import check_threads

    if threads is not None:
        check_threads(threads)
    with show_status() as status:
        status.update("measuring")
        result = run(lambda: engine.open(threads))
    output.show(result)
