"""The `gpt2kit` command. Each command reads its options, calls the library, and prints."""

from __future__ import annotations

import click

from gpt2kit import __version__
from gpt2kit.cli.group import CommandGroup, Listed, debug_option
from gpt2kit.cli.terminal import write

SECTIONS = {
    "See inside": (
        Listed("lens", "lens", "Show what each layer would say next (logit lens)."),
        Listed("generate", "generate", "Continue a prompt."),
        Listed("heads", "heads", "Show which attention heads do what."),
        Listed("attn", "heads", "Show what one head attends to."),
    ),
    "Find causes": (
        Listed("attribute", "causes", "Show which parts of the model a logit comes from."),
        Listed("patch", "causes", "Put one prompt's values into another's run."),
        Listed("ablate", "causes", "Remove each head and measure what it was good for."),
    ),
    "Ship": (
        Listed("export", "files", "Write an ONNX file, and prove that it equals torch."),
        Listed("verify", "files", "Compare an exported FILE with torch."),
        Listed("inspect", "files", "Describe an exported FILE: model, taps, edits, parity."),
        Listed("bench", "files", "Measure the speed of a model on this machine."),
    ),
    "Reference": (
        Listed("taps", "tools", "List where a model can be read and edited."),
        Listed("doctor", "tools", "Say what works on this machine, and what is missing."),
        Listed("facts", "facts", "Check stated facts about gpt2 or the bundled model."),
    ),
}


@click.group(
    cls=CommandGroup,
    sections=SECTIONS,
    start='gpt2kit lens "Tom and Lily went to the park. Tom gave the ball to"',
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
    if ctx.invoked_subcommand is None:
        write(ctx.get_help())
