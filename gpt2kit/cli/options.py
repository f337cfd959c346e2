"""Options that commands share, the engine that they name, and texts from the user."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from gpt2kit.cli.choices import DEVICES, DTYPES
from gpt2kit.errors import InputError

if TYPE_CHECKING:
    from gpt2kit.runner import Runner
    from probes.core.metrics import Metric

Command = TypeVar("Command", bound=Callable[..., Any])
ENGINE_OPTIONS = ("model", "revision", "onnx_file", "device", "dtype")


def options(*each: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def wrap(command: Command) -> Command:
        for option in reversed(each):
            command = option(command)
        return command

    return wrap


def complete_device(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
    """Devices for completion; torch knows more, such as cuda:1."""
    return [CompletionItem(name) for name in DEVICES if name.startswith(typed)]


model_options = options(
    click.option(
        "--model",
        default="auto",
        show_default=True,
        help="Folder, hub id, 'bundled', or 'auto': gpt2 if it is at hand, else bundled.",
    ),
    click.option("--revision", help="Branch, tag or commit of a hub id."),
)
_runner_options = options(
    model_options,
    click.option("--onnx", "onnx_file", metavar="FILE", help="Run this exported file instead."),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        shell_complete=complete_device,
        help="auto, cpu, cuda, or a device of torch such as cuda:1.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default="float32",
        show_default=True,
        help="Type of the weights and of the computation.",
    ),
)
bos_option = click.option("--bos", is_flag=True, help="Put <|endoftext|> before the prompt.")
target_option = click.option(
    "--target", required=True, metavar="TOKEN", help="The right answer, e.g. ' Mary'."
)
foil_option = click.option(
    "--foil",
    metavar="TOKEN",
    help="A wrong answer, to measure a difference of logits; without it, a log-probability.",
)


@dataclass(frozen=True)
class EngineChoice:
    """The model that the user named, not yet loaded."""

    model: str
    revision: str | None
    onnx_file: str | None
    device: str
    dtype: str

    def open(self, threads: int | None = None) -> Runner:
        """Load the model, or open the exported file. threads: on the CPU."""
        if self.onnx_file is None:
            from gpt2kit import load

            if threads is not None:
                import torch

                torch.set_num_threads(threads)
            return load(self.model, revision=self.revision, device=self.device, dtype=self.dtype)
        for option in ("model", "revision", "dtype"):
            if given(option):
                raise InputError(f"--{option} does not go with --onnx; the file has its own")
        from exporters import open_onnx

        return open_onnx(self.onnx_file, device=self.device, threads=threads)


def runner_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that name a model; the command receives them as `engine`, an `EngineChoice`."""

    @functools.wraps(command)
    def wrapped(**values: Any) -> Any:
        engine = EngineChoice(**{name: values.pop(name) for name in ENGINE_OPTIONS})
        return command(engine=engine, **values)

    return _runner_options(wrapped)


def metric_of(target: str, foil: str | None) -> Metric:
    """What `--target` and `--foil` measure."""
    from probes.core.metrics import Metric

    return Metric.logprob(target) if foil is None else Metric.logit_diff(target, foil)


def given(option: str) -> bool:
    """Whether the user set this option."""
    source = click.get_current_context().get_parameter_source(option)
    return source is not click.core.ParameterSource.DEFAULT


def text_of(prompt: str) -> str:
    """A prompt from the command line, or from standard input for '-'; it must be UTF-8."""
    raw = _read_stdin() if prompt == "-" else prompt.encode(errors="surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        place = "standard input" if prompt == "-" else "the prompt"
        raise InputError(f"{place} is not UTF-8 (byte {error.start}); convert it first") from error


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise InputError("'-' reads standard input, which is closed")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise InputError(f"standard input cannot be read ({error})") from error


def positions(_: click.Context, __: click.Parameter, value: str | None) -> list[int] | slice | None:
    """Read "3", "-1", "1,4,7" or "2:8"."""
    if value is None:
        return None
    try:
        if not value.isascii():  # Python's int also reads the digits of other scripts
            raise ValueError
        if ":" in value:
            return slice(*(int(part) if part.strip() else None for part in value.split(":")))
        return [int(part) for part in value.split(",")]
    except (ValueError, TypeError):
        raise InputError(f"--pos {value!r} is not like 3, -1, 1,4,7 or 2:8") from None
