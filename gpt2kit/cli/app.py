"""The `gpt2kit` command. Each command reads its options, calls the library, and prints."""

from __future__ import annotations

import io
import sys

import click

from gpt2kit import __version__
from gpt2kit.cli.causes import ablate, attribute, patch
from gpt2kit.cli.facts import facts
from gpt2kit.cli.files import bench, export, inspect, verify
from gpt2kit.cli.generate import generate
from gpt2kit.cli.group import CommandGroup
from gpt2kit.cli.heads import attn, heads
from gpt2kit.cli.lens import lens
from gpt2kit.cli.options import debug_option
from gpt2kit.cli.tools import doctor, taps

SECTIONS = {
    "See inside": (lens, generate, heads, attn),
    "Find causes": (attribute, patch, ablate),
    "Ship": (export, verify, inspect, bench),
    "Reference": (taps, doctor, facts),
}


@click.group(
    cls=CommandGroup,
    sections=SECTIONS,
    start='gpt2kit lens "Alice was beginning to get very tired of sitting"',
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 success, 1 a check failed, 2 bad input, 3 `facts` on a model that is "
    "not gpt2, 70 a bug in gpt2kit.",
)
@click.version_option(__version__, "-V", "--version", prog_name="gpt2kit")
@debug_option
@click.pass_context
def main(ctx: click.Context) -> None:
    """See inside GPT-2, then ship what you saw.

    `gpt2kit COMMAND --help` explains a command, with examples.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack characters of tokens
        sys.stdout.reconfigure(errors="replace")
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
