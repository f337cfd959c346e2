"""What the commands share: options, the engine that they name, and texts from the user."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpt2kit.errors import InputError

if TYPE_CHECKING:
    from gpt2kit.runner import Runner

Command = TypeVar("Command", bound=Callable[..., Any])


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.find_root().obj = ctx.find_root().obj or value


def options(*each: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def wrap(command: Command) -> Command:
        for option in reversed(each):
            command = option(command)
        return command

    return wrap


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_debug,
    help="Show tracebacks.",
)
model_options = options(
    click.option(
        "--model", default="auto", show_default=True,
        help="Folder, hub id, 'bundled', or 'auto' (gpt2 if it can be had, else bundled).",
    ),
    click.option("--revision", help="Branch, tag or commit of a hub id."),
)  # fmt: skip
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu or cuda."
)
runner_options = options(
    model_options,
    click.option("--onnx", "onnx_file", metavar="FILE", help="Run an exported file instead."),
    device_option,
    click.option(
        "--dtype", default="float32", show_default=True, help="float32, float16, bfloat16, float64."
    ),
)


def open_runner(
    model: str,
    revision: str | None,
    onnx_file: str | None,
    device: str,
    dtype: str,
    threads: int | None = None,
) -> Runner:
    """The engine that `runner_options` name."""
    if onnx_file is None:
        from gpt2kit.torch_engine.load import load

        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        return load(model, revision=revision, device=device, dtype=dtype)
    for option in ("model", "revision", "dtype"):
        if given(option):
            raise InputError(f"--{option} does not go with --onnx; the file has its own")
    from exporters import open_onnx

    return open_onnx(onnx_file, device=device, threads=threads)


def given(option: str) -> bool:
    """Whether the user set this option."""
    source = click.get_current_context().get_parameter_source(option)
    return source is not click.core.ParameterSource.DEFAULT


def text_of(prompt: str) -> str:
    """A prompt from the command line, or from standard input for '-'; it must be UTF-8."""
    raw = sys.stdin.buffer.read() if prompt == "-" else prompt.encode(errors="surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        where = "standard input" if prompt == "-" else "the prompt"
        raise InputError(f"{where} is not UTF-8 (byte {error.start}); convert it first") from error


def positions(_: click.Context, __: click.Parameter, value: str | None) -> list[int] | slice | None:
    """ "3", "-1", "1,4,7" or "2:8"."""
    if value is None:
        return None
    try:
        if ":" in value:
            return slice(*(int(part) if part.strip() else None for part in value.split(":")))
        return [int(part) for part in value.split(",")]
    except (ValueError, TypeError):
        raise InputError(f"--pos {value!r} is not like 3, -1, 1,4,7 or 2:8") from None
