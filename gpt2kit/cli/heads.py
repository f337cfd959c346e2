"""The commands about attention heads: `heads` and `attn`."""

from __future__ import annotations

import click

from gpt2kit.cli.choices import INTEGER
from gpt2kit.cli.group import example_command
from gpt2kit.cli.options import EngineChoice, bos_option, given, runner_options, text_of
from gpt2kit.cli.output import DataFormat, output_options, print_json
from gpt2kit.cli.progress import show_status
from gpt2kit.cli.terminal import print_rich, write_csv
from gpt2kit.defaults import Default
from gpt2kit.errors import InputError


@example_command("gpt2kit heads", 'gpt2kit heads --prompt "the cat sat on the mat"')
@click.option("--prompt", metavar="TEXT", help="Score on this text; '-' reads standard input.")
@click.option(
    "--length", type=INTEGER, default=Default(50), show_default=True,
    help="Without --prompt: how many random tokens to repeat.",
)  # fmt: skip
@runner_options
@output_options
def heads(prompt: str | None, length: int, engine: EngineChoice, output: DataFormat) -> None:
    """Show which attention heads do what.

    For every head: how much it attends to the token before, to earlier copies of a token, and to
    what followed those copies (induction), on random tokens that are repeated, or on a text; and
    whether its weights copy tokens.
    """
    from rich.console import Group

    from gpt2kit.result import as_csv
    from probes.heads.copying import copying_score
    from probes.heads.scores import head_scores

    if prompt is not None and given("length"):
        raise InputError("--length does not go with --prompt, which has its own")
    text = None if prompt is None else text_of(prompt)
    with show_status() as status:
        runner = engine.open()
        status.update("looking at every head")
        scores = head_scores(runner, prompt=text, length=length, on_progress=status.count)
        status.update("reading every head's weights")
        copying = copying_score(runner)
    if output.as_json:
        print_json({**scores.to_dict(), "copying": copying.to_dict()["scores"]})
    elif output.as_csv:
        pairs = zip(scores.table(), copying.table(), strict=True)
        write_csv(as_csv([row | {"copying": other["score"]} for row, other in pairs]))
    else:
        print_rich(Group(scores.render(), "", copying.render()))


@example_command('gpt2kit attn "One day, Lily and Tom" --layer 1 --head 3')
@click.argument("prompt")
@click.option("--layer", required=True, type=INTEGER, help="From 0; negative from the end.")
@click.option("--head", required=True, type=INTEGER, help="From 0.")
@bos_option
@runner_options
@output_options
def attn(
    prompt: str, layer: int, head: int, bos: bool, engine: EngineChoice, output: DataFormat
) -> None:
    """Show what one head attends to.

    '-' reads the prompt from standard input.
    """
    from probes.heads.patterns import attention_patterns

    text = text_of(prompt)
    with show_status():
        patterns = attention_patterns(engine.open(), text, layers=[layer], prepend_bos=bos)
    output.show(patterns.show(patterns.layers[0], head))
