"""Commands with examples, and the group that lists them and prints an error as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

import click

from gpt2kit.cli.signals import raise_on_signals
from gpt2kit.cli.terminal import open_streams, show_traceback, write_error, writing
from gpt2kit.errors import GPT2KitError, InternalError
from gpt2kit.packages import missing_package


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.find_root().obj = ctx.find_root().obj or value


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_set_debug,
    help="Show the traceback of an error.",
)


class ExampleCommand(click.Command):
    """A command whose help ends with commands to copy."""

    def __init__(self, *args: Any, examples: Sequence[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.examples = tuple(examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options; an error names this command, which click's parser leaves out."""
        try:
            with writing():  # --help prints here
                return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, one a line, never wrapped."""
        write_lines(formatter, "Examples" if len(self.examples) > 1 else "Example", self.examples)


def example_command(*examples: str) -> Callable[[Callable[..., Any]], ExampleCommand]:
    """Like `click.command`, with the examples that its help shows."""
    return click.command(cls=ExampleCommand, examples=examples)


def write_lines(formatter: click.HelpFormatter, title: str, lines: Sequence[str]) -> None:
    """Write a section of lines that must stay whole."""
    with formatter.section(title):
        for line in lines:
            formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class Listed(NamedTuple):
    """A command that is imported when it is called; `--help` must be quick."""

    name: str
    module: str  # in gpt2kit.cli
    summary: str  # the first line of its docstring, repeated


class CommandGroup(click.Group):
    """All commands, listed in sections; an error is one line on standard error.

    sections: title -> commands, in the order in which a newcomer meets them.
    start: a first command to try.
    """

    def __init__(
        self, *args: Any, sections: Mapping[str, Sequence[Listed]], start: str, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.sections, self.start = sections, start
        self.listed = {command.name: command for part in sections.values() for command in part}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the sections; completion keeps it."""
        return list(self.listed)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self.listed:
            return None
        module = import_module(f"gpt2kit.cli.{self.listed[cmd_name].module}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest one."""
        name = args[0]
        if name not in self.listed and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(name, self.listed, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write where to start, the commands, then the options."""
        write_lines(formatter, "Start with", [self.start])
        widest = max(map(len, self.listed))
        for title, commands in self.sections.items():
            with formatter.section(title):
                rows = [(f"{command.name:<{widest}}", command.summary) for command in commands]
                formatter.write_dl(rows)
        click.Command.format_options(self, ctx, formatter)

    def main(self, *args: Any, **options: Any) -> Any:
        """Run `gpt2kit`; standard streams may be closed."""
        try:
            open_streams()
        except GPT2KitError as error:
            write_error(f"gpt2kit: error: {error}")
            sys.exit(error.exit_code)
        return super().main(*args, **options)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Read the group's own options."""
        try:
            with writing():  # --help and --version print here
                return super().make_context(*args, **options)
        except GPT2KitError as error:
            fail(str(error), error.exit_code)
        except click.ClickException as error:
            fail(usage_message(error), error.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; bad input exits with 2, a bug with 70, a signal with 128 + number."""
        try:
            with raise_on_signals():
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click ends quietly; BrokenPipe: the reader closed early (`| head`)
        except click.ClickException as error:
            fail(usage_message(error), error.exit_code)
        except Exception as error:
            if ctx.obj:  # --debug
                sys.excepthook = show_traceback
                raise
            fail(*describe_error(error))


def describe_error(error: Exception) -> tuple[str, int]:
    """The message and the exit code of an error."""
    error = missing_package(error) or error
    if isinstance(error, GPT2KitError):
        return str(error), error.exit_code
    if isinstance(error, OSError):  # a name that is too long, a file that may not be read, …
        return str(error), GPT2KitError.exit_code
    kind = type(error).__name__
    what = f"unexpected {kind}: {error} (--debug shows where; please report)"
    return what, InternalError.exit_code


def usage_message(error: click.ClickException) -> str:
    """What is wrong with the options, and which help explains them."""
    command = error.ctx.command if isinstance(error, click.UsageError) and error.ctx else None
    name = f"gpt2kit {command.name}" if isinstance(command, ExampleCommand) else "gpt2kit"
    message = error.format_message()
    stop = "" if message.endswith((".", "?", "?)")) else "."
    return f"{message}{stop} See `{name} --help`."


def fail(message: str, exit_code: int) -> NoReturn:
    """Print an error as one line on standard error, and exit."""
    write_error(f"gpt2kit: error: {' '.join(message.split())}")
    raise click.exceptions.Exit(exit_code)
