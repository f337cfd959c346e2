"""The commands about attention heads: `heads` and `attn`."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import click

from gpt2kit.cli.choices import INTEGER
from gpt2kit.cli.group import example_command
from gpt2kit.cli.options import Engine, bos_option, given, runner_options, text_of
from gpt2kit.cli.output import Output, output_options, print_csv, print_json, print_rich
from gpt2kit.cli.progress import show_status
from gpt2kit.errors import InputError

if TYPE_CHECKING:
    from gpt2kit.result import Row


@example_command("gpt2kit heads", 'gpt2kit heads --prompt "the cat sat on the mat"')
@click.option("--prompt", metavar="TEXT", help="Score on this text; '-' reads standard input.")
@click.option(
    "--length", type=INTEGER, default=50, show_default=True,
    help="Without --prompt: how many random tokens to repeat.",
)  # fmt: skip
@runner_options
@output_options
def heads(prompt: str | None, length: int, engine: Engine, output: Output) -> None:
    """Show which attention heads do what.

    For every head: how much it attends to the token before, to earlier copies of a token, and to
    what followed those copies (induction), on random tokens that are repeated, or on a text; and
    whether its weights copy tokens.
    """
    from rich.console import Group

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
        print_csv(_joined(scores.table(), copying.table()))
    else:
        print_rich(Group(scores.render(), "", copying.render()))


def _joined(scores: list[Row], copying: list[Row]) -> str:
    """Both tables side by side: a row for each head."""
    rows = [score | copies for score, copies in zip(scores, copying, strict=True)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@example_command('gpt2kit attn "The Queen said to Alice" --layer 1 --head 3')
@click.argument("prompt")
@click.option("--layer", required=True, type=INTEGER, help="From 0; negative from the end.")
@click.option("--head", required=True, type=INTEGER, help="From 0.")
@bos_option
@runner_options
@output_options
def attn(prompt: str, layer: int, head: int, bos: bool, engine: Engine, output: Output) -> None:
    """Show what one head attends to.

    '-' reads the prompt from standard input.
    """
    from probes.heads.patterns import attention_patterns

    text = text_of(prompt)
    with show_status():
        patterns = attention_patterns(engine.open(), text, layers=[layer], prepend_bos=bos)
    output.show(patterns.show(patterns.layers[0], head))
