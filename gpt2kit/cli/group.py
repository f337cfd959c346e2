"""Commands with examples, and the group that lists them and turns errors into one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import click

from gpt2kit.errors import GPT2KitError

BUG = 70  # exit code of an error that gpt2kit did not expect


class ExampleCommand(click.Command):
    """A command whose help ends with commands to copy."""

    def __init__(self, *args: Any, examples: Sequence[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.examples = tuple(examples)

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


class CommandGroup(click.Group):
    """All commands, listed in sections; an error is one line on standard error.

    sections: title -> commands, in the order in which a newcomer meets them.
    start: a first command to try.
    """

    def __init__(
        self,
        *args: Any,
        sections: Mapping[str, Sequence[click.Command]],
        start: str,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.sections, self.start = sections, start
        for command in (command for commands in sections.values() for command in commands):
            self.add_command(command)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the sections; help and completion keep it."""
        return list(self.commands)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write where to start, the commands, then the options."""
        write_lines(formatter, "Start with", [self.start])
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list a section, all with the same column of names."""
        widest = max(map(len, self.commands))
        for title, commands in self.sections.items():
            rows = [
                (f"{command.name or '':<{widest}}", command.get_short_help_str(limit=200))
                for command in commands
            ]
            with formatter.section(title):
                formatter.write_dl(rows)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Read the group's own options."""
        try:
            return super().make_context(*args, **options)
        except click.ClickException as error:
            fail(usage_message(error), error.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a bug is told from bad input by its exit code."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click ends quietly; BrokenPipe: the reader closed early (`| head`)
        except click.ClickException as error:
            fail(usage_message(error), error.exit_code)
        except Exception as error:
            if ctx.obj:  # --debug
                raise
            fail(*describe_error(error))


def describe_error(error: Exception) -> tuple[str, int]:
    """The message and the exit code of an error."""
    if isinstance(error, GPT2KitError):
        return str(error), error.exit_code
    if isinstance(error, OSError):  # a name that is too long, a file that may not be read, …
        return str(error), GPT2KitError.exit_code
    kind = type(error).__name__
    return f"unexpected {kind}: {error} (--debug shows where; please report)", BUG


def usage_message(error: click.ClickException) -> str:
    """What is wrong with the options, and which help explains them."""
    command = error.ctx.command if isinstance(error, click.UsageError) and error.ctx else None
    name = f"gpt2kit {command.name}" if isinstance(command, ExampleCommand) else "gpt2kit"
    return f"{error.format_message()} See `{name} --help`."


def fail(message: str, exit_code: int) -> NoReturn:
    """Print an error as one line on standard error, and exit."""
    click.echo(f"gpt2kit: error: {' '.join(message.split())}", err=True)
    raise click.exceptions.Exit(exit_code)
