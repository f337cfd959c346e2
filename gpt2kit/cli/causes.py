"""The commands that explain one answer: `attribute`, `patch` and `ablate`."""

from __future__ import annotations

import click

from gpt2kit.cli.choices import ABLATIONS, INTEGER, LEVELS
from gpt2kit.cli.group import example_command
from gpt2kit.cli.options import (
    EngineChoice,
    bos_option,
    foil_option,
    metric_of,
    runner_options,
    target_option,
    text_of,
)
from gpt2kit.cli.output import DataFormat, output_options
from gpt2kit.cli.progress import show_status
from gpt2kit.errors import InputError


@example_command(
    "gpt2kit attribute \"The girl lost\" --target ' her' --foil ' his'",
    "gpt2kit attribute \"The girl lost\" --target ' her' --by head",
)
@click.argument("prompt")
@click.option("--target", required=True, metavar="TOKEN", help="Whose logit, e.g. ' Mary'.")
@click.option("--foil", metavar="TOKEN", help="Explain the target's logit minus this one's.")
@click.option(
    "--by", type=click.Choice(LEVELS), default="component", show_default=True,
    help="The parts to compare.",
)  # fmt: skip
@click.option(
    "--pos", type=INTEGER, default=-1, show_default=True, help="The position before the target."
)
@bos_option
@runner_options
@output_options
def attribute(
    prompt: str,
    target: str,
    foil: str | None,
    by: str,
    pos: int,
    bos: bool,
    engine: EngineChoice,
    output: DataFormat,
) -> None:
    """Show which parts of the model a logit comes from.

    '-' reads the prompt from standard input.
    """
    from probes.attribution.direct import direct_logit_attribution

    text = text_of(prompt)
    with show_status() as status:
        runner = engine.open()
        status.update("attributing")
        result = direct_logit_attribution(
            runner, text, target=target, foil=foil, by=by, position=pos, prepend_bos=bos
        )
    output.show(result)


@example_command(
    'gpt2kit patch --clean "The girl lost" --corrupt "The boy lost" \\',
    "    --target ' her' --foil ' his'",
)
@click.option("--clean", required=True, metavar="PROMPT", help="The run whose values are put in.")
@click.option(
    "--corrupt", required=True, metavar="PROMPT", help="The run that is patched; as many tokens."
)
@target_option
@foil_option
@click.option(
    "--over", default="resid_post", show_default=True, help="A tap, e.g. z, mlp_out or embed."
)
@runner_options
@output_options
def patch(
    clean: str,
    corrupt: str,
    target: str,
    foil: str | None,
    over: str,
    engine: EngineChoice,
    output: DataFormat,
) -> None:
    """Put one prompt's values into another's run.

    Activation patching: for every place, how much of the clean prompt's answer comes back. '-'
    reads a prompt from standard input.
    """
    from probes.causal.patching import activation_patching

    if clean == corrupt == "-":
        raise InputError("--clean and --corrupt are both '-'; standard input holds one prompt")
    texts = text_of(clean), text_of(corrupt)
    with show_status() as status:
        runner = engine.open()
        status.update("patching")
        result = activation_patching(
            runner, *texts, metric=metric_of(target, foil), over=over, on_progress=status.count
        )
    output.show(result)


@example_command(
    "gpt2kit ablate \"The girl lost\" --target ' her'",
    "gpt2kit ablate \"The girl lost\" --target ' her' --over mlp_out --kind mean",
)
@click.argument("prompt")
@target_option
@foil_option
@click.option("--over", default="z", show_default=True, help="A tap, e.g. z, mlp_out or embed.")
@click.option(
    "--kind", type=click.Choice(ABLATIONS), default="zero", show_default=True,
    help="What is put in: nothing, a mean, or values of a --reference.",
)  # fmt: skip
@click.option(
    "--reference", multiple=True, metavar="TEXT", help="A text to take values from; repeatable."
)
@runner_options
@output_options
def ablate(
    prompt: str,
    target: str,
    foil: str | None,
    over: str,
    kind: str,
    reference: tuple[str, ...],
    engine: EngineChoice,
    output: DataFormat,
) -> None:
    """Remove each head and measure what it was good for.

    With --over mlp_out or attn_out, each layer's part instead. The mean is over the positions of
    the prompt, or of --reference. '-' reads the prompt from standard input.
    """
    from probes.causal.ablation import ablate as run

    if reference and kind == "zero":
        raise InputError("--reference does not go with --kind zero, which puts nothing in")
    text, references = text_of(prompt), [text_of(other) for other in reference]
    with show_status() as status:
        runner = engine.open()
        status.update("ablating")
        result = run(
            runner,
            text,
            metric=metric_of(target, foil),
            over=over,
            kind=kind,
            reference=references or None,
            on_progress=status.count,
        )
    output.show(result)
