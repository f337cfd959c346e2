"""The commands of exported files: export, verify, inspect, bench."""

from __future__ import annotations

from pathlib import Path

import click

from gpt2kit.cli.options import (
    debug_option,
    device_option,
    model_options,
    open_runner,
    runner_options,
)


@click.command()
@click.option("--onnx", "path", required=True, metavar="FILE", help="The file to write.")
@model_options
@click.option("--profile", default="portable", show_default=True, help="portable or fused.")
@click.option("--dtype", default="float32", show_default=True, help="float32, float16 or bfloat16.")
@click.option("--quantize", metavar="BITS", help="int8, int4, int4-all: says what it costs.")
@click.option("--taps", multiple=True, metavar="GLOB", help="Taps to carry; repeatable.")
@click.option("--edits", multiple=True, metavar="GLOB", help="Taps to edit; repeatable.")
@click.option("--opset", default=23, show_default=True, help="ONNX operator set, 18 to 24.")
@click.option("--external-data", is_flag=True, help="Weights in FILE.data (always above 2 GB).")
@click.option("--overwrite", is_flag=True, help="Replace another model's config in the folder.")
@debug_option
def export(
    path: str,
    model: str,
    revision: str | None,
    profile: str,
    dtype: str,
    quantize: str | None,
    taps: tuple[str, ...],
    edits: tuple[str, ...],
    opset: int,
    external_data: bool,
    overwrite: bool,
) -> None:
    """Write an ONNX file that equals torch, proven.

    The model is traced, checked against torch, and only then given its name.
    """
    from rich.console import Console

    from exporters.export import check_target, export_onnx
    from exporters.parity.report_view import show
    from gpt2kit.torch_engine.load import load

    check_target(Path(path))  # before the model is loaded
    console = Console(highlight=False)
    with console.status("loading") as status:
        runner = load(model, revision=revision, device="cpu")

        def progress(stage: str) -> None:
            status.update(stage)
            if not console.is_terminal:
                click.echo(f"{stage} …", err=True)

        report = export_onnx(
            runner,
            path,
            taps=taps,
            edits=edits,
            profile=profile,
            dtype=dtype,
            quantize=quantize,
            opset=opset,
            external_data=external_data,
            overwrite=overwrite,
            on_progress=progress,
        )
    show(report, console)
    click.echo(f"wrote {path}")


@click.command()
@click.argument("path", metavar="FILE")
@click.option("--model", help="Where the weights are, if FILE's own word is not enough.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@debug_option
def verify(path: str, model: str | None, device: str, as_json: bool) -> None:
    """Compare an exported FILE with torch.

    The exit code is 1 if they disagree.
    """
    import json

    from rich.console import Console

    from exporters.parity.compare import verify as run
    from exporters.parity.report_view import show

    console = Console(highlight=False)
    with Console(stderr=True).status("comparing torch and ONNX"):
        report = run(path, model=model, device=device)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=1))
    else:
        show(report, console)
    report.raise_if_failed()


@click.command()
@click.argument("path", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def inspect(path: str, as_json: bool) -> None:
    """Say what an exported FILE is: taps, edits, parity."""
    from rich.console import Console

    from exporters.file.inspection import inspect_onnx
    from exporters.file.inspection_view import show

    found = inspect_onnx(path)
    if as_json:
        click.echo(found.to_json().encode())
    else:
        show(found, Console(highlight=False))


@click.command()
@runner_options
@click.option("--threads", type=int, help="On the CPU; by default one a physical core.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def bench(
    model: str,
    revision: str | None,
    onnx_file: str | None,
    device: str,
    dtype: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure a model on this machine.

    Load time, prefill, decode, memory, and how far decode is from what the memory allows.
    """
    import json

    from rich.console import Console

    from exporters.engine.bench import bench as run
    from exporters.engine.bench import check_threads
    from exporters.engine.bench_view import show

    if threads is not None:
        check_threads(threads)
    with Console(stderr=True).status("measuring"):
        result = run(lambda: open_runner(model, revision, onnx_file, device, dtype, threads))
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1))
    else:
        show(result, Console(highlight=False))


COMMANDS = (export, verify, inspect, bench)
