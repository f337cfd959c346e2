"""The command `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from gpt2kit.cli.choices import INTEGER, INTEGER_OR_ALL, NUMBER
from gpt2kit.cli.group import example_command
from gpt2kit.cli.options import EngineChoice, options, runner_options, text_of
from gpt2kit.cli.output import DataFormat, output_options, print_json
from gpt2kit.cli.progress import show_status
from gpt2kit.cli.terminal import print_rich, write, write_csv
from gpt2kit.defaults import Default
from gpt2kit.errors import InputError

if TYPE_CHECKING:
    from gpt2kit.edits import Edit
    from gpt2kit.runner import Runner

_sampling_options = options(
    click.option(
        "-n", "--max-new-tokens", type=INTEGER, default=Default(40), show_default=True,
        help="How many tokens to add; by default fewer where the context is full.",
    ),
    click.option("--greedy", is_flag=True, help="Always take the likeliest token."),
    click.option(
        "--temperature", type=NUMBER, default=1.0, show_default=True,
        help="Above 0; a low one prefers likely tokens.",
    ),
    click.option(
        "--top-k", type=INTEGER_OR_ALL, default=Default(50), show_default=True,
        metavar="INTEGER|all", help="Draw from this many of the likeliest tokens.",
    ),
    click.option(
        "--top-p", type=NUMBER, default=1.0, show_default=True,
        help="Draw from the likeliest tokens that together have this probability.",
    ),
    click.option(
        "--repetition-penalty", type=NUMBER, default=1.0, show_default=True,
        help="Above 1, tokens of the text become less likely.",
    ),
    click.option(
        "--no-repeat-ngram-size", type=INTEGER, default=0, show_default=True, metavar="N",
        help="Say no N tokens in a row twice.",
    ),
    click.option(
        "--window", type=INTEGER, metavar="N",
        help="Go on past the context: read the last N tokens of the text.",
    ),
    click.option("--seed", type=INTEGER, help="The same seed gives the same text."),
    click.option("--stop", multiple=True, metavar="TEXT", help="Stop before TEXT; repeatable."),
)  # fmt: skip


@example_command(
    'gpt2kit generate "Once upon a time" --seed 4',
    'gpt2kit generate "Once upon a time" --greedy --lens',
    'gpt2kit generate "One day, Lily and Tom" --edit "blocks.1.z[head=3] = 0"',
)
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@_sampling_options
@click.option(
    "--edit",
    "edit_texts",
    multiple=True,
    metavar="EDIT",
    help="Compare the text with and without this edit; repeatable.",
)
@click.option(
    "--lens", "with_lens", is_flag=True, help="Show from which layer each token is the likeliest."
)
@runner_options
@output_options
def generate(
    prompts: tuple[str, ...],
    engine: EngineChoice,
    output: DataFormat,
    edit_texts: tuple[str, ...],
    with_lens: bool,
    **sampling: Any,
) -> None:
    """Continue a prompt.

    '-' reads the prompt from standard input. Several prompts run as one batch. An edit is written
    TAP[AXIS=WHERE] = VALUE, or with +=, -= or *=; VALUE is a number, FILE.npy, or NUMBER *
    FILE.npy. `gpt2kit taps` lists the taps and the whole grammar.
    """
    from gpt2kit.edits import Edit

    texts = [text_of(prompt) for prompt in prompts]
    edits = [Edit.parse(text) for text in edit_texts]
    if len(texts) > 1 and (edits or with_lens):
        raise InputError("--edit and --lens take one prompt at a time")
    if with_lens:
        _show_lens(engine.open(), texts[0], edits, sampling, output)
    elif edits:
        _show_effect(engine, texts[0], edit_texts, sampling, output)
    elif output.is_data:
        _print_data(engine.open(), texts, sampling, output)
    elif len(texts) > 1:
        _print_batch(engine.open(), texts, sampling)
    else:
        _stream(engine.open(), texts[0], sampling)


def _stream(runner: Runner, prompt: str, sampling: dict[str, Any]) -> None:
    """Print the prompt, then every piece of text as soon as it is certain."""
    from gpt2kit.generation import generate as run

    started = False

    def show(_: int, piece: str) -> None:
        nonlocal started
        if not started:  # only now have all checks passed
            write(prompt, dim=True, end="")
            started = True
        write(piece, end="")

    run(runner, prompt, on_text=show, **sampling)
    write("" if started else prompt, dim=not started)


def _print_batch(runner: Runner, prompts: list[str], sampling: dict[str, Any]) -> None:
    from gpt2kit.generation import generate as run

    for prompt, text in zip(prompts, run(runner, prompts, **sampling), strict=True):
        write(prompt, dim=True, end="")
        write(text + "\n")


def _print_data(
    runner: Runner, prompts: list[str], sampling: dict[str, Any], output: DataFormat
) -> None:
    """One JSON object for one prompt, an array for several; or CSV with a row for each."""
    from gpt2kit.cli.continuation import continue_prompts
    from gpt2kit.result import as_csv

    results = continue_prompts(runner, prompts, sampling)
    if output.as_csv:
        write_csv(as_csv([row for result in results for row in result.table()]))
    elif len(results) == 1:
        print_json(results[0].to_json())
    else:
        print_json([result.to_dict() for result in results])


def _show_lens(
    runner: Runner, prompt: str, edits: Sequence[Edit], sampling: dict[str, Any], output: DataFormat
) -> None:
    """Print a line for each token as soon as it is chosen, then the text."""
    from probes.draw.generation_lines import header
    from probes.lens.generation_lens import Step, generation_lens

    if output.is_data:
        output.show_data(generation_lens(runner, prompt, edits=edits, **sampling))
        return
    started = False

    def show(step: Step) -> None:
        nonlocal started
        if not started:  # only now have all checks passed
            for text in header(runner.config.n_layer + 1):
                print_rich(text)
            started = True
        print_rich(step.line(), wrap=False)

    lens = generation_lens(runner, prompt, edits=edits, on_step=show, **sampling)
    write("\n" + prompt, dim=True, end="")
    write(lens.text)


def _show_effect(
    engine: EngineChoice,
    prompt: str,
    edit_texts: tuple[str, ...],
    sampling: dict[str, Any],
    output: DataFormat,
) -> None:
    from probes.causal.edit_effect import edit_effect

    with show_status() as status:
        runner = engine.open()
        status.update("generating")
        effect = edit_effect(runner, prompt, edit_texts, **sampling)
    output.show(effect)
